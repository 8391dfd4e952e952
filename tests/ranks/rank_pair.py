"""Two processes that train together, joined by gloo; they call what they are sent and send back what it gives."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from ldseg_auto.devices import end_with_parent

_SPAWN = multiprocessing.get_context("spawn")
_SECONDS = 300  # for one call; a rank that waits for another one's call is a fault


class Pair:
    """Call it with a function of a module that can be imported: it is called as function(rank, *arguments) in both."""

    def __init__(self) -> None:
        from torch import distributed as dist

        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pipes, self._processes = [], []
        for rank in range(2):
            ours, theirs = _SPAWN.Pipe()
            self._processes.append(_SPAWN.Process(target=_serve, args=(rank, self._store.port, theirs), daemon=True))
            self._processes[-1].start()
            theirs.close()
            self._pipes.append(ours)

    def __call__(self, function: Callable[..., Any], *arguments: Any,
                 environment: Mapping[str, str] | None = None) -> list:
        for pipe in self._pipes:
            pipe.send((function, arguments, dict(environment or {})))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(_SECONDS), f"rank {rank} does not answer"
            answers.append(pipe.recv())
        for _, trace in answers:
            assert trace is None, trace
        return [result for result, _ in answers]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, port: int, pipe: Any) -> None:
    import torch
    from torch import distributed as dist

    end_with_parent()
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=timedelta(seconds=_SECONDS))
    while True:
        function, arguments, environment = pipe.recv()
        os.environ.update(environment)
        try:
            pipe.send((function(rank, *arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
