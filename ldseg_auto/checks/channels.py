"""Whether the channels of a case come in the training set's order: which order of them fits its intensities best. Pure.

An MR image may have any scale, so nothing is said of a channel that merely looks unlike the training set's. Only where
another order of the same channels fits, and the given one does not, were they probably interchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

MIN_CASES = 5  # fewer do not tell how much a channel varies
_SAMPLED_VOXELS = 50_000
_FLOOR = np.array([0.2, 0.05, 0.05, 0.05, 0.05, 0.05])  # of the spread: few cases may be alike by chance
_MOST_SPREADS = 20.0  # one odd value decides nothing
_FITS, _DOES_NOT_FIT = 2.0, 4.0  # mean distance in spreads; of a normal channel it is about 0.7

Summary = list[dict[str, list[float]]]  # per channel: centre and spread of each value of `features`


def features(channel: np.ndarray) -> list[float]:
    """What tells a channel from another: log of its range, and where within the range its voxels lie.

    Args:
        channel: any shape, finite.
    """
    flat = channel.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLED_VOXELS)].astype(np.float64)
    lowest = sample.min()
    inner = sample[sample > lowest]
    if not len(inner):
        return [0.0] * len(_FLOOR)
    q1, q25, q50, q75, q99 = np.percentile(inner, (1, 25, 50, 75, 99))
    extent = max(q99 - q1, 1e-12)
    position = np.clip(q50 / extent, -10, 10)  # the scale cancels; an offset as CT's does not
    return [float(v) for v in (np.log(extent), position, (q50 - q1) / extent, (q75 - q25) / extent,
                               (q75 - q50) / extent, 1 - len(inner) / len(sample))]


def summarise(cases: Sequence[Sequence[Sequence[float]]]) -> Summary:
    """Median and spread (scaled median deviation) of the features of each channel over the cases.

    Args:
        cases: `features` of each channel of each case.

    Returns:
        Empty where there are fewer than `MIN_CASES` or only one channel.
    """
    if len(cases) < MIN_CASES or len(cases[0]) < 2:
        return []
    values = np.array(cases)  # (case, channel, feature)
    centre = np.median(values, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - centre), axis=0), _FLOOR)
    return [{"centre": c.tolist(), "spread": s.tolist()} for c, s in zip(centre, spread, strict=True)]


def better_order(case: Sequence[Sequence[float]], summary: Summary) -> list[int] | None:
    """The order of the channels that fits the training set clearly better than the given one, if there is one.

    Args:
        case: `features` of each channel.
        summary: of the training set.

    Returns:
        for each place the channel that belongs there.
    """
    if len(case) != len(summary) or not summary:
        return None
    distance = np.array([[_distance(channel, place) for channel in case] for place in summary])
    places, best = linear_sum_assignment(distance)
    moved = best != places
    if not moved.any() or distance[places, best][moved].mean() > _FITS:
        return None
    return best.tolist() if distance[places, places][moved].mean() > _DOES_NOT_FIT else None


def _distance(channel: Sequence[float], place: dict[str, Any]) -> float:
    apart = np.abs(np.array(channel) - place["centre"]) / place["spread"]
    return float(np.minimum(apart, _MOST_SPREADS).mean())
