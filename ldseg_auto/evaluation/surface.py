"""Distances between the surfaces of two masks, by MONAI (numpy, scipy and monai, which is imported on first use).

- NSD, normalised surface Dice (Nikolov et al., arXiv 1809.04430): the share of both surfaces that lies within a
  tolerance of the other one. Surfaces run between voxels and are weighed by their area (in 2D by their length).
- HD95: the larger of the two directed 95th percentiles, from the prediction's surface voxels to the truth's and back.
- ASSD: the mean of the distances of both directions taken together.

A structure that the image's border cuts has a surface there. Empty masks: see `policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects

from ldseg_auto.evaluation.policy import Presence, agreement, diagonal_mm, distance_mm, presence

# Headers hold spacings as float32: a surface one voxel off must not miss a tolerance of one voxel by rounding.
_ROUNDING = 1 + 1e-4
_PERCENTILE = 95


@dataclass(frozen=True)
class SurfaceMetrics:
    """Surface distances of one structure."""

    presence: Presence
    nsd: float
    hd95_mm: float
    assd_mm: float


def surface_metrics(prediction_mask: np.ndarray, truth_mask: np.ndarray, spacing_mm: Sequence[float],
                    tolerance_mm: float, worst_mm: float | None = None) -> SurfaceMetrics:
    """NSD, HD95 and ASSD of two masks.

    Args:
        prediction_mask: bool, 2D or 3D; an axis of one voxel makes a 3D mask 2D.
        truth_mask: of the same shape.
        spacing_mm: of each axis.
        tolerance_mm: distance up to which surfaces agree in the NSD.
        worst_mm: HD95 and ASSD where only one mask is empty; by default the diagonal of these arrays. For masks that
            were cut out of an image: the image's.

    Raises:
        ValueError: shapes that differ or are neither 2D nor 3D, a spacing that is not positive, a negative tolerance.
    """
    _require_fitting(prediction_mask, truth_mask, spacing_mm, tolerance_mm)
    prediction, truth, spacing = _without_flat_axis(prediction_mask, truth_mask, spacing_mm)
    found = presence(bool(prediction.any()), bool(truth.any()))
    if found is not Presence.BOTH:
        worst = diagonal_mm(prediction.shape, spacing) if worst_mm is None else worst_mm
        return SurfaceMetrics(found, agreement(found), distance_mm(found, worst), distance_mm(found, worst))
    box = around(prediction | truth)
    return _measure(prediction[box], truth[box], spacing, tolerance_mm)


def around(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of what is True and one voxel more, as far as the array goes."""
    box = find_objects(mask.view(np.uint8))[0]
    return tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)


def _measure(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...],
             tolerance_mm: float) -> SurfaceMetrics:
    """Of two masks that both hold something, by the parts of MONAI's metrics: their surfaces and distances serve HD95
    and ASSD alike, and compute_surface_dice warns of a deprecation of its own."""
    from monai.metrics import get_mask_edges

    voxels, voxels_truth = get_mask_edges(prediction, truth)
    there, back = _distances(voxels, voxels_truth, spacing)
    between, between_truth, areas, areas_truth = get_mask_edges(prediction, truth, spacing=spacing)
    distances = np.concatenate(_distances(between, between_truth, spacing))
    weights = np.concatenate([areas[between], areas_truth[between_truth]]).astype(np.float64)
    nsd = weights[distances <= tolerance_mm * _ROUNDING].sum() / weights.sum()
    hd95 = max(np.percentile(there, _PERCENTILE), np.percentile(back, _PERCENTILE))
    return SurfaceMetrics(Presence.BOTH, float(nsd), float(hd95),
                          float(np.concatenate([there, back]).mean(dtype=np.float64)))


def _distances(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """From each element of one surface to the other one, and back."""
    from monai.metrics import get_surface_distance

    return (np.asarray(get_surface_distance(first, second, spacing=spacing)),
            np.asarray(get_surface_distance(second, first, spacing=spacing)))


def _without_flat_axis(prediction: np.ndarray, truth: np.ndarray,
                       spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Readers give 2D images a first axis of one voxel, whose spacing means nothing."""
    spacing = tuple(map(float, spacing_mm))
    if prediction.ndim == 3 and 1 in prediction.shape:
        axis = prediction.shape.index(1)
        return prediction.squeeze(axis), truth.squeeze(axis), spacing[:axis] + spacing[axis + 1:]
    return prediction, truth, spacing


def _require_fitting(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float],
                     tolerance_mm: float) -> None:
    if prediction.shape != truth.shape or prediction.ndim not in (2, 3) or len(spacing_mm) != prediction.ndim:
        raise ValueError(f"prediction {prediction.shape}, truth {truth.shape} and spacing {tuple(spacing_mm)} must "
                         "have the same two or three axes.")
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"Masks must be bool, not {prediction.dtype} and {truth.dtype}.")
    if min(spacing_mm) <= 0 or tolerance_mm < 0:
        raise ValueError(f"spacing {tuple(spacing_mm)} must be above 0, tolerance {tolerance_mm} not below it.")
