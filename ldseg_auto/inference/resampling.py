"""nnU-Net's resampling as one matrix per axis, so that some rows of the result can be had without the others.

Interpolation by splines is linear in the values and separable: along each axis it is a matrix, which is nnU-Net's own
resampling (skimage's resize, scipy's map_coordinates) of the unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.volumes import Rows

_NOTHING = 1e-9  # of a spline's weights, which fall by a factor of 3.7 a voxel and are 1 together
_BLOCK = 32  # positions that share their part of the matrix
_SLAB_VALUES = 1 << 23  # of the result, held at once
_KNOWN = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False}  # nnU-Net's defaults


@dataclass(frozen=True)
class Resampling:
    """From one grid to another.

    Args:
        shape: of the result, (z, y, x).
        steps: for each axis a matrix (new, old), the indices (new,) of what is copied, or None where nothing changes.
        clip: whether values are clipped to the range of what was resampled: splines above order 1 overshoot.
        slices: the axis along which slices are resampled one by one, in plane; None where the volume is as a whole.
    """

    shape: tuple[int, ...]
    steps: tuple[torch.Tensor | None, ...]
    clip: bool
    slices: int | None

    def limits(self, values: np.ndarray) -> torch.Tensor:
        """Smallest and largest value of each channel of (C, z, y, x), or of each of its slices: (2, C, 1, 1, 1), with
        the slices on their axis."""
        axes = tuple(axis for axis in (1, 2, 3) if self.slices is None or axis != self.slices + 1)
        return torch.from_numpy(np.stack([values.min(axes, keepdims=True), values.max(axes, keepdims=True)])).float()

    def rows(self, source: Rows, first: int, last: int, limits: torch.Tensor | None = None) -> torch.Tensor:
        """Rows `first` to `last` - 1 of the result, (C, rows, y, x), float32."""
        step = self.steps[0]
        if step is None:
            values = torch.from_numpy(source.read(first, last)).float()
        else:
            step = step[first:last]
            low, high = _used(step)
            values = torch.from_numpy(source.read(low, high)).float()
            step = step - low if step.ndim == 1 else step[:, low:high]
            values = _along(values, step, 1)
        for axis in (2, 3):
            values = _along(values, self.steps[axis - 1], axis)
        if self.clip and limits is not None:
            low_high = self._limits_of_rows(limits, first, last)
            values = values.clamp(low_high[0], low_high[1])
        return values

    def _limits_of_rows(self, limits: torch.Tensor, first: int, last: int) -> torch.Tensor:
        if self.slices is None:
            return limits
        picked = self.steps[self.slices]
        if picked is not None:
            limits = limits.index_select(self.slices + 2, picked)
        return limits.narrow(2, first, last - first) if self.slices == 0 else limits

    def slabs(self, source: Rows, limits: torch.Tensor | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """The whole result in order: the first row of each slab, and its rows (C, rows, y, x)."""
        depth = max(1, _SLAB_VALUES // (source.shape[0] * prod(self.shape[1:])))
        for first in range(0, self.shape[0], depth):
            yield first, self.rows(source, first, min(first + depth, self.shape[0]), limits)


def plan_resampling(function: Callable, old_shape: Sequence[int], new_shape: Sequence[int], spacing: Sequence[float],
                    new_spacing: Sequence[float]) -> Resampling | None:
    """What a resampling function of the plans does between these grids; None where it is not nnU-Net's default
    function, or has options that this does not know.

    Args:
        function: of nnU-Net's configuration, with its options bound.
        spacing, new_spacing: of the old and of the new grid; they decide whether slices are resampled one by one.

    Raises:
        LDSegError: nothing is left of the volume on the new grid.
    """
    if min(new_shape) < 1:
        raise LDSegError(f"The image is too small for the model: {tuple(map(int, old_shape))} voxels of "
                         f"{tuple(float(round(s, 3)) for s in spacing)} mm are none of "
                         f"{tuple(float(round(s, 3)) for s in new_spacing)} mm.",
                         "Check the image's spacing, and that it is not an empty or cut image.")
    options = _options(function)
    if options is None:
        return None
    old, new = [int(n) for n in old_shape], [int(n) for n in new_shape]
    order, slices = options["order"], None
    separate, axis = determine_do_sep_z_and_axis(options["force_separate_z"], spacing, new_spacing,
                                                 **{name: value for name, value in options.items()
                                                    if name == "separate_z_anisotropy_threshold"})
    if separate and old != new:
        slices = int(axis)
    steps = tuple(None if a == b else _picks(a, b) if i == slices else _matrix(a, b, order)
                  for i, (a, b) in enumerate(zip(old, new, strict=True)))
    return Resampling(tuple(new), steps, order > 1 and old != new, slices)


def _options(function: Callable) -> dict[str, Any] | None:
    """The options of nnU-Net's default function, if it is that one and images or probabilities are resampled."""
    if not isinstance(function, partial) or function.func is not resample_data_or_seg_to_shape or function.args:
        return None
    options = _KNOWN | function.keywords
    known = set(_KNOWN) | {"separate_z_anisotropy_threshold"}
    return options if set(options) <= known and not options["is_seg"] and options["order_z"] == 0 else None


def _matrix(old: int, new: int, order: int) -> torch.Tensor:
    """(new, old): what nnU-Net's resize makes of unit vectors."""
    units = resize(np.eye(old), (new, old), order, mode="edge", anti_aliasing=False, clip=False)
    return torch.from_numpy(np.where(np.abs(units) < _NOTHING, 0, units)).float()


def _picks(old: int, new: int) -> torch.Tensor:
    """(new,): the slice that nnU-Net's map_coordinates of order 0 takes for each new one."""
    places = old / new * (np.arange(new) + 0.5) - 0.5
    return torch.from_numpy(map_coordinates(np.arange(old), [places], order=0, mode="nearest"))


def _used(step: torch.Tensor) -> tuple[int, int]:
    """First and last + 1 of the old positions that a step reads."""
    if step.ndim == 1:
        return int(step.min()), int(step.max()) + 1
    columns = step.abs().amax(0).nonzero()
    return int(columns[0]), int(columns[-1]) + 1


def _along(values: torch.Tensor, step: torch.Tensor | None, axis: int) -> torch.Tensor:
    """A step along one axis of (C, z, y, x)."""
    if step is None:
        return values
    if step.ndim == 1:
        return values.index_select(axis, step)
    shape = list(values.shape)
    flat = values.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1:]))
    result = torch.empty((flat.shape[0], len(step), flat.shape[2]))
    for start in range(0, len(step), _BLOCK):
        block = step[start:start + _BLOCK]
        low, high = _used(block)
        part, where = flat[:, low:high], result[:, start:start + _BLOCK]
        if axis == 3:  # one product for all lines
            where[..., 0] = part[..., 0] @ block[:, low:high].T
        else:
            torch.matmul(block[:, low:high], part, out=where)
    return result.reshape(*shape[:axis], len(step), *shape[axis + 1:])
