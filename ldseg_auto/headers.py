"""What the headers of image files tell, without reading their voxels."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

_GIPL_HEADER_BYTES = 256
_READERS_IN_MM = ("SimpleITKIO", "NibabelIO")  # and those of the same names WithReorient


def header_problem(path: Path, reader: str) -> tuple[str, str] | None:
    """What makes a file unfit for nnU-Net although its reader reads it: cause (the end of a sentence) and cure.

    A file that is no image is left to the reader. nnU-Net's SimpleITKIO reads a volume with a fourth axis or with
    vectors as channels, but cannot write a segmentation of it in the end.

    Args:
        reader: name of nnU-Net's reader.
    """
    if reader.startswith("SimpleITKIO"):
        uncompressed = path.with_suffix("")
        if path.name.endswith(".nii.gz") and uncompressed.exists():  # NIfTI's library looks for that name first
            return (f"is not what would be read: beside it lies {uncompressed.name}, whose voxels SimpleITK takes",
                    f"Keep one of the two in this folder, or both under different names; {path.name} is the one that "
                    "is meant.")
        header = _sitk_header(path)
        if header is not None:
            components, size = header.GetNumberOfComponents(), header.GetSize()
            if len(size) > 3:
                return (f"is {len(size)}D ({' x '.join(map(str, size))})", "Save each of its volumes as a file of its "
                        "own: channels as CASE_0000, CASE_0001, ..., points in time as cases.")
            if components > 1:
                return (f"holds {components} values a voxel (a colour or vector image)",
                        "Save each of them as a file of its own: CASE_0000, CASE_0001, ...")
            if path.suffix == ".gipl" and path.stat().st_size < _gipl_bytes(header):
                return "is cut off", "Copy the file again from where it comes from, or remove the case."
    return None


def voxel_ml(path: Path, reader: str) -> float | None:
    """The volume of a voxel in ml, or None where the file is none with three axes in mm.

    Args:
        reader: name of nnU-Net's reader; those of pictures know no mm.
    """
    if not reader.startswith(_READERS_IN_MM):
        return None
    header = _sitk_header(path)
    return None if header is None or header.GetDimension() != 3 else prod(header.GetSpacing()) / 1000


def _sitk_header(path: Path) -> Any:
    """SimpleITK's reader after the header, or None where it cannot read it."""
    import SimpleITK as sitk

    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return None
    return header


def _gipl_bytes(header: Any) -> int:
    """Of a whole file, uncompressed; what is missing SimpleITK reads as zeros."""
    import SimpleITK as sitk

    voxel_bytes = sitk.Image([1] * header.GetDimension(), header.GetPixelID()).GetSizeOfPixelComponent()
    return _GIPL_HEADER_BYTES + prod(header.GetSize()) * voxel_bytes
