"""Volumes with channels, read and written by rows along their first axis: in memory, or in a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from ldseg_auto.errors import LDSegError


class Rows(Protocol):
    """What can be read by rows; `shape` is (C, z, y, x)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` - 1, (C, rows, y, x)."""


class Volume(Rows, Protocol):
    """What can also be written by rows."""

    def write(self, first: int, rows: np.ndarray, first_channel: int = 0) -> None:
        """Put rows (channels, rows, y, x) at `first`; of all channels, or of some from `first_channel` on."""


class MappedVolume(Volume, Protocol):
    """What can also be had as an array."""

    def mapped(self) -> np.ndarray:
        """All of it."""


@dataclass(frozen=True)
class VolumeInMemory:
    """An array (C, z, y, x)."""

    values: np.ndarray

    @classmethod
    def create(cls, shape: tuple[int, ...]) -> VolumeInMemory:
        """Zeros, float32."""
        return cls(np.zeros(shape, np.float32))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, first: int, last: int) -> np.ndarray:
        return self.values[:, first:last]

    def write(self, first: int, rows: np.ndarray, first_channel: int = 0) -> None:
        self.values[first_channel:first_channel + len(rows), first:first + rows.shape[1]] = rows

    def mapped(self) -> np.ndarray:
        """The array itself."""
        return self.values


@dataclass(frozen=True)
class VolumeOnDisk:
    """float32 in a file; in memory lies no more than what is just read or written.

    Args:
        file: the bytes of an array in C order, nothing else.
        shape: (C, z, y, x).
    """

    file: Path
    shape: tuple[int, ...]

    @classmethod
    def create(cls, file: Path, shape: tuple[int, ...]) -> VolumeOnDisk:
        """A file of its full size.

        Raises:
            LDSegError: the disk is too small.
        """
        reserve(file, 4 * prod(shape))
        return cls(file, tuple(int(n) for n in shape))

    def read(self, first: int, last: int) -> np.ndarray:
        rows = np.empty((self.shape[0], last - first, *self.shape[2:]), np.float32)
        with open(self.file, "rb") as stream:
            for channel, values in enumerate(rows):
                stream.seek(self._position(channel, first))
                if stream.readinto(values.data) != values.nbytes:
                    raise OSError(f"{self.file} is shorter than it should be.")
        return rows

    def write(self, first: int, rows: np.ndarray, first_channel: int = 0) -> None:
        """Put rows (channels, rows, y, x) at `first`; of all channels, or of some from `first_channel` on."""
        with open(self.file, "r+b") as stream:
            for channel, values in enumerate(rows, first_channel):
                stream.seek(self._position(channel, first))
                stream.write(np.ascontiguousarray(values, np.float32).data)

    def mapped(self) -> np.ndarray:
        """The file as an array: read where it is touched; what is changed in it stays in memory."""
        return np.memmap(self.file, np.float32, "c", shape=self.shape)

    def _position(self, channel: int, row: int) -> int:
        return 4 * (channel * self.shape[1] + row) * prod(self.shape[2:])


@dataclass(frozen=True)
class MadeFrom:
    """Rows that are computed from those of another volume when they are read.

    Args:
        source: the other one.
        function: (channels of `source`, rows, y, x) -> (channels, rows, y, x).
        channels: of the result.
    """

    source: Rows
    function: Callable[[np.ndarray], np.ndarray]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.source.shape[1:])

    def read(self, first: int, last: int) -> np.ndarray:
        return self.function(self.source.read(first, last))


def reserve(file: Path, num_bytes: int) -> None:
    """A file of this size, filled with zeros; on a full disk an error now, not a crash in the middle.

    Raises:
        LDSegError: the disk is too small.
    """
    try:
        with open(file, "wb") as stream:
            if hasattr(os, "posix_fallocate") and num_bytes:
                os.posix_fallocate(stream.fileno(), 0, num_bytes)
            stream.truncate(num_bytes)
    except OSError as error:
        file.unlink(missing_ok=True)
        free = shutil.disk_usage(file.parent).free / 1e9
        raise LDSegError(f"{file.parent} has no room for {num_bytes / 1e9:.1f} GB beside the output ({error.strerror}; "
                         f"{free:.1f} GB are free).", "Free space there, or give another folder to -o.") from error
