"""Files that are cut off: SimpleITK reads the missing end of a compressed volume as zeros, without a word."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ldseg_auto.devices import cores
from ldseg_auto.errors import LDSegError, named

_CHUNK_BYTES = 1 << 20
_NAMED_FILES = 10


def require_whole(files: Iterable[Path], progress_bar: bool = True) -> None:
    """Read compressed files to their end, where their checksum is; several at a time.

    Raises:
        LDSegError: some are cut off or damaged; all of them are named.
    """
    compressed = [file for file in files if file.suffix == ".gz"]
    with ThreadPoolExecutor(cores()) as pool:  # zlib works outside of Python's lock
        whole = list(tqdm(pool.map(is_whole, compressed), "checking files", len(compressed),
                          disable=None if progress_bar else True, leave=False))
    broken = [str(file) for file, good in zip(compressed, whole, strict=True) if not good]
    if broken:
        raise LDSegError(f"{len(broken)} files are cut off or damaged: {named(broken, _NAMED_FILES)}.",
                         "Copy them again from where they come from, or remove them.")


def is_whole(file: Path) -> bool:
    """Whether a gzip file can be read to its end and has the checksum that it says."""
    try:
        with gzip.open(file) as content:
            while content.read(_CHUNK_BYTES):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True
