"""nnU-Net's loader of batches, in which the death of a worker ends no training, and no worker outlives one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from batchgenerators.dataloading import nondet_multi_threaded_augmenter as augmenter_module
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
    NonDetMultiThreadedAugmenter,
    producer,
    results_loop,
)
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.binding import bound

LEAST_BATCHES_BETWEEN_DEATHS = 250  # nnU-Net's epoch: workers that die more often are not worth starting again


class SteadyAugmenter(NonDetMultiThreadedAugmenter):
    """Starts its workers anew where one has died; they end with this process, however it ends.

    Args:
        log: is told of each new start.
        others: of nnU-Net's augmenter.
    """

    def __init__(self, *others: Any, log: Callable[[str], None], **named_others: Any):
        super().__init__(*others, **named_others)
        self._log = log
        self._workers: list[Any] = []  # nnU-Net's list is emptied when they have ended
        self._batches_since_death = LEAST_BATCHES_BETWEEN_DEATHS

    def __next__(self) -> dict:
        """The next batch.

        Raises:
            LDSegError: a worker died, and one had died less than 250 batches ago.
        """
        while True:
            try:
                batch = super().__next__()
            except RuntimeError as error:  # nnU-Net's way of saying that a worker is gone; all have been ended
                self._start_again_or_raise(error)
                continue
            self._batches_since_death += 1
            return batch

    def _start(self) -> None:
        with bound(augmenter_module, producer=produce, results_loop=collect):
            super()._start()
        self._workers = list(self._processes)

    def _start_again_or_raise(self, error: RuntimeError) -> None:
        cause = self._cause()
        if self._batches_since_death < LEAST_BATCHES_BETWEEN_DEATHS:
            raise LDSegError(f"{cause}, again after {self._batches_since_death} batches.",
                             "Give fewer workers or more memory (export nnUNet_n_proc_DA="
                             f"{len(self._workers) // 2}), then run the same command again: it goes on after the last "
                             "finished epoch.") from error
        self._batches_since_death = 0
        self._log(f"WARNING: {cause}. The {len(self._workers)} workers are started again and the training goes on.")

    def _cause(self) -> str:
        """Workers that are ended because another one died have exited by themselves or by SIGTERM."""
        killed = sorted({signal.Signals(-worker.exitcode).name for worker in self._workers
                         if (worker.exitcode or 0) < 0 and worker.exitcode != -signal.SIGTERM})
        if killed:
            return f"A worker that prepares batches was killed ({', '.join(killed)}), most likely for lack of memory"
        return "A worker that prepares batches stopped (where it failed, its message is above)"


def end_workers(*loaders: Any) -> None:
    """End the worker processes of these loaders, if they have any."""
    for loader in loaders:
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()


def produce(*arguments: Any) -> None:
    """nnU-Net's loop of a worker, ended where the training is killed: it would go on for ever."""
    Thread(target=_end_with_parent, daemon=True).start()
    producer(*arguments)


def collect(*arguments: Any) -> None:
    """nnU-Net's loop that collects batches. Before it raises it says so to `__next__`, which deals with it; raised in a
    thread it would be a traceback on the screen and nothing else."""
    with suppress(Exception):
        results_loop(*arguments)


def unbenchmarked_blur(**arguments: Any) -> GaussianBlurTransform:
    """nnU-Net's blur; with its benchmark on, the clock would choose the algorithm, and no two trainings be alike."""
    return GaussianBlurTransform(**arguments | {"benchmark": False})


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
