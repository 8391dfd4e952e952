"""How this process gets its memory from the system while it trains on a CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# glibc's mallopt(3): what it is told inside the block, and after it. Once told anything it adapts its thresholds no
# more: after the block they are what they would have become where large tensors are used, its largest.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 1 << 28}
_ADAPTED = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _TOP_PAD: 1 << 17}


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Inside the block what is freed is used again; after it, it goes back to the system.

    A training step on a CPU frees and allocates the same feature maps, tens of megabytes each. Where glibc allocates,
    each goes back to the system at once, which clears every page anew the next time: a fifth of the time of a step
    (measured: benchmarks/RESULTS.md). Without glibc nothing changes.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    _tell(mallopt, _KEEPING)
    try:
        yield
    finally:
        _tell(mallopt, _ADAPTED)
        trim(0)


def _tell(mallopt: Callable[[int, int], int], options: dict[int, int]) -> None:
    for option, value in options.items():
        mallopt(option, value)
