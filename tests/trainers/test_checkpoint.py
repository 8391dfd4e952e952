"""Checkpoints hold plain values, are whole or absent, and never run code."""

import os
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch

from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers import checkpoint


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
