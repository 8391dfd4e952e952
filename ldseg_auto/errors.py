"""The one exception for mistakes we foresee: it names the cause and the cure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# where torch says what a file holds beside weights, between advice to open it all the same
_OF_TORCH = re.compile(r"(?:WeightsUnpickler error: |Trying to load )(.+?)(?:\. |\n|$)")


class LDSegError(RuntimeError):
    """A foreseeable mistake.

    Args:
        cause: what is wrong, with the value that came.
        cure: what to do about it.
    """

    def __init__(self, cause: str, cure: str):
        self.cause = cause
        self.cure = cure
        super().__init__(f"{cause} {cure}")


def reason_of(error: BaseException) -> str:
    """The kind of an error and what it says, on one line that a terminal can show."""
    found = _OF_TORCH.search(str(error))
    said = found[1] if found else next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {''.join(each if each.isprintable() else '?' for each in said)}"


def named(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first names of a list that may be long, for a message."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
