"""nnU-Net's preprocessing of an image, resampled slab by slab into a file or an array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.previous_stage import as_channels
from ldseg_auto.inference.resampling import plan_resampling
from ldseg_auto.inference.volumes import MappedVolume, VolumeInMemory, VolumeOnDisk

Kept = TypeVar("Kept", bound=MappedVolume)


def preprocess(images: Sequence[str], file: Path, plans_manager: Any, configuration_manager: Any, dataset_json: dict,
               verbose: bool = False, first_stage: str | None = None) -> tuple[VolumeOnDisk, dict]:
    """An image as the network sees it.

    nnU-Net's own steps; of them the resampling takes 64-bit copies of the whole volume, ten times the image's size, and
    is done by `resampling` instead, with the same result up to rounding.

    Args:
        images: a file a channel.
        file: gets the image; its folder exists.
        plans_manager, configuration_manager, dataset_json: nnU-Net's.
        first_stage: of a cascade, the file with the first stage's segmentation; resampled by nnU-Net's function, it
            becomes the last channels.

    Returns:
        the image (C, z, y, x), and nnU-Net's properties, with which the prediction finds its way back.

    Raises:
        LDSegError: the first stage's segmentation is not of the image's size.
    """
    labels = plans_manager.get_label_manager(dataset_json).foreground_labels if first_stage is not None else []

    def run(preprocessor: Any, configuration: Any) -> tuple[np.ndarray, Any, dict]:
        try:
            return preprocessor.run_case(list(images), first_stage, plans_manager, configuration, dataset_json)
        except AssertionError as error:
            if first_stage is None or "Shape mismatch" not in str(error):
                raise
            raise LDSegError(f"The first stage's segmentation {first_stage} has not the size of its image.",
                             "Predict this case with the first stage again.") from error

    return _preprocess(run, partial(VolumeOnDisk.create, file), configuration_manager, verbose, labels)


def preprocess_array(image: np.ndarray, spacing_mm: Sequence[float], plans_manager: Any, configuration_manager: Any,
                     dataset_json: dict, verbose: bool = False) -> tuple[VolumeInMemory, dict]:
    """The same of an image (C, z, y, x) as nnU-Net's reader returns it, with the spacing of z, y and x."""
    return _preprocess(lambda preprocessor, configuration: preprocessor.run_case_npy(
        image, None, {"spacing": list(spacing_mm)}, plans_manager, configuration, dataset_json),
        VolumeInMemory.create, configuration_manager, verbose)


def _preprocess(run: Callable[[Any, Any], tuple[np.ndarray, Any, dict]],
                create: Callable[[tuple[int, ...]], Kept], configuration_manager: Any, verbose: bool,
                labels: Sequence[int] = ()) -> tuple[Kept, dict]:
    """What `run` makes of nnU-Net's preprocessor and a configuration, kept in a volume that `create` makes; behind the
    image a channel for each of these labels of the segmentation."""
    preprocessor = configuration_manager.preprocessor_class(verbose=verbose)
    streaming = _ResamplingToVolume(configuration_manager, create, len(labels))
    known = type(preprocessor) is DefaultPreprocessor  # another may use the resampled mask, which is left out here
    data, segmentation, properties = run(preprocessor, streaming if known else configuration_manager)
    volume = streaming.volume
    if volume is None:
        volume = create((len(data) + len(labels), *data.shape[1:]))
        volume.write(0, data)
    for number, label in enumerate(labels):  # one at a time in memory
        volume.write(0, as_channels(segmentation[0], [label]), len(data) + number)
    return volume, properties


class _ResamplingToVolume(Generic[Kept]):
    """nnU-Net's configuration whose image is resampled into a volume."""

    def __init__(self, configuration_manager: Any, create: Callable[[tuple[int, ...]], Kept], more_channels: int):
        self._configuration_manager, self._create = configuration_manager, create
        self._more_channels = more_channels
        self.volume: Kept | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration_manager, name)

    def resampling_fn_data(self, data: np.ndarray, new_shape: Sequence[int], spacing: Sequence[float],
                           new_spacing: Sequence[float]) -> np.ndarray:
        function = self._configuration_manager.resampling_fn_data
        resampling = plan_resampling(function, data.shape[1:], new_shape, spacing, new_spacing)
        if resampling is None:
            return function(data, new_shape, spacing, new_spacing)
        self.volume = self._create((len(data) + self._more_channels, *resampling.shape))
        limits = resampling.limits(data) if resampling.clip else None
        for first, rows in resampling.slabs(VolumeInMemory(data), limits):
            self.volume.write(first, rows.numpy())
        return self.volume.mapped()[:len(data)]

    def resampling_fn_seg(self, mask: np.ndarray, *where: Any) -> np.ndarray:
        """Prediction does not use nnU-Net's mask of the image: it stays as it is, unless it is a segmentation."""
        return self._configuration_manager.resampling_fn_seg(mask, *where) if self._more_channels else mask
