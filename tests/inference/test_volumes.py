"""Volumes in memory and on disk are the same to whoever reads and writes them."""

import errno
import os

import numpy as np
import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.volumes import MadeFrom, VolumeInMemory, VolumeOnDisk, reserve

VALUES = np.random.default_rng(0).normal(size=(2, 7, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_come_back(on_disk, tmp_path):
    volume = (VolumeOnDisk.create(tmp_path / "volume", VALUES.shape) if on_disk
              else VolumeInMemory(np.zeros_like(VALUES)))
    assert volume.shape == VALUES.shape
    assert not volume.read(0, 7).any()
    volume.write(0, VALUES[:, :3])
    volume.write(3, VALUES[:, 3:].transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2))  # in another order in memory
    assert np.array_equal(volume.read(2, 6), VALUES[:, 2:6])
    assert np.array_equal(MadeFrom(volume, lambda rows: rows[:1] + 1, 1).read(0, 7), VALUES[:1] + 1)
    if on_disk:
        mapped = volume.mapped()
        assert np.array_equal(mapped, VALUES)
        mapped[:] = 0
        assert np.array_equal(volume.read(0, 7), VALUES), "what is changed in the map stays in memory"


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LDSegError, match=r"no room for 2.0 GB beside the output"):
        reserve(tmp_path / "volume", 2_000_000_000)
    assert not list(tmp_path.iterdir())


def test_a_file_that_lost_its_end_is_not_read_as_zeros(tmp_path):
    volume = VolumeOnDisk.create(tmp_path / "volume", VALUES.shape)
    os.truncate(volume.file, 100)
    with pytest.raises(OSError, match="shorter"):
        volume.read(0, 7)
