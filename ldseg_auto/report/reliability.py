"""How often the validation was as right as it was sure, over all cases that have their probabilities."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from ldseg_auto.evaluation.calibration import BINS, MARGIN_VOXELS
from ldseg_auto.report.parts import paragraph, plot


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
