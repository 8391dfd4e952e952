"""What readers hide: SimpleITK reads the missing end of some files, and NaN in NIfTI, as zeros, and tifffile leaves out
slices that it cannot find, all without an error."""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

_CHUNK_BYTES = 1 << 20
_NIFTI_HEADER_BYTES = 352
_NIFTI_FLOATS = {16: "f4", 64: "f8"}  # datatype in the header


class Content(NamedTuple):
    """Of a compressed file: whether it ends with the checksum that it says, and (NIfTI) holds finite values only."""

    whole: bool
    finite: bool


def scan(file: Path) -> Content:
    """Read a compressed file to its end, once; others are taken for whole and finite."""
    finite = True
    try:
        if file.suffix == ".mha":
            return Content(_mha_is_whole(file), True)
        if file.suffix == ".gz":
            with gzip.open(file) as content:
                kind = _float_type(content)
                while chunk := content.read(_CHUNK_BYTES):
                    if kind is not None and finite:
                        finite = bool(np.isfinite(np.frombuffer(chunk, kind, len(chunk) // kind.itemsize)).all())
    except (EOFError, OSError, zlib.error):
        return Content(False, finite)
    return Content(True, finite)


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


def _float_type(content: IO[bytes]) -> np.dtype | None:
    """Of the values of a NIfTI-1 file, which come next; None where it is none or holds integers."""
    header = content.read(_NIFTI_HEADER_BYTES)
    order = {b"\x5c\x01\0\0": "<", b"\0\0\x01\x5c": ">"}.get(header[:4])  # sizeof_hdr is 348
    if order is None or len(header) < _NIFTI_HEADER_BYTES:
        return None
    kind = _NIFTI_FLOATS.get(int(np.frombuffer(header, f"{order}i2", 1, 70)[0]))
    start = float(np.frombuffer(header, f"{order}f4", 1, 108)[0])  # vox_offset
    if kind is None or not _NIFTI_HEADER_BYTES <= start < _CHUNK_BYTES:
        return None
    content.read(int(start) - _NIFTI_HEADER_BYTES)
    return np.dtype(order + kind)


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
