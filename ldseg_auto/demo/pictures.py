"""One picture a case: image, truth, prediction and uncertainty side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

# Okabe and Ito: safe for the colour-blind
COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442")
_OVERLAY_OPACITY = 0.55
_INCHES = 3.2


def draw_case(image: Path, truth: Path, prediction: Path, entropy: Path, picture: Path,
              labels: Mapping[str, int]) -> None:
    """Draw the slice that shows the most structure.

    Args:
        image, truth, prediction, entropy: volumes of one geometry, in any format SimpleITK reads.
        picture: the PNG that is written; its folder is made.
        labels: name and value of each label; 0 is the background.
    """
    from matplotlib import rc_context, rcParamsDefault

    grey, aspect = _read(image)
    true, predicted, uncertain = (_read(path)[0] for path in (truth, prediction, entropy))
    index = fullest_slice(true)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(rcParamsDefault):  # nnU-Net's logger sets large fonts for the whole process
        _draw_panels(grey[index], true[index], predicted[index], uncertain[index], aspect, labels, picture)


def _draw_panels(grey: np.ndarray, true: np.ndarray, predicted: np.ndarray, uncertain: np.ndarray, aspect: float,
                 labels: Mapping[str, int], picture: Path) -> None:
    """Four panels of slices (y, x); `aspect` is the height of a pixel over its width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3 * _INCHES, 1.15 * _INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    foreground = {name: value for name, value in labels.items() if value > 0}
    for axis, title, overlay in zip(axes, ("image", "truth", "prediction"), (None, true, predicted), strict=False):
        axis.imshow(grey, cmap="gray", aspect=aspect)
        axis.set_title(title)
        if overlay is not None:
            axis.imshow(_coloured(overlay, foreground), aspect=aspect, interpolation="nearest")
    shown = axes[3].imshow(uncertain, cmap="magma", aspect=aspect, vmin=0, vmax=np.log(len(labels)))
    axes[3].set_title("uncertainty (entropy, nats)")
    figure.colorbar(shown, ax=axes[3], shrink=0.8)
    for axis in axes:
        axis.set_axis_off()
    _add_legend(figure, foreground)
    figure.savefig(picture, dpi=110)


def fullest_slice(labels: np.ndarray) -> int:
    """Index along the first axis of the slice with the most labels, then the most labelled voxels.

    Args:
        labels: label map (z, y, x), 0 being the background.
    """
    number = [len(np.unique(plane[plane > 0])) for plane in labels]
    voxels = [np.count_nonzero(plane) for plane in labels]
    return max(range(len(labels)), key=lambda z: (number[z], voxels[z]))


def _read(path: Path) -> tuple[np.ndarray, float]:
    """A volume (z, y, x) and the height of its pixels over their width."""
    import SimpleITK as sitk

    volume = sitk.ReadImage(str(path))
    spacing = volume.GetSpacing()
    return sitk.GetArrayFromImage(volume), spacing[1] / spacing[0]


def _coloured(labels: np.ndarray, foreground: Mapping[str, int]) -> np.ndarray:
    """(y, x) -> (y, x, 4), the background transparent."""
    from matplotlib.colors import to_rgba

    colours = np.zeros((*labels.shape, 4))
    for i, value in enumerate(foreground.values()):
        colours[labels == value] = to_rgba(COLOURS[i % len(COLOURS)], _OVERLAY_OPACITY)
    return colours


def _add_legend(figure, foreground: Mapping[str, int]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(foreground)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
