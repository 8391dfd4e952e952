"""Work on many cases: in this process where that is quicker than starting others, which import torch first."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from time import perf_counter
from typing import TypeVar

from tqdm import tqdm

from ldseg_auto.devices import end_with_parent
from ldseg_auto.errors import LDSegError, named

_START_SECONDS = 10.0
Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Up to `number` processes, started when there is enough to do, for the time of a `with` block.

    Args:
        number: of processes at most.
        progress_bar: shown or not.
        flag: of the command, by which the user chooses the number.
    """

    def __init__(self, number: int, progress_bar: bool = True, flag: str = "-np"):
        self._number = number
        self._progress_bar = progress_bar
        self._flag = flag
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item], label: str,
            name: Callable[[Item], str] = str) -> list[Result]:
        """`work` on every item, in their order.

        Args:
            work: a function that can be sent to another process.
            items: at least one.
            label: of the progress bar.
            name: of an item, for the message.

        Raises:
            LDSegError: a process ended by itself; the items that may have been the cause are named.
        """
        start = perf_counter()
        with tqdm(total=len(items), desc=label, disable=None if self._progress_bar else True) as progress:
            results = []
            first = map(work, items[:1])
            for result in chain(first, self._rest(work, items[1:], start, name)):
                results.append(result)
                progress.update()
        return results

    def _rest(self, work: Callable[[Item], Result], items: Sequence[Item], start: float,
              name: Callable[[Item], str]) -> Iterator[Result]:
        """A generator: it looks at the time when the first item is done."""
        alone = self._number <= 1 or not items or (perf_counter() - start) * len(items) < _START_SECONDS
        if self._pool is None and alone:
            yield from map(work, items)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(min(self._number, len(items)), multiprocessing.get_context("spawn"),
                                             _begin)
        futures = [self._pool.submit(work, item) for item in items]
        for future in futures:
            try:
                result = future.result()
            except BrokenProcessPool as error:
                # they are taken up in their order: the first without a result were being worked on
                lost = [name(item) for item, its in zip(items, futures, strict=True)
                        if isinstance(its.exception(), BrokenProcessPool)][:self._number]
                raise LDSegError(f"A worker process ended by itself, most likely for lack of memory, at {named(lost)}.",
                                 f"Give fewer processes with {self._flag}.") from error
            yield result


def _begin() -> None:
    """The cores belong to the processes. Heard by torch, which a new process has not imported yet."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    end_with_parent()
