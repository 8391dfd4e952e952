"""Shape of labels in mm: how thick structures are where they are thickest, and who touches whom.

Pure: numpy and scipy only. Arrays have one to three axes, `spacing_mm` one entry per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage
from sklearn.neighbors import KDTree

# Slope of the distance to the border: 1 on the way away from it, 0 along the ridge of a tube, sin(angle) along that of
# a cone.
_STEEP = 0.4
_MAX_RIDGE_VOXELS = 4000  # more are drawn from: a few seconds for all cases of a data set


def local_thickness_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Thickness along the ridge of the distance transform: of a tube its diameter, of a sheet its height.

    At each voxel of the ridge, the diameter of the largest ball inside the structure that holds it (Hildebrand and
    Rueegsegger, J Microsc 185:67, 1997): the distance to the border falls beside the ridge's middle, but that is no
    thinner place.

    Args:
        mask: bool. What lies outside the array counts as unknown: a structure that the array cuts off is measured
            only where its nearest border is inside.

    Returns:
        One value per ridge voxel, right to within about a voxel (structures an even number of voxels thick come out
        one thinner); empty where nothing can be measured.
    """
    if not mask.any() or mask.all():
        return np.zeros(0)
    spacing = np.asarray(spacing_mm, dtype=float)
    distance, nearest = ndimage.distance_transform_edt(mask, sampling=spacing, return_indices=True)
    ridge = np.argwhere(_is_ridge(distance, mask, spacing))
    if not len(ridge):
        return np.zeros(0)
    if len(ridge) > _MAX_RIDGE_VOXELS:
        ridge = np.random.default_rng(0).permutation(ridge)[:_MAX_RIDGE_VOXELS]
    at = tuple(ridge.T)
    inside = _distance_to_edge(ridge, mask.shape, spacing) >= distance[at]
    to_border = np.abs(np.stack([axis[at] for axis in nearest], axis=1) - ridge) * spacing
    # the border runs between two voxels that share a face: half of that step, along the way to it, is not the structure
    half_voxels = (to_border / distance[at][:, None] * spacing).max(axis=1)
    ball = _largest_ball(ridge * spacing, distance[at])
    return (2 * distance[at] - half_voxels)[ball][inside[ball]]


def _largest_ball(centres_mm: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    """For each centre the index of the largest of the balls that it lies in.

    Not by scipy's tree: with a coordinate of 0 it crashes where torch flushes subnormal numbers, as in training.
    """
    tree = KDTree(centres_mm)
    ball = np.full(len(radii_mm), -1)
    for index in np.argsort(-radii_mm, kind="stable"):
        if ball[index] < 0:
            within = tree.query_radius(centres_mm[index:index + 1], radii_mm[index])[0]
            ball[within[ball[within] < 0]] = index
    return ball


def _is_ridge(distance: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Voxels from which the distance to the border rises steeply to none of their neighbours, bool."""
    padded = np.pad(distance, 2)
    ridge = mask.copy()
    for direction, reach in product(product((-1, 0, 1), repeat=distance.ndim), (1, 2)):  # 2: past the border's steps
        if any(direction):
            offset = reach * np.array(direction)
            other = padded[tuple(slice(2 + o, 2 + o + n) for o, n in zip(offset, distance.shape, strict=True))]
            ridge &= other - distance < _STEEP * float(np.linalg.norm(offset * spacing))
    return ridge


def _distance_to_edge(positions: np.ndarray, shape: Sequence[int], spacing: np.ndarray) -> np.ndarray:
    """From each voxel (n, axes) to the nearest voxel outside the array, in mm; axes of one voxel have no outside."""
    edges = np.array(shape)
    steps = np.minimum(positions, edges - 1 - positions) + 1
    return np.where(edges == 1, np.inf, steps * spacing).min(axis=1)


def contact_areas_mm2(labels: np.ndarray, num_labels: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Area of the faces between voxels of two labels, (num_labels, num_labels), symmetric, zero on the diagonal.

    Args:
        labels: integers from 0 to num_labels - 1; faces to other values are not counted.
    """
    areas = np.zeros((num_labels, num_labels))
    for axis, step in enumerate(spacing_mm):
        face = float(np.prod(spacing_mm)) / step
        before = tuple(slice(None, -1) if a == axis else slice(None) for a in range(labels.ndim))
        after = tuple(slice(1, None) if a == axis else slice(None) for a in range(labels.ndim))
        first, second = labels[before], labels[after]
        differ = (first != second) & (first >= 0) & (second >= 0) & (first < num_labels) & (second < num_labels)
        pairs = first[differ].astype(np.int64) * num_labels + second[differ]
        areas += face * np.bincount(pairs, minlength=num_labels ** 2).reshape(num_labels, num_labels)
    return areas + areas.T
