"""Images that come as arrays or tensors: what they must be like, and as nnU-Net's readers would return them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ldseg_auto.checks.voxels import LARGEST
from ldseg_auto.errors import LDSegError

_READER_OF_PICTURES = "NaturalImage2DIO"
_PICTURE = (999.0, 1.0, 1.0)  # what it writes for their spacing: they have no mm
_FLAT = 999  # times the larger spacing in plane is what other readers write for that between slices of a 2D image


@dataclass(frozen=True)
class ModelInput:
    """What a model takes.

    Args:
        channels: their names.
        dimensions: of its patches, 2 or 3.
        has_mm: whether its images have a spacing; pictures have none.
    """

    channels: tuple[str, ...]
    dimensions: int
    has_mm: bool

    @property
    def axes(self) -> str:
        """In words."""
        return "(channels, z, y, x)" + " or (channels, y, x)" * (self.dimensions == 2)


@dataclass(frozen=True)
class ArrayInput:
    """An image as nnU-Net's readers return it.

    Args:
        values: (C, z, y, x), float32; nobody else's.
        spacing_mm: of z, y and x.
        flat: it came without z.
    """

    values: np.ndarray
    spacing_mm: tuple[float, ...]
    flat: bool


def read_array(image: Any, spacing_mm: Sequence[float] | None, model: ModelInput) -> ArrayInput:
    """Check an image and copy it.

    Args:
        image: array or tensor on any device, of any layout and any real type; see `ModelInput.axes`.
        spacing_mm: of its axes but the channels; None for pictures, which have none.

    Raises:
        LDSegError: the model cannot take it.
    """
    values = _as_float32(image)
    if values.ndim not in ((3, 4) if model.dimensions == 2 else (4,)):
        raise LDSegError(f"The image has {values.ndim} axes, {values.shape}; the model takes {model.axes}.",
                         "image[None] adds the axis of a single channel.")
    if not values.size:
        raise LDSegError(f"The image is empty: its shape is {values.shape}.", "Check how it was read or cut.")
    if len(values) != len(model.channels):
        raise LDSegError(f"The image has {len(values)} channels along its first axis, {values.shape}; the model takes "
                         f"{len(model.channels)}: {', '.join(model.channels)}.",
                         _how_to_order(values.shape, len(model.channels)))
    _require_values(values)
    flat = values.ndim == 3
    spacing = _spacing_of(spacing_mm, values.ndim - 1, model)
    return ArrayInput(values[:, None] if flat else values, spacing, flat)


def _as_float32(image: Any) -> np.ndarray:
    """A copy; the numbers that nnU-Net's readers would make of them."""
    kind = ""
    try:
        if isinstance(image, torch.Tensor):
            kind = str(image.dtype)
            if not image.is_complex():
                return image.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
        else:
            given = np.asarray(image)
            kind = str(given.dtype)
            if given.dtype.kind in "buif":
                with np.errstate(over="ignore"):  # infinite values are refused below
                    return np.array(given, np.float32, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        raise LDSegError(f"The image, of type {type(image).__name__}, cannot be read as an array of numbers "
                         f"({error}).", "Give a NumPy array or a dense torch tensor.") from error
    raise LDSegError(f"The image holds {kind}, which are no real numbers.",
                     "Give integers or floating-point numbers; of complex ones the magnitude.")


def _how_to_order(shape: tuple[int, ...], channels: int) -> str:
    if shape[-1] == channels:
        return "Move the channels to the front: np.moveaxis(image, -1, 0)."
    return "Stack the channels along the first axis, in the order of channel_names in dataset.json."


def _require_values(values: np.ndarray) -> None:
    if not np.isfinite([values.min(), values.max()]).all():
        raise LDSegError(f"The image holds {int((~np.isfinite(values)).sum())} voxels that are NaN or infinite (as "
                         "float32).", "Replace them by a value that means something, such as the background's.")
    largest = float(np.abs(values).max())
    if largest > LARGEST:
        raise LDSegError(f"The image holds values of {largest:.2g}, which are too large to compute with; often they "
                         "mark voxels without a value.",
                         "Replace them by a value that means something, such as the background's.")
    if values.shape[1] > 1 and values.ndim == 4 and all(channel.min() == channel.max() for channel in values):
        raise LDSegError("The image holds one value only in each channel.", "Check how it was read.")


def _spacing_of(spacing_mm: Sequence[float] | None, axes: int, model: ModelInput) -> tuple[float, ...]:
    """Of z, y and x."""
    if not model.has_mm:
        if spacing_mm is not None and tuple(map(float, spacing_mm)) not in (_PICTURE, _PICTURE[-axes:]):
            raise LDSegError(f"spacing_mm is {tuple(spacing_mm)}, but the model was trained on pictures, which have no "
                             "spacing.", "Leave spacing_mm out.")
        return _PICTURE
    names = "z, y, x" if axes == 3 else "y, x"
    if spacing_mm is None:
        raise LDSegError("The image comes without spacing_mm.", f"Give the mm from voxel to voxel along {names}.")
    try:
        spacing = tuple(float(step) for step in spacing_mm)
    except (TypeError, ValueError) as error:
        raise LDSegError(f"spacing_mm is {spacing_mm!r}, which are no numbers.",
                         f"Give the mm from voxel to voxel along {names}.") from error
    if len(spacing) != axes or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise LDSegError(f"spacing_mm is {spacing}; the image needs {axes} numbers above 0.",
                         f"Give the mm from voxel to voxel along {names}; SimpleITK's GetSpacing() is in the order x, "
                         "y, z.")
    return spacing if axes == 3 else (_FLAT * max(spacing), *spacing)


def has_mm(plans: dict[str, Any]) -> bool:
    """Whether the model's images have a spacing, by the plans' reader."""
    return plans["image_reader_writer"] != _READER_OF_PICTURES
