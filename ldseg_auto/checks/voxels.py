"""What the voxels of an image or a label hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

_MOST_COUNTED = 1 << 16  # distinct whole numbers that are counted instead of sorted
_SHOWN = 5


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The same for the same voxels, whatever the header and the compression."""
    total = blake2b(digest_size=16)
    for array in arrays:
        total.update(str(array.shape).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def not_finite(array: np.ndarray) -> bool:
    """Whether there is a NaN or an infinite value (both show in the extremes)."""
    return not (np.isfinite(array.min()) and np.isfinite(array.max()))


def distinct(labels: np.ndarray) -> np.ndarray:
    """The values of a label map, sorted."""
    low, high = float(labels.min()), float(labels.max())
    if np.isfinite([low, high]).all() and max(abs(low), abs(high)) < _MOST_COUNTED:
        whole = labels.astype(np.int32)
        if np.array_equal(whole, labels):
            return np.flatnonzero(np.bincount((whole - int(low)).ravel())) + int(low)
    return np.unique(labels)


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
    shown = ", ".join(f"{v:g}" for v in wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
    fractions = any(not float(v).is_integer() for v in wrong)
    return f"holds {shown}, {'which are no whole numbers' if fractions else 'which dataset.json does not name'}"
