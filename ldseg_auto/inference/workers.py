"""Processes that work on one case each, so that one that ends by itself is named with its case."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg_auto.devices import cores, end_with_parent


@dataclass(frozen=True)
class Outcome:
    """Of the work on a case: its result, or what it raised (`BrokenProcessPool` where its process ended by itself)."""

    case: Path
    result: Any = None
    error: BaseException | None = None


class CaseWorkers:
    """Up to `number` processes for the time of a `with` block; with 0 the work is done in this process, at once.

    Where the block is left by an exception (Ctrl-C among them) the processes are ended.
    """

    def __init__(self, number: int):
        self._number = number
        self._idle: list[_Worker] = []
        self._busy: dict[Future, tuple[Path, _Worker]] = {}
        self._done: list[Outcome] = []

    def __enter__(self) -> CaseWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in [*self._idle, *(worker for _, worker in self._busy.values())]:
            worker.end(at_once=kind is not None)

    @property
    def has_processes(self) -> bool:
        """Whether work goes on while this process does something else."""
        return self._number > 0

    @property
    def free(self) -> bool:
        """Whether another case can be begun without waiting."""
        return len(self._busy) < self._number if self._number else not self._done

    @property
    def at_work(self) -> bool:
        """Whether there are cases whose outcome was not yet asked for."""
        return bool(self._busy or self._done)

    def submit(self, case: Path, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin the work on a case, when a process is free."""
        if self._number == 0:
            try:
                self._done.append(Outcome(case, function(*arguments)))
            except Exception as error:
                self._done.append(Outcome(case, error=error))
            return
        while not self.free:
            self._collect()
        while True:
            worker = self._idle.pop() if self._idle else _Worker(max(1, cores() // self._number))
            try:
                self._busy[worker.executor.submit(_attempt, function, *arguments)] = (case, worker)
                return
            except BrokenProcessPool:
                worker.end(at_once=True)

    def outcomes(self, wait_for_one: bool = False) -> list[Outcome]:
        """Of the cases that are done since the last call; on demand there is at least one, if any is at work."""
        if self._busy:
            self._collect(block=wait_for_one and not self._done)
        done, self._done = self._done, []
        return done

    def _collect(self, block: bool = True) -> None:
        ready = wait(self._busy, None if block else 0, FIRST_COMPLETED).done
        for future in ready:
            case, worker = self._busy.pop(future)
            self._idle.append(worker)  # where it has died, `submit` replaces it
            error = future.exception()
            self._done.append(Outcome(case, None if error else future.result(), error))


def _attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """In the other process: what it raises can be sent back."""
    try:
        return function(*arguments)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        raise


class _Worker:
    """One process."""

    def __init__(self, threads: int):
        before = set(multiprocessing.active_children())
        with _interrupts_ignored():  # a new process inherits it: Ctrl-C is for the one that waits for it
            self.executor = start_executor(threads)
            self.executor.submit(os.getpid)
        self._processes = set(multiprocessing.active_children()) - before

    def end(self, at_once: bool) -> None:
        if at_once:
            for process in self._processes:
                process.terminate()
        self.executor.shutdown(wait=False, cancel_futures=True)


def start_executor(threads: int) -> Executor:
    """One process that computes with this many threads."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (threads,))


def _begin(threads: int) -> None:
    """In the other process, before its work; the number is heard by torch, which it has not imported yet."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    end_with_parent()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
