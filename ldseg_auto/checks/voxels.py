"""What the voxels of an image or a label hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

_MOST_COUNTED = 1 << 16  # distinct whole numbers that are counted instead of sorted
_SHOWN = 5
LARGEST = 1e14  # squares, summed over a volume, must fit into float32: nnU-Net normalises by them


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The same for the same voxels, whatever the header and the compression."""
    total = blake2b(digest_size=16)
    for array in arrays:
        total.update(str(array.shape).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def extremes(channel: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest value; not finite where there is a NaN or an infinite value."""
    return float(channel.min()), float(channel.max())


def distinct(labels: np.ndarray) -> np.ndarray:
    """The values of a label map, sorted. Whole numbers are counted slice by slice: sorting large volumes is slow."""
    low, high = extremes(labels)
    if not (np.isfinite([low, high]).all() and max(abs(low), abs(high)) < _MOST_COUNTED):
        return np.unique(labels)
    seen = np.zeros(int(high) - int(low) + 2, bool)
    for part in labels.reshape(-1, *labels.shape[-2:]):
        whole = part.astype(np.int32)
        if not np.array_equal(whole, part):
            return np.unique(labels)
        seen[whole.ravel() - int(low)] = True
    return np.flatnonzero(seen) + int(low)


def label_problem(values: Sequence[float] | np.ndarray, allowed: Iterable[int]) -> str | None:
    """What is wrong with the values of a label map, as the end of a sentence.

    Args:
        values: those that occur.
        allowed: those that dataset.json names.
    """
    allowed = set(allowed)
    wrong = [v for v in values if float(v) not in allowed]
    if not wrong:
        return None
    shown = ", ".join(_shown(v) for v in wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
    fractions = any(not float(v).is_integer() for v in wrong)
    return f"holds {shown}, {'which are no whole numbers' if fractions else 'which dataset.json does not name'}"


def _shown(value: float) -> str:
    """2.0000005 must not be called 2."""
    short = f"{value:g}"
    return short if float(short) == float(value) or not np.isfinite(value) else str(float(value))
