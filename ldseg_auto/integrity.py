"""Files that are cut off: SimpleITK reads the missing end of a compressed volume as zeros, without a word."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

from ldseg_auto.errors import LDSegError, named

_CHUNK_BYTES = 1 << 20
_NAMED_FILES = 10


def require_whole(files: Iterable[Path]) -> None:
    """Read compressed files to their end, where their checksum is.

    Raises:
        LDSegError: some are cut off or damaged; all of them are named.
    """
    broken = [str(file) for file in files if file.suffix == ".gz" and not is_whole(file)]
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
