"""How often the validation was as right as it was sure, over all cases that have their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ldseg_auto.evaluation.calibration import reliability_bins
from ldseg_auto.report.parts import paragraph, plot

BINS = 15
MARGIN_VOXELS = 5


def case_bins(probabilities: np.ndarray, truth: np.ndarray, prediction: np.ndarray,
              regions: Sequence[int | tuple[int, ...]] | None, ignore_label: int | None) -> np.ndarray:
    """`reliability_bins` of a case, over the box that holds the true and the predicted foreground and a margin.

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
        (3, BINS), zero where there is no foreground.
    """
    known = truth != ignore_label
    box = _box(((truth > 0) & known) | (prediction > 0))
    if box is None:
        return np.zeros((3, BINS))
    probabilities, truth, known = probabilities[(slice(None), *box)].astype(np.float32), truth[box], known[box]
    if regions is None:
        return reliability_bins(probabilities.max(0)[known].clip(0, 1), (probabilities.argmax(0) == truth)[known], BINS)
    total = np.zeros((3, BINS))
    for probability, region in zip(probabilities, regions, strict=True):
        right = (probability > 0.5) == np.isin(truth, region)
        total += reliability_bins(np.maximum(probability, 1 - probability)[known].clip(0, 1), right[known], BINS)
    return total


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
    found = [np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
             for axis in range(mask.ndim)]
    if not len(found[0]):
        return None
    return tuple(slice(max(0, int(each[0]) - MARGIN_VOXELS), int(each[-1]) + 1 + MARGIN_VOXELS) for each in found)


def section(bins: np.ndarray, cases: int, regions: bool) -> list[str]:
    """HTML: the diagram, and a sentence that says which voxels it counts.

    Args:
        bins: (3, BINS), the cases' sums.
        cases: how many.
    """
    what = ("Each region of each voxel counts once: its probability, or one minus it where that is larger."
            if regions else "Each voxel counts once, with the probability of its most probable label.")
    return [plot(lambda axes: _draw(axes, bins), _in_words(bins), inches=(5.2, 4.2)),
            paragraph(f"Counted are {bins[0].sum():,.0f} voxels of {cases} cases: those within a box around true and "
                      f"predicted foreground, {MARGIN_VOXELS} voxels wider on each side. {what} On the dashed line "
                      "probabilities are what they say; below it the model is surer than it is right. Bars: share of "
                      "the voxels.")]


def _draw(axes: Axes, bins: np.ndarray) -> None:
    voxels, confidence, correct = bins
    filled = voxels > 0
    edges = np.arange(BINS) / BINS
    axes.bar(edges, voxels / voxels.sum(), width=1 / BINS, align="edge", color="tab:blue", alpha=0.25)
    axes.plot([0, 1], [0, 1], "--", color="grey", lw=1)
    axes.plot((confidence[filled] / voxels[filled]), correct[filled] / voxels[filled], "o-", color="tab:orange")
    lowest = edges[filled][0]
    axes.set(xlim=(max(0, lowest - 0.02), 1.01), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")


def _in_words(bins: np.ndarray) -> str:
    voxels, confidence, correct = bins
    points = [f"{c / v:.2f}: {r / v:.2f}" for v, c, r in zip(voxels, confidence, correct, strict=True) if v > 0]
    return f"Reliability diagram. Accuracy at each mean confidence: {', '.join(points)}."
