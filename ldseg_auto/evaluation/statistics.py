"""Intervals and paired tests over cases (numpy and scipy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
_ELEMENTS = 4_000_000  # of resampled values held at a time


@dataclass(frozen=True)
class PairedTest:
    """Outcome of `paired_wilcoxon`."""

    n: int
    n_zero: int
    mean_difference: float
    p_value: float


def mean_over_classes(values: np.ndarray) -> float:
    """The mean of the classes' means, each over the cases that count for it.

    Args:
        values: (cases,) of one class or (cases, classes); NaN where a case does not count.

    Returns:
        NaN where no case counts.
    """
    return float(_mean(_by_class(values)))


def bootstrap_interval(values: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES,
                       seed: int = SEED) -> tuple[float, float] | None:
    """Percentile bootstrap interval of `mean_over_classes` (Efron and Tibshirani 1993, ch. 13).

    Cases are drawn with replacement, each with the values of all its classes.

    Args:
        values: (cases,) of one class or (cases, classes); NaN where a case does not count. For a paired interval:
            the differences.
        confidence: the share of resamples within the interval.
        resamples: how many are drawn.
        seed: of the draws; the same values and seed give the same interval.

    Returns:
        Its lower and upper end, or None of fewer than two cases that count; of few cases (about ten) too narrow.
    """
    table = _by_class(values)
    table = table[~np.isnan(table).all(1)]
    if len(table) < 2:
        return None
    result = stats.bootstrap((np.arange(len(table)),), lambda cases, axis: _mean(table[cases]), vectorized=True,
                             batch=max(1, _ELEMENTS // table.size), n_resamples=resamples,
                             confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_wilcoxon(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of first - second, zeros ranked as Pratt has it (JASA 54:655, 1959).

    By scipy's automatic choice: exact up to 50 pairs without ties or zeros, over all permutations up to 13 pairs with
    them, else the normal approximation. Where no pair differs, p is 1.

    Args:
        first, second: (cases,), in the same order; pairs with a NaN do not count.

    Raises:
        ValueError: the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs.")
    difference = np.subtract(first, second, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    zeros = int((difference == 0).sum())
    if zeros == len(difference):
        return PairedTest(len(difference), zeros, 0.0 if zeros else float("nan"), 1.0)
    p_value = float(stats.wilcoxon(difference, zero_method="pratt").pvalue)
    return PairedTest(len(difference), zeros, float(difference.mean()), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order (Holm, Scand. J. Statist. 6:65, 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, float)[order] * steps))
    return corrected.tolist()


def _by_class(values: np.ndarray) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    return table[:, None] if table.ndim == 1 else table


def _mean(values: np.ndarray) -> np.ndarray:
    """(..., cases, classes) -> (...)."""
    counts = ~np.isnan(values)
    number = counts.sum(-2)
    sums = np.where(counts, values, 0).sum(-2)
    means = np.divide(sums, number, out=np.zeros_like(sums), where=number > 0)
    with np.errstate(invalid="ignore"):
        return means.sum(-1) / (number > 0).sum(-1)
