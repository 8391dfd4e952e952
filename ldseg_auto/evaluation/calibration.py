"""Is a probability of 0.9 right nine times in ten? (pure numpy)"""

from __future__ import annotations

import numpy as np


def reliability_bins(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    """What a reliability diagram is drawn from (Guo et al., 1706.04599, section 2), in bins of equal width over [0, 1].

    Sums, so that the results of several cases are pooled by adding them.

    Args:
        confidence: probability of what was predicted, any shape, in [0, 1].
        correct: whether it was right, same shape.
        bins: number of bins; a limit between two belongs to the upper one.

    Returns:
        (3, bins) float64: how many fell into the bin, the sum of their confidence, how many were correct.

    Raises:
        ValueError: the shapes differ, or a confidence is not in [0, 1].
    """
    if confidence.shape != correct.shape:
        raise ValueError(f"confidence has shape {confidence.shape}, correct {correct.shape}; they must be equal.")
    values = confidence.ravel().astype(np.float64)
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise ValueError(f"confidence lies in [{values.min()}, {values.max()}]; it must lie in [0, 1].")
    index = np.minimum((values * bins).astype(np.intp), bins - 1)
    return np.stack([np.bincount(index, weights=weights, minlength=bins)
                     for weights in (None, values, correct.ravel().astype(np.float64))]).astype(np.float64)
