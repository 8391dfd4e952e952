"""Checkpoints hold plain values, are whole or absent, and never run code."""

import os
import pickle
import resource
import signal
from collections import namedtuple
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ldseg_auto.errors import Interrupted, LDSegError
from ldseg_auto.trainers import checkpoint
from ldseg_auto.trainers.interruption import stop_in_order

CPU = torch.device("cpu")
LATEST, PREVIOUS, BEST = checkpoint.LATEST, checkpoint.PREVIOUS, "checkpoint_best.pth"


def test_numpy_and_devices_become_plain(tmp_path):
    content = checkpoint.plain({"a": np.float64(1.5), np.int64(3): [np.array([1, 2]), (np.bool_(True),)],
                                "device": torch.device("cpu"), "pair": namedtuple("P", "x y")(np.float32(1), 2)})
    assert content == {"a": 1.5, 3: [[1, 2], (True,)], "device": "cpu", "pair": [1.0, 2]}
    assert type(content["a"]) is float
    checkpoint.save(content, str(tmp_path / "c.pth"))
    assert checkpoint.load(str(tmp_path / "c.pth"), torch.device("cpu")) == content


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.pth"
    checkpoint.save({"epoch": 1}, str(path))
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save({"epoch": lambda: 2}, str(path))
    assert checkpoint.load(str(path), torch.device("cpu")) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("malicious_was_here",)


@pytest.mark.parametrize("damage", ["malicious", "truncated", "empty", "missing"])
def test_bad_files_are_named_and_not_run(tmp_path, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pth"
    if damage == "malicious":
        torch.save({"network_weights": Malicious()}, path)
    elif damage == "truncated":
        torch.save({"w": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.touch()
    with pytest.raises(LDSegError, match=r"c\.pth"):
        checkpoint.load(str(path), torch.device("cpu"))
    assert not (tmp_path / "malicious_was_here").exists()


@contextmanager
def small_disk(most_bytes):
    """Writing beyond this size of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(epoch):
    return {"epoch": epoch, "weights": torch.full((100_000,), float(epoch))}


def epoch_of(path):
    return checkpoint.load(str(path), CPU)["epoch"]


def test_the_one_before_is_kept(tmp_path):
    latest = str(tmp_path / LATEST)
    for epoch in range(3):
        checkpoint.save(content(epoch), latest, PREVIOUS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([LATEST, PREVIOUS])
    assert epoch_of(tmp_path / LATEST) == 2 and epoch_of(tmp_path / PREVIOUS) == 1


def test_the_one_before_is_kept_without_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")
    monkeypatch.setattr(os, "link", no_links)
    for epoch in range(2):
        checkpoint.save(content(epoch), str(tmp_path / LATEST), PREVIOUS)
    assert epoch_of(tmp_path / LATEST) == 1 and epoch_of(tmp_path / PREVIOUS) == 0


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / LATEST
    checkpoint.save(content(1), str(path))
    with small_disk(100_000), pytest.raises(checkpoint.NotWrittenError, match=r"latest.*takes 0 MB, \d+ MB.*Make room"):
        checkpoint.save(content(2), str(path), PREVIOUS)
    assert epoch_of(path) == 1 and [p.name for p in tmp_path.iterdir()] == [LATEST]


def test_room_is_made_by_the_older_one_and_waited_for(tmp_path, monkeypatch):
    path, told, slept = str(tmp_path / LATEST), [], []
    for epoch in range(2):
        checkpoint.save(content(epoch), path, PREVIOUS)
    with small_disk(100_000), pytest.raises(checkpoint.NotWrittenError):
        checkpoint.save_patiently(content(2), path, told.append, 0.0, PREVIOUS)
    assert len(told) == 1 and "removed to make room" in told[0]
    assert [p.name for p in tmp_path.iterdir()] == [LATEST] and epoch_of(path) == 1
    limit = small_disk(100_000)

    def wait(seconds):  # someone makes room meanwhile
        slept.append(seconds)
        if len(slept) == 2:
            limit.__exit__(None, None, None)
    monkeypatch.setattr(checkpoint, "sleep", wait)
    limit.__enter__()
    checkpoint.save_patiently(content(3), path, told.append, 600.0, PREVIOUS)
    assert epoch_of(path) == 3 and len(slept) == 2 and len(told) == 2
    assert "waits up to 10 min for room" in told[1]


def test_a_signal_waits_for_the_file(tmp_path, monkeypatch):
    write = torch.save

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        write(*arguments)
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(Interrupted), stop_in_order(""):
        checkpoint.save(content(1), str(tmp_path / LATEST))
    assert epoch_of(tmp_path / LATEST) == 1


def flip_a_bit(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # of a weight
    path.write_bytes(damaged)


DAMAGES = {"empty": lambda path: path.write_bytes(b""), "flipped": flip_a_bit,
           "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
           "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size))}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    latest, told = tmp_path / LATEST, []
    checkpoint.save(content(0), str(tmp_path / BEST))
    for epoch in (1, 2):
        checkpoint.save(content(epoch), str(latest), PREVIOUS)
    DAMAGES[damage](latest)
    with pytest.raises(LDSegError, match="damaged"):
        checkpoint.load(str(latest), CPU)
    assert checkpoint.load_newest(str(latest), CPU, told.append)["epoch"] == 1
    assert len(told) == 1 and "goes on from checkpoint_latest_before.pth" in told[0]
    assert (tmp_path / f"damaged_{LATEST}").is_file()
    assert epoch_of(latest) == 1, "what nnU-Net continues from, if this run is interrupted as well"
    checkpoint.save(content(2), str(latest), PREVIOUS)
    assert epoch_of(tmp_path / PREVIOUS) == 1 and not list(tmp_path.glob("*.part")), "nothing is left behind"
    for path in (latest, tmp_path / PREVIOUS):
        DAMAGES[damage](path)
    assert checkpoint.load_newest(str(latest), CPU, told.append)["epoch"] == 0, "the best is all that is left"
    DAMAGES[damage](tmp_path / BEST)  # the newest is the same file by now
    with pytest.raises(LDSegError, match=r"latest\.pth.*best\.pth.*damaged.*--restart"):
        checkpoint.load_newest(str(latest), CPU, told.append)


def test_whole_checkpoints_are_read_once_and_nothing_is_said(tmp_path):
    told = []
    checkpoint.save(content(1), str(tmp_path / LATEST))
    assert checkpoint.load_newest(str(tmp_path / LATEST), CPU, told.append)["epoch"] == 1
    assert not told and [p.name for p in tmp_path.iterdir()] == [LATEST]


def test_leftovers_of_a_killed_training_are_removed(tmp_path):
    for name in ("checkpoint_final.pth.part", "checkpoint_final.pth", "notes.part"):
        (tmp_path / name).touch()
    checkpoint.remove_leftovers(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_final.pth", "notes.part"]
