"""What readers hide: SimpleITK reads the missing end of some files, and NaN in NIfTI, as zeros, and tifffile leaves out
slices that it cannot find, all without an error. Each file is read through once more for it, from the disk's cache."""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_CHUNK_BYTES = 1 << 20
_NIFTI_HEADER_BYTES = 352
_NIFTI_FLOATS = {16: "f4", 64: "f8"}  # datatype in the header


class Content(NamedTuple):
    """What a file holds besides what a reader says of it.

    whole: it ends with the checksum that it says; True where there is none.
    finite: a compressed NIfTI file holds neither NaN nor infinite values.
    steps: the distances of voxels as a NIfTI header has them (readers take 0 for 1 and drop a minus).
    """

    whole: bool = True
    finite: bool = True
    steps: tuple[float, ...] = ()


def scan(file: Path) -> Content:
    """Read a compressed file to its end, once; of others nothing but a NIfTI header."""
    try:
        if file.suffix == ".mha":
            return Content(_mha_is_whole(file))
        if file.suffix == ".nii":
            with file.open("rb") as content:
                return Content(steps=_nifti_header(content)[1])
        if file.suffix == ".gz":
            with gzip.open(file) as content:
                kind, steps = _nifti_header(content)
                finite = True
                while chunk := content.read(_CHUNK_BYTES):
                    if kind is not None and finite:
                        finite = bool(np.isfinite(np.frombuffer(chunk, kind, len(chunk) // kind.itemsize)).all())
                return Content(True, finite, steps)
    except (EOFError, OSError, zlib.error):
        return Content(whole=False)
    return Content()


@contextmanager
def missing_pages() -> Iterator[list[str]]:
    """Inside the block the list takes what tifffile says of pages of a file that are not there."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        found[:] = [message for message in found if "invalid page offset" in message]


def _nifti_header(content: Any) -> tuple[np.dtype | None, tuple[float, ...]]:
    """The type of the values that come next if they are floats, and the distances of voxels; of NIfTI-1 only."""
    header = content.read(_NIFTI_HEADER_BYTES)
    order = {b"\x5c\x01\0\0": "<", b"\0\0\x01\x5c": ">"}.get(header[:4])  # sizeof_hdr is 348
    if order is None or len(header) < _NIFTI_HEADER_BYTES:
        return None, ()
    axes, kind = (int(np.frombuffer(header, f"{order}i2", 1, at)[0]) for at in (40, 70))  # dim[0], datatype
    steps = tuple(float(v) for v in np.frombuffer(header, f"{order}f4", 3, 80)[:axes])  # pixdim[1:4]
    start = float(np.frombuffer(header, f"{order}f4", 1, 108)[0])  # vox_offset
    if kind not in _NIFTI_FLOATS or not _NIFTI_HEADER_BYTES <= start < _CHUNK_BYTES:
        return None, steps
    content.read(int(start) - _NIFTI_HEADER_BYTES)
    return np.dtype(order + _NIFTI_FLOATS[kind]), steps


def _mha_is_whole(file: Path) -> bool:
    """MetaImage compresses with zlib what follows its header, and reads no checksum."""
    with file.open("rb") as content:
        header = content.read(_CHUNK_BYTES)
        compressed = re.search(rb"^CompressedData *= *True", header, re.MULTILINE)
        voxels = re.search(rb"^ElementDataFile *= *LOCAL\r?\n", header, re.MULTILINE)
        if not compressed or not voxels:
            return True
        content.seek(voxels.end())
        stream = zlib.decompressobj()
        while not stream.eof and (chunk := content.read(_CHUNK_BYTES)):
            stream.decompress(chunk)
        return stream.eof
