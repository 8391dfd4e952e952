"""Volumes within the page for the viewer: compressed NIfTI, as text."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import nibabel
import numpy as np

from ldseg_auto.report.pictures import window
from ldseg_auto.report.volumes import Volumes

MAX_VOXELS = 3_000_000  # of a case; of larger ones every 2nd, 3rd, ... voxel is embedded
MAX_CHARACTERS = 48_000_000  # of all cases together
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def embed(volumes: Volumes) -> dict[str, Any]:
    """The arrays of a case with several slices.

    Returns:
        "step": every how many-th voxel along x, y and z; "files": image, truth, prediction and, where it is known,
        entropy (255 is the highest there can be), each a .nii.gz in base64.
    """
    assert volumes.image is not None
    step = steps(volumes.truth.shape, volumes.spacing)
    affine = affine_of(volumes.properties) @ np.diag([*step[::-1], 1])
    kept = (slice(None, None, step[0]), slice(None, None, step[1]), slice(None, None, step[2]))
    arrays = {"image": window(volumes.image, kept), "truth": volumes.truth[kept],
              "prediction": volumes.prediction[kept]}
    uncertainty = volumes.uncertainty(kept)
    if uncertainty is not None:
        arrays["entropy"] = (uncertainty * 255).clip(0, 255).round().astype(np.uint8)
    return {"step": list(step[::-1]), "files": {name: _nifti(array, affine) for name, array in arrays.items()}}


def steps(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Every how many-th voxel to keep along each axis so that `MAX_VOXELS` are enough: the finest axes are thinned
    first."""
    step = [1] * len(shape)
    while prod(-(-n // each) for n, each in zip(shape, step, strict=True)) > MAX_VOXELS:
        finest = min(range(len(shape)), key=lambda axis: step[axis] * spacing[axis])
        step[finest] += 1
    return tuple(step)


def affine_of(properties: Mapping[str, Any]) -> np.ndarray:
    """Voxel (x, y, z) -> mm to the right, front and top (4, 4), from the geometry that nnU-Net's reader found."""
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        return np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=float)
    if "sitk_stuff" not in properties:
        return np.diag([*map(float, properties["spacing"][::-1]), 1.0])
    stuff = properties["sitk_stuff"]
    axes = len(stuff["spacing"])
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(stuff["direction"], (axes, axes)) * stuff["spacing"])[:3, :3]
    affine[:3, 3] = stuff["origin"][:3]
    return _LPS_TO_RAS @ affine


def _nifti(array: np.ndarray, affine: np.ndarray) -> str:
    kind = np.uint8 if array.max() <= 255 else np.int16
    image = nibabel.nifti1.Nifti1Image(array.transpose().astype(kind), affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
