"""What one case scores: overlap, surface distances and size of every structure (pure but for `surface`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.evaluation.policy import Presence, diagonal_mm
from ldseg_auto.evaluation.surface import surface_metrics

HIGHER_IS_BETTER = {"dice": True, "nsd": True, "hd95_mm": False, "assd_mm": False}
METRICS = tuple(HIGHER_IS_BETTER)
SIZE_UNITS = {2: "mm2", 3: "ml"}  # by the number of axes
_MM_PER_UNIT = {"mm2": 1.0, "ml": 1000.0}


@dataclass(frozen=True)
class StructureScores:
    """Scores of one structure in one case; sizes are areas (mm2) or volumes (ml)."""

    presence: Presence
    dice: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    prediction_size: float
    reference_size: float

    @property
    def size_difference(self) -> float:
        """Prediction less reference."""
        return self.prediction_size - self.reference_size

    def as_dict(self, unit: str) -> dict[str, Any]:
        """For tables: the sizes' names end in their unit."""
        return {"presence": self.presence.value, **{metric: getattr(self, metric) for metric in METRICS},
                f"prediction_{unit}": self.prediction_size, f"reference_{unit}": self.reference_size,
                f"difference_{unit}": self.size_difference}


def score_structures(prediction: np.ndarray, reference: np.ndarray, groups: Mapping[str, Sequence[int]],
                     spacing_mm: Sequence[float], tolerance_mm: Mapping[str, float]) -> dict[str, StructureScores]:
    """Compare two label maps.

    Args:
        prediction, reference: integers >= 0, of the same 2D or 3D shape.
        groups: name of each structure -> the label values that make it up.
        spacing_mm: of each axis.
        tolerance_mm: of the NSD, for each structure.
    """
    boxes = find_objects(np.stack([prediction, reference]))
    whole = diagonal_mm(reference.shape, spacing_mm)
    voxel = float(np.prod(spacing_mm)) / _MM_PER_UNIT[SIZE_UNITS[reference.ndim]]
    scores = {}
    for name, values in groups.items():
        box = _joint_box([boxes[v - 1] for v in values if 0 < v <= len(boxes)], reference.ndim)
        predicted, true = np.isin(prediction[box], values), np.isin(reference[box], values)
        surface = surface_metrics(predicted, true, spacing_mm, tolerance_mm[name], worst_mm=whole)
        scores[name] = StructureScores(surface.presence, dice(predicted, true, True), surface.nsd, surface.hd95_mm,
                                       surface.assd_mm, voxel * int(predicted.sum()), voxel * int(true.sum()))
    return scores


def _joint_box(boxes: Sequence[Any], axes: int) -> tuple[slice, ...]:
    """The box of all labels in both maps, and one voxel more where the image has one; of no label one voxel."""
    found = [box[1:] for box in boxes if box is not None]
    if not found:
        return (slice(0, 1),) * axes
    return tuple(slice(max(0, min(box[axis].start for box in found) - 1), max(box[axis].stop for box in found) + 1)
                 for axis in range(axes))
