"""Names of another module, bound to ours for a while: where nnU-Net offers no hook and copying a method is worse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def bound(module: ModuleType, **names: Any) -> Iterator[None]:
    """Inside the block the module's globals have these values. Not for several threads at once.

    Raises:
        AttributeError: the module has no such name; then nnU-Net has changed and this must be looked at.
    """
    before = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
