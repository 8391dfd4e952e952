import os

import pytest
import torch

from ldseg_auto.devices import cores, limit_processes, select_device
from ldseg_auto.errors import LDSegError


def test_default_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert select_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name, part", [("gpu", "unknown"), ("cuda", "not available"), ("mps", "not available")])
def test_refuses_what_is_not_there(name, part, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(LDSegError, match=part):
        select_device(name)


def test_cpu_uses_every_core_unless_told_otherwise(monkeypatch):
    wanted = []
    monkeypatch.setattr(torch, "set_num_threads", wanted.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    select_device("cpu")
    assert wanted == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    select_device("cpu")
    assert wanted == [cores()]


def test_processes_are_limited_unless_the_user_chose(monkeypatch):
    monkeypatch.setattr("ldseg_auto.devices.cores", lambda: 2)
    monkeypatch.delenv("nnUNet_def_n_proc")
    limit_processes()
    assert os.environ["nnUNet_def_n_proc"] == "2"
    monkeypatch.setenv("nnUNet_def_n_proc", "5")
    limit_processes()
    assert os.environ["nnUNet_def_n_proc"] == "5"
