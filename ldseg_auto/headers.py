"""What the headers of image files tell, without reading their voxels."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ldseg_auto.errors import LDSegError

_SEVERAL_CHANNELS_A_FILE = ("NaturalImage2DIO", "SimpleITKIO")  # nnU-Net's readers that allow it
_READERS_IN_MM = ("SimpleITKIO", "NibabelIO")  # and those of the same names WithReorient


def channels_in(path: Path, reader: str) -> int:
    """Image channels of one file.

    Args:
        reader: name of nnU-Net's reader; most of them hold one channel a file.

    Raises:
        LDSegError: the file is not an image.
    """
    if reader not in _SEVERAL_CHANNELS_A_FILE:
        return 1
    import SimpleITK as sitk

    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise LDSegError(f"{path} cannot be read as an image.", "Replace or remove the file.") from error
    size = header.GetSize()
    return header.GetNumberOfComponents() * (size[3] if len(size) == 4 else 1)


def voxel_ml(path: Path, reader: str) -> float | None:
    """The volume of a voxel in ml, or None where the file is none with three axes in mm.

    Args:
        reader: name of nnU-Net's reader; those of pictures know no mm.
    """
    if not reader.startswith(_READERS_IN_MM):
        return None
    import SimpleITK as sitk

    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return None
    return prod(header.GetSpacing()) / 1000 if header.GetDimension() == 3 else None
