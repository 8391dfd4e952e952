"""Where the voxels of a file lie, and how far two files of a case disagree about it. Pure."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes

NEGLIGIBLE_VOXELS = 0.01  # headers are rounded when they are written
LARGEST_SHIFT_VOXELS = 0.5  # beyond, a label's voxel lies nearer to another voxel of the image
_READERS_TOLERANCE = 1e-5  # relative: nnU-Net's readers refuse channels whose spacing differs by more


class Geometry(NamedTuple):
    """The grid of a file.

    size: voxels along x, y, z (1 in 2D).
    spacing: as nnU-Net's reader gives it, of the array's axes z, y, x.
    affine: voxel index (x, y(, z)) to mm, homogeneous; None where the format knows no place in space.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray | None


class Misfit(NamedTuple):
    """What differs (a sentence that the other file's name ends), and how far the same voxel of both lies apart at
    most."""

    what: str
    voxels: float
    same_spacing: bool


def grid_problem(geometry: Geometry) -> str | None:
    """What is wrong with the header of one file, as the end of a sentence."""
    if not all(np.isfinite(s) and s > 0 for s in geometry.spacing):
        return f"has the spacing {_listed(geometry.spacing)}"
    if geometry.affine is not None and not (np.isfinite(geometry.affine).all()
                                            and abs(np.linalg.det(geometry.affine)) > 0):
        return "has a header that places several voxels at one point (its affine matrix is singular)"
    return None


def misfit(reference: Geometry, other: Geometry) -> Misfit | None:
    """How the second grid differs from the first; None if they are the same but for rounding."""
    if reference.size != other.size:
        return Misfit(f"has {_listed(other.size)} voxels (x, y, z), not {_listed(reference.size)} as", np.inf, False)
    same_spacing = np.allclose(reference.spacing, other.spacing, rtol=_READERS_TOLERANCE)
    if reference.affine is None or other.affine is None:
        stretch = max(abs(b / a - 1) for a, b in zip(reference.spacing, other.spacing, strict=True))
        shift, parts = stretch * max(reference.size), ["spacing"]
    elif reference.affine.shape != other.affine.shape:
        return Misfit("has another number of axes than", np.inf, False)
    else:
        shift, parts = _largest_shift(reference, other), _differing_parts(reference.affine, other.affine)
    if shift <= NEGLIGIBLE_VOXELS and same_spacing:
        return None
    return Misfit(f"differs in {' and '.join(parts) or 'spacing'} (by up to {shift:.2g} voxels) from", shift,
                  same_spacing)


def orientation(geometry: Geometry) -> str:
    """Where the axes x, y, z point to, such as RAS; "" in 2D and where the format knows no place in space."""
    if geometry.affine is None or len(geometry.affine) != 4 or geometry.size[2] == 1:
        return ""
    return "".join(code or "?" for code in aff2axcodes(geometry.affine))


def _largest_shift(reference: Geometry, other: Geometry) -> float:
    """In voxels of the reference, over the corners: between them it is smaller."""
    assert reference.affine is not None and other.affine is not None
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in
                                                             reference.size[:len(reference.affine) - 1]))]).T
    moved = np.linalg.inv(reference.affine) @ other.affine @ corners
    return float(np.abs(moved - corners).max())


def _differing_parts(a: np.ndarray, b: np.ndarray) -> list[str]:
    spacing_a, spacing_b = np.linalg.norm(a[:-1, :-1], axis=0), np.linalg.norm(b[:-1, :-1], axis=0)
    differing = {"spacing": not np.allclose(spacing_a, spacing_b, rtol=_READERS_TOLERANCE),
                 "direction": not np.allclose(a[:-1, :-1] / spacing_a, b[:-1, :-1] / spacing_b, atol=1e-4),
                 "origin": not np.allclose(a[:-1, -1], b[:-1, -1], atol=NEGLIGIBLE_VOXELS * spacing_a.min())}
    return [name for name, differs in differing.items() if differs]


def _listed(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in values)
