"""Distances between the surfaces of two masks (pure; MONAI and scikit-learn are imported on first use).

- NSD, normalised surface Dice (Nikolov et al., arXiv 1809.04430): the share of both surfaces that lies within a
  tolerance of the other one. Surfaces run between voxels and are weighed by their area (in 2D by their length).
- HD95: the larger of the two directed 95th percentiles, from the prediction's surface voxels to the truth's and back.
- ASSD: the mean of the distances of both directions taken together.

A structure that the image's border cuts has a surface there. Empty masks: see `policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from ldseg_auto.evaluation.policy import Presence, agreement, diagonal_mm, distance_mm, presence

# Headers hold spacings as float32: a surface one voxel off must not miss a tolerance of one voxel by rounding.
_ROUNDING = 1 + 1e-4
_PERCENTILE = 95
_SLAB_VOXELS = 2 ** 20  # looked at at a time


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
    """Of two masks that both hold something. MONAI's own compute_surface_dice and its siblings find the same, but on
    whole float arrays, which takes 120 bytes a voxel."""
    from monai.metrics import get_mask_edges

    there, back = _distances(*(np.argwhere(edges) * spacing for edges in get_mask_edges(prediction, truth)))
    (points, areas), (points_truth, areas_truth) = _surfaces(prediction, truth, spacing)
    distances, weights = np.concatenate(_distances(points, points_truth)), np.concatenate([areas, areas_truth])
    nsd = weights[distances <= tolerance_mm * _ROUNDING].sum() / weights.sum()
    hd95 = max(np.percentile(there, _PERCENTILE), np.percentile(back, _PERCENTILE))
    return SurfaceMetrics(Presence.BOTH, float(nsd), float(hd95), float(np.concatenate([there, back]).mean()))


def _surfaces(prediction: np.ndarray, truth: np.ndarray,
              spacing: tuple[float, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each mask the places between voxels that its surface runs through, (n, axes) in mm, and the surface's area
    there, (n,), by MONAI's table of marching cubes (in 2D squares and lengths), slab by slab."""
    import torch
    from monai.metrics import get_mask_edges

    masks = [np.pad(mask, 1) for mask in (prediction, truth)]
    rows = max(1, _SLAB_VOXELS // masks[0][0].size)
    found: tuple[list[Any], list[Any]] = ([], [])
    for start in range(0, len(masks[0]) - 1, rows):
        slab = [mask[start:start + rows + 1] for mask in masks]
        union = slab[0] | slab[1]
        if not union.any():
            continue
        box = around(union)
        corner = np.array([part.start for part in box]) + np.eye(1, union.ndim, dtype=int)[0] * start
        edges_and_areas = get_mask_edges(*(torch.from_numpy(mask[box].copy()) for mask in slab), crop=False,
                                         spacing=spacing)
        for parts, edges, areas in zip(found, edges_and_areas[:2], edges_and_areas[2:], strict=True):
            parts.append(((edges.nonzero().numpy() + corner) * spacing, areas[edges].double().numpy()))
    return [(np.concatenate([p for p, _ in parts]), np.concatenate([a for _, a in parts])) for parts in found]


def _distances(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From each point of one surface, (n, axes), to the nearest of the other, and back.

    Not by scipy's tree: where all points are about as far, as from a small structure to a large one around it, it looks
    at nearly every one of them (10 ms a point in place of 0.5); and with a coordinate of 0 it never ends once torch
    flushes subnormal numbers, as our trainer has it do.
    """
    from sklearn.neighbors import KDTree

    return KDTree(second).query(first)[0].ravel(), KDTree(first).query(second)[0].ravel()


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
