"""nnU-Net's pools of processes, in which a process that ends by itself is an error: multiprocessing waits for ever."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from ldseg_auto.errors import LDSegError

_LOOK_SECONDS = 0.2


class WatchedPool:
    """What nnU-Net uses of multiprocessing.Pool.

    Raises (from every method that waits): LDSegError: a process ended by itself.
    """

    def __init__(self, pool: Any):
        self._real = pool
        self._workers = list(pool._pool)  # the pool forgets the dead
        self._pool = [SimpleNamespace(is_alive=self._require_all) for _ in self._workers]  # nnU-Net asks these

    def __enter__(self) -> WatchedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._real.terminate()

    def starmap_async(self, work: Callable[..., Any], arguments: Iterable[tuple]) -> SimpleNamespace:
        """As multiprocessing's; of the result there are `ready` and `get`."""
        result = self._real.starmap_async(work, arguments)
        return SimpleNamespace(ready=result.ready, get=lambda: self._wait(result))

    def starmap(self, work: Callable[..., Any], arguments: Iterable[tuple]) -> list:
        """As multiprocessing's."""
        return self._wait(self._real.starmap_async(work, arguments))

    def _wait(self, result: Any) -> Any:
        while not result.ready():
            self._require_all()
            result.wait(_LOOK_SECONDS)
        return result.get()

    def _require_all(self) -> bool:
        if not all(worker.is_alive() for worker in self._workers):
            raise LDSegError(f"One of {len(self._workers)} processes that write and score the validation was ended, "
                             "most likely for lack of memory.",
                             f"Give fewer (export nnUNet_def_n_proc={max(1, len(self._workers) // 2)}) or more memory, "
                             "then run the same command again: it validates again.")
        return True


def _get_context(method: str | None = None) -> SimpleNamespace:
    context = multiprocessing.get_context(method)
    return SimpleNamespace(Pool=lambda *arguments: WatchedPool(context.Pool(*arguments)))


WATCHED = SimpleNamespace(get_context=_get_context)  # to be bound where a module of nnU-Net says multiprocessing
