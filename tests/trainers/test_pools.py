"""Pools in which a dead process ends the work, and does not stop it."""

import os
import signal
import time
from multiprocessing.pool import ThreadPool

import pytest
from nnunetv2.utilities.file_path_utilities import check_workers_alive_and_busy

from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers.pools import WATCHED, WatchedPool


def _add(a, b):
    return a + b


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_it_works_as_multiprocessings():
    with WatchedPool(ThreadPool(2)) as pool:
        assert pool.starmap(_add, [(1, 2), (3, 4)]) == [3, 7]
        result = pool.starmap_async(_add, [(1, 2)])
        assert result.get() == [3] and result.ready()
        assert not check_workers_alive_and_busy(pool, list(pool._pool), [result], 2)
        slow = pool.starmap_async(time.sleep, [(0.3,)])
        assert check_workers_alive_and_busy(pool, list(pool._pool), [slow] * 4, 2)
        with pytest.raises(TypeError):
            pool.starmap(_add, [(1, None)])


@pytest.mark.processes
def test_a_dead_process_is_an_error():
    with WATCHED.get_context("fork").Pool(2) as pool:
        result = pool.starmap_async(_die, [(1,)])
        with pytest.raises(LDSegError, match="One of 2 processes.*nnUNet_def_n_proc=1"):
            result.get()
        with pytest.raises(LDSegError):
            check_workers_alive_and_busy(pool, list(pool._pool), [], 2)
