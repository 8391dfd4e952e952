"""Work in other processes, one item at a time: an item that kills its process, or never ends, costs that item only."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from ldseg_auto.errors import LDSegError

SECONDS_AN_ITEM = 600.0  # the largest volumes take a minute to read; a dead network drive takes for ever
Item = TypeVar("Item")
Result = TypeVar("Result")


class Lost(NamedTuple):
    """In place of a result: how the process ended, as the end of a sentence."""

    how: str


class _Worker:
    """A process that waits for items; from `give` on it works on one. Its first message says that it has started."""

    def __init__(self, work: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()  # else its end would go unnoticed
        self.started, self.index, self.deadline = False, -1, 0.0

    def give(self, index: int, item: Any, seconds: float) -> None:
        self.index, self.deadline = index, monotonic() + seconds
        with suppress(OSError):  # it has died already: seen when its answer is waited for
            self.connection.send(item)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_apart(work: Callable[[Item], Result], items: Sequence[Item], processes: int, label: str,
              progress_bar: bool = True, seconds: float = SECONDS_AN_ITEM) -> list[Result | Lost]:
    """`work` on every item, in their order.

    Args:
        work: a function that can be sent to another process.
        processes: at most; 0 works in this process, without protection.
        label: of the progress bar.
        seconds: that an item may take.
    """
    with tqdm(total=len(items), desc=label, disable=None if progress_bar else True, leave=False) as progress:
        if processes < 1:
            return [_counted(work(item), progress) for item in items]
        results: dict[int, Result | Lost] = {}
        waiting, idle, busy = deque(enumerate(items)), list[_Worker](), dict[Connection, _Worker]()
        try:
            while waiting or busy:
                while waiting and len(busy) < processes:
                    worker = idle.pop() if idle else _Worker(work)
                    busy[worker.connection] = worker
                    worker.give(*waiting.popleft(), seconds)
                results |= _finished(busy, idle)
                progress.update(len(results) - progress.n)
        finally:
            for worker in [*idle, *busy.values()]:
                worker.end()
    return [results[index] for index in range(len(items))]


def _finished(busy: dict[Connection, _Worker], idle: list[_Worker]) -> dict[int, Any]:
    """Wait for the next results; whoever has one, has died, or is overdue is no longer busy."""
    results: dict[int, Any] = {}
    first_deadline = min(worker.deadline for worker in busy.values())
    for connection in wait(list(busy), max(0.0, first_deadline - monotonic())):
        worker = busy[connection]  # type: ignore[index]
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.end()
            if not worker.started:
                raise LDSegError("The processes that check the data do not start.", "Look for the first error above; a "
                                 'script of your own must be guarded by if __name__ == "__main__":') from None
            results[worker.index] = Lost(f"ended the process that read it (exit code {worker.process.exitcode})")
            continue
        if worker.started:
            results[worker.index] = message
            idle.append(worker)
        worker.started = True
    for worker in [worker for worker in busy.values() if worker.index not in results]:
        if monotonic() >= worker.deadline:
            worker.end()
            results[worker.index] = Lost("could not be read in time")
    for connection in [connection for connection, worker in busy.items() if worker.index in results]:
        del busy[connection]
    return results


def _counted(result: Result, progress: Any) -> Result:
    progress.update()
    return result


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """In the other process, until it is ended or the one that started it has ended."""
    connection.send("started")
    with suppress(EOFError, OSError):
        while True:
            connection.send(work(connection.recv()))
