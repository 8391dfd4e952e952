"""The loader of batches, with real workers that are really killed."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase

from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers import loaders
from ldseg_auto.trainers.loaders import SteadyAugmenter, end_workers, unbenchmarked_blur


class Batches(SlimDataLoaderBase):
    """Says which process made a batch; of some it can fail."""

    fails = False

    def generate_train_batch(self):
        if self.fails:
            raise ValueError("this case is broken")
        return {"data": torch.full((1, 4), os.getpid()), "keys": np.array(["case"])}


@pytest.fixture
def loader():
    told = []
    made = SteadyAugmenter(Batches(None, 1), None, 2, num_cached=2, wait_time=0.002, log=told.append)
    made.told = told
    yield made
    end_workers(made)


def kill(worker):
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_worker_is_replaced_once(loader, capfd):
    assert next(loader)["data"].shape == (1, 4)
    first = list(loader._processes)
    kill(first[0])
    makers = {int(next(loader)["data"][0, 0]) for _ in range(20)}
    assert makers - {worker.pid for worker in first}, "others make the batches now"
    assert len(loader.told) == 1 and "killed (SIGKILL)" in loader.told[0] and "memory" in loader.told[0]
    kill(loader._processes[1])
    with pytest.raises(LDSegError, match=r"killed \(SIGKILL\).*again.*nnUNet_n_proc_DA=1.*goes on"):
        for _ in range(20):
            next(loader)
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_dies_much_later_is_replaced_again(loader, monkeypatch):
    monkeypatch.setattr(loaders, "LEAST_BATCHES_BETWEEN_DEATHS", 10)
    loader._batches_since_death = 10
    for _ in range(2):
        for _ in range(20):
            next(loader)
        kill(loader._processes[0])
    for _ in range(20):
        next(loader)
    assert len(loader.told) == 2


def test_a_worker_that_fails_is_not_called_killed(loader, monkeypatch, capfd):
    monkeypatch.setattr(Batches, "fails", True)
    with pytest.raises(LDSegError, match="where it failed, its message is above"):
        next(loader)
    assert "this case is broken" in capfd.readouterr().out


def _train(pipe):
    made = SteadyAugmenter(Batches(None, 1), None, 2, log=print)
    next(made)
    pipe.send([worker.pid for worker in made._processes])
    time.sleep(60)


def _is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes below /proc")
def test_no_worker_outlives_a_training_that_is_killed():
    here, there = multiprocessing.Pipe()
    training = multiprocessing.get_context("fork").Process(target=_train, args=(there,))
    training.start()
    workers = here.recv()
    assert all(map(_is_there, workers))
    kill(training)
    end = time.monotonic() + 20
    while any(map(_is_there, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(_is_there, workers))


def test_the_blur_asks_no_clock():
    blur = unbenchmarked_blur(blur_sigma=(0.5, 1.0), synchronize_channels=False, p_per_channel=1.0, benchmark=True)
    blur(image=torch.randn(1, 8, 8))
    assert not blur.benchmark and not blur.benchmark_use_fft
