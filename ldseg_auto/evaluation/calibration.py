"""Is a probability of 0.9 right nine times in ten? And what is fitted so that it is. (pure: numpy, scipy)"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import rankdata

BINS = 15
MARGIN_VOXELS = 5
_TEMPERATURES = (0.2, 5.0)
_MIN_CASES_OF_LINE = 9  # as an interval of 90 % needs


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


def confidence_bins(probabilities: np.ndarray, truth: np.ndarray, prediction: np.ndarray,
                    regions: Sequence[int | tuple[int, ...]] | None, ignore_label: int | None) -> np.ndarray:
    """`reliability_bins` of a case, (3, BINS), over the box of `confidence_and_correct` (see there); zero where there
    is no foreground."""
    return reliability_bins(*confidence_and_correct(probabilities, truth, prediction, regions, ignore_label), BINS)


def confidence_and_correct(probabilities: np.ndarray, truth: np.ndarray, prediction: np.ndarray,
                           regions: Sequence[int | tuple[int, ...]] | None,
                           ignore_label: int | None) -> tuple[np.ndarray, np.ndarray]:
    """How sure and whether right, voxel by voxel, within the box that holds the foreground and a margin.

    A box, because it is chosen without looking at single voxels: were those that are truly or predictedly foreground
    compared alone, background would count only where it is wrong. The whole image, on the other hand, is mostly
    background far from anything.

    Args:
        probabilities: (K, z, y, x).
        truth, prediction: (z, y, x), labels.
        regions: the labels of each of the K regions, or None where the K labels exclude each other. Regions are
            compared one by one, as foreground against not.
        ignore_label: those voxels are left out.

    Returns:
        (n,) confidence in [0, 1] and (n,) bool.
    """
    known = truth != ignore_label
    box = foreground_box(((truth > 0) & known) | (prediction > 0))
    if box is None:
        return np.zeros(0), np.zeros(0, bool)
    probabilities, truth, known = probabilities[(slice(None), *box)].astype(np.float32), truth[box], known[box]
    if regions is None:
        return probabilities.max(0)[known].clip(0, 1), (probabilities.argmax(0) == truth)[known]
    sure = [np.maximum(p, 1 - p)[known].clip(0, 1) for p in probabilities]
    right = [((p > 0.5) == np.isin(truth, region))[known] for p, region in zip(probabilities, regions, strict=True)]
    return np.concatenate(sure), np.concatenate(right)


def foreground_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The bounding box of what is True, MARGIN_VOXELS wider on each side as far as the array goes; None where nothing
    is."""
    found = [np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
             for axis in range(mask.ndim)]
    if not len(found[0]):
        return None
    return tuple(slice(max(0, int(each[0]) - MARGIN_VOXELS), int(each[-1]) + 1 + MARGIN_VOXELS) for each in found)


def expected_calibration_error(bins: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_bins`, each weighed by its voxels (Guo et
    al., 1706.04599, eq. 5); 0 where nothing was counted."""
    voxels, confidence, correct = bins
    return float(np.abs(confidence - correct).sum() / voxels.sum()) if voxels.sum() else 0.0


def adaptive_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The same with bins of equally many voxels (Nixon et al., 1904.01685, section 3)."""
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    gaps = [len(part) * abs(confidence[part].mean(dtype=float) - correct[part].mean()) for part in parts]
    return float(sum(gaps) / len(confidence)) if len(confidence) else 0.0


def area_under_risk_coverage(confidence: np.ndarray, risk: np.ndarray) -> float:
    """Mean risk of the surest k cases over all k (Geifman and El-Yaniv, 1705.08500; the area of the curve).

    Args:
        confidence, risk: (n,), such as the expected Dice and one minus the true one.
    """
    ordered = risk[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())


def error_detection_auroc(uncertainty: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a wrong voxel is more uncertain than a right one, ties counting half; NaN without both."""
    number = int(wrong.sum())
    if number in (0, len(wrong)):
        return float("nan")
    ranks = rankdata(uncertainty)[wrong]
    return float((ranks.sum() - number * (number + 1) / 2) / (number * (len(wrong) - number)))


def fit_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the true labels most likely (Guo et al., 1706.04599, section 4.2).

    Args:
        log_probabilities: (n, K), up to a constant for each voxel.
        labels: (n,), index of the true one.
    """
    index = labels.astype(np.intp)[:, None]

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = log_softmax(log_probabilities / np.exp(log_temperature), axis=1)
        return -float(np.take_along_axis(scaled, index, 1).mean(dtype=float))

    found = minimize_scalar(negative_log_likelihood, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def interval_scale(errors: np.ndarray, units: np.ndarray, coverage: float = 0.9) -> float | None:
    """Half of an interval that holds the truth of a new case with this probability, in units of the case's own.

    Split conformal prediction with a score scaled by the case (Lei et al., 1604.04173, section 5.2): the
    ceil((n + 1) coverage)-th smallest of |error| / unit.

    Args:
        errors: (n,), of cases the model was not trained on.
        units: (n,), above 0.

    Returns:
        None where n is too small for that coverage (below 9 for 90 %).
    """
    rank = ceil((len(errors) + 1) * coverage)
    return None if rank > len(errors) else float(np.sort(np.abs(errors) / units)[rank - 1])


def fit_line(expected: np.ndarray, true: np.ndarray) -> tuple[float, float] | None:
    """Offset and slope of the line of least squares from expected to true values, level where it would fall.

    Args:
        expected, true: (n,), of cases the model was not trained on.

    Returns:
        None of fewer than nine cases.
    """
    if len(expected) < _MIN_CASES_OF_LINE:
        return None
    centred = expected - expected.mean()
    # values that differ by rounding alone have no slope
    slope = float((centred * true).sum() / (centred ** 2).sum()) if np.ptp(expected) > 1e-6 else 0.0
    slope = max(0.0, slope)
    return float(true.mean()) - slope * float(expected.mean()), slope
