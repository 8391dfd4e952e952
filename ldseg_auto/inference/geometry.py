"""The way from the network's grid back to the image, as nnU-Net's export goes it, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice

from ldseg_auto.inference.resampling import plan_resampling
from ldseg_auto.inference.uncertainty import voxel_size_of
from ldseg_auto.inference.volumes import Rows, reserve


class Geometry:
    """Of one image.

    Args:
        properties: nnU-Net's, of the preprocessed case.
        plans_manager, configuration_manager: nnU-Net's.
    """

    def __init__(self, properties: dict, plans_manager: Any, configuration_manager: Any):
        self._properties, self._plans = properties, plans_manager
        self._resample = configuration_manager.resampling_fn_probabilities
        self._new_spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
        self._shape = tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"])
        spacing = list(configuration_manager.spacing)
        self._spacing = spacing if len(spacing) == len(self._shape) else [self._new_spacing[0], *spacing]

    def slabs(self, prediction: Rows) -> Iterator[tuple[int, np.ndarray]]:
        """Rows of the cropped image from (C, z, y, x) on the network's grid: the first row of each slab, and its values
        (C, rows, y, x), float32."""
        resampling = plan_resampling(self._resample, prediction.shape[1:], self._shape, self._spacing,
                                     self._new_spacing)
        if resampling is not None:
            for first, rows in resampling.slabs(prediction):
                yield first, rows.numpy()
            return
        whole = prediction.read(0, prediction.shape[1])
        yield 0, np.asarray(self._resample(whole, self._shape, self._spacing, self._new_spacing), np.float32)

    def canvas(self, dtype: Any, channels: int | None = None, file: Path | None = None) -> tuple[np.ndarray,
                                                                                                 np.ndarray]:
        """Zeros in the image's own geometry, (z, y, x) or (C, z, y, x), and the view of them in which `slabs` lie: the
        cropped image, in the network's order of axes.

        Args:
            file: holds the array in place of memory.
        """
        before = self._properties["shape_before_cropping"]
        shape = tuple(int(before[axis]) for axis in self._plans.transpose_backward)
        shape = shape if channels is None else (channels, *shape)
        if file is None:
            values = np.zeros(shape, dtype)
        else:
            reserve(file, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            values = np.memmap(file, dtype, "r+", shape=shape)
        axes = tuple(self._plans.transpose_forward)
        crop = bounding_box_to_slice(self._properties["bbox_used_for_cropping"])
        if channels is None:
            return values, values.transpose(axes)[crop]
        return values, values.transpose((0, *(axis + 1 for axis in axes)))[(slice(None), *crop)]

    def to_volume(self, share: np.ndarray) -> np.ndarray:
        """Shares of the network's grid -> volumes, in the unit of `uncertainty.voxel_size_of`; both grids cover the
        same box."""
        return share * float(np.prod(self._shape)) * voxel_size_of(self._properties)[0]
