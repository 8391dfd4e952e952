"""Overlap of two label maps (pure numpy)."""

from __future__ import annotations

import numpy as np


def dice(prediction: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Dice coefficient of one label: 2 |P and T| / (|P| + |T|) (Dice, Ecology 26:297, 1945).

    Where both maps lack the label they agree: 1.0. Where only one has it: 0.0.

    Args:
        prediction: label map of any shape.
        truth: label map of the same shape.
        label: the value that is compared.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, truth {truth.shape}; they must be equal.")
    return overlap(prediction == label, truth == label)


def overlap(predicted: np.ndarray, true: np.ndarray) -> float:
    """The same of two masks."""
    total = int(predicted.sum()) + int(true.sum())
    return 1.0 if total == 0 else 2 * int((predicted & true).sum()) / total
