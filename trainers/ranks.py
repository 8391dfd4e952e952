"""One piece of work done by several processes (ranks) together: started here, or by torchrun on one or more machines.

Started here: this process starts the ranks, waits for them and ends all where one fails or a signal comes; it is none
of them itself. By torchrun: rank 0 runs the command and leads, the others do what it sends them.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from signal import Signals
from time import monotonic
from typing import Any, TypeVar

from ldseg_auto.devices import end_with_parent, select_device
from ldseg_auto.errors import Interrupted, LDSegError, reason_of

Result = TypeVar("Result")
Work = Callable[[], None]

# Longer than rank 0 takes for anything by itself (scoring a validation, waiting for room on a full disk); a rank that
# ends is noticed at once.
_PATIENCE = timedelta(hours=2)
_SECONDS_TO_REPORT = 5  # for the other ranks, when one has failed: the first cause is what counts
_SECONDS_TO_END = 60  # after SIGTERM; a checkpoint is being written, perhaps
_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def leads() -> bool:
    """Whether this process speaks for all: it is alone, or torchrun's rank 0."""
    return not _by_torchrun() or os.environ["RANK"] == "0"


def number_of_ranks(num_gpus: int) -> int:
    """How many will train together.

    Raises:
        LDSegError: torchrun has started another number.
    """
    if not _by_torchrun():
        return num_gpus
    started = int(os.environ["WORLD_SIZE"])
    if num_gpus not in (1, started):
        raise LDSegError(f"torchrun has started {started} processes, and -num_gpus is {num_gpus}.",
                         "Leave -num_gpus out: torchrun says how many.")
    return started


def require_equal_shares(number: int, batch_size: int) -> None:
    """Raise unless the batch can be shared equally: nnU-Net's Dice over the batch cannot be computed otherwise."""
    if batch_size % number:
        fitting = [str(each) for each in range(1, batch_size + 1) if batch_size % each == 0]
        raise LDSegError(f"A batch of {batch_size} patches cannot be shared equally by {number} processes.",
                         f"Use {' or '.join(fitting)} of them, or plan a larger batch (-gpu_memory_target).")


def require_devices(number: int, device_type: str) -> None:
    """Raise unless this machine has a device for each of the ranks that are started here."""
    import torch

    if number == 1 or _by_torchrun() or device_type == "cpu":
        return
    found = torch.cuda.device_count() if device_type == "cuda" else 1
    if number > found:
        raise LDSegError(f"-num_gpus is {number}, and there are {found} devices of type {device_type}.",
                         f"Use -num_gpus {found}, or several machines (torchrun).")


def together(work: Work, number: int, device: str | None) -> None:
    """Do the work: here, or by `number` processes that are joined (see `ldseg_auto.collectives`).

    Args:
        work: can be pickled; each rank calls its copy.
        number: of ranks; torchrun's where that has started them.
        device: as for `select_device`.

    Raises:
        LDSegError: a rank has failed; all have been ended.
    """
    if _by_torchrun():
        from ldseg_auto.collectives import from_first

        from_first(work)()
    elif number == 1:
        work()
    else:
        _by_processes(work, number, device)


def led_by_first(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator of a function with the arguments `device` and `num_gpus` that hands its work to `together`: where
    torchrun has started several processes, rank 0 calls it, and the others take part in that work only."""
    signature = inspect.signature(function)

    @wraps(function)
    def led(*args: Any, **kwargs: Any) -> Result:
        if not _by_torchrun():
            return function(*args, **kwargs)
        from ldseg_auto.collectives import from_first, rank

        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        number = number_of_ranks(call.arguments["num_gpus"])
        with _joined(call.arguments["device"], int(os.environ["RANK"]), number, int(os.environ["LOCAL_RANK"])):
            if rank() == 0:
                result = function(*args, **kwargs)
                return from_first(_Done(result)).result
            return _follow()

    return led


@dataclass(frozen=True)
class _Done:
    """What rank 0 sends at the end in place of work."""

    result: Any


def _follow() -> Any:
    from ldseg_auto.collectives import from_first

    while True:
        try:
            received = from_first(None)
        except RuntimeError:  # rank 0 has ended, and has said why
            raise SystemExit(1) from None
        if isinstance(received, _Done):
            return received.result
        received()  # type: ignore[misc]


@contextmanager
def _joined(device: str | None, rank: int, number: int, number_here: int, port: int | None = None) -> Iterator[None]:
    """Inside the block this process is one of those that train together; only rank 0 prints.

    Args:
        number_here: of this rank among those on its machine; its GPU.
        port: of the store in the process that has started this one; torchrun's where None.
    """
    import torch
    from torch import distributed as dist

    if rank != 0:
        os.environ["nnUNet_wandb_enabled"] = "0"  # nnU-Net would start a run in each process
    device_type = select_device(device, number).type
    if device_type == "cuda":
        torch.cuda.set_device(number_here)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=_PATIENCE) if port is not None else None
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", rank=rank, world_size=number, store=store,
                            timeout=_PATIENCE)
    printed_to = sys.stdout
    with open(os.devnull, "w") as nowhere:
        sys.stdout = printed_to if rank == 0 else nowhere
        try:
            yield
        finally:
            sys.stdout = printed_to
    # not after a failure, where the others may never come to it
    dist.destroy_process_group()


# --- ranks that are started here


@dataclass(frozen=True)
class _Failure:
    """Of a rank, as it reports it."""

    time: float
    rank: int
    reason: str
    foreseen: Exception | None
    trace: str


def _by_processes(work: Work, number: int, device: str | None) -> None:
    from torch import distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # any port that is free
    context = multiprocessing.get_context("spawn")
    inboxes, processes = [], []
    try:
        for rank in range(number):
            inbox, outbox = context.Pipe(duplex=False)
            process = context.Process(target=_be_rank, args=(work, rank, number, device, store.port, outbox))
            process.start()
            outbox.close()
            inboxes.append(inbox)
            processes.append(process)
        if not _all_succeed(processes):
            _give_time(processes, _SECONDS_TO_REPORT)
            codes = [process.exitcode for process in processes]  # of those that ended by themselves
            raise _cause(codes, [failure for inbox in inboxes for failure in _received(inbox)])
    finally:
        _end(processes)


def _be_rank(work: Work, rank: int, number: int, device: str | None, port: int, outbox: Connection) -> None:
    end_with_parent()
    try:
        with _joined(device, rank, number, rank, port):
            work()
    except Interrupted as interruption:
        sys.exit(interruption.exit_code)
    except Exception as error:
        foreseen = error if isinstance(error, (LDSegError, OSError)) else None
        outbox.send(_Failure(monotonic(), rank, reason_of(error), foreseen, traceback.format_exc()))
        sys.exit(1)


def _all_succeed(processes: Sequence[BaseProcess]) -> bool:
    """Whether all end without a failure; waits until it is known."""
    while all(process.exitcode in (None, 0) for process in processes):
        running = [process.sentinel for process in processes if process.exitcode is None]
        if not running:
            return True
        wait(running)
    return False


def _cause(codes: Sequence[int | None], failures: Sequence[_Failure]) -> Exception:
    """What the user is told: of several failures the first, of which the others are consequences."""
    failures = sorted(failures, key=lambda failure: failure.time)
    for failure in failures:
        if failure.foreseen is not None:
            return failure.foreseen
    killed = [f"rank {rank} by {Signals(-(code or 0)).name}" for rank, code in enumerate(codes) if (code or 0) < 0]
    again = "run the same command again: it goes on after the last finished epoch."
    if killed:
        return LDSegError(f"Of {len(codes)} processes that train together {', '.join(killed)} was killed, most likely "
                          "for lack of memory; the others have been ended.",
                          f"Give more memory, or fewer workers to each (export nnUNet_n_proc_DA=2), then {again}")
    if not failures:
        return LDSegError(f"Of {len(codes)} processes that train together one has ended without a word (exit codes: "
                          f"{', '.join(map(str, codes))}).", f"Look above for what it printed, then {again}")
    print(failures[0].trace, file=sys.stderr)
    return LDSegError(f"Rank {failures[0].rank} of {len(codes)} has failed ({failures[0].reason}); the others have "
                      "been ended.", f"Its traceback is above. Correct the cause, then {again}")


def _received(inbox: Connection) -> list[_Failure]:
    try:
        return [inbox.recv()] if inbox.poll() else []
    except EOFError:  # it has ended and sent nothing
        return []


def _give_time(processes: Sequence[BaseProcess], seconds: float) -> None:
    end = monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - monotonic()))


def _end(processes: Sequence[BaseProcess]) -> None:
    """SIGTERM, by which a rank ends in order, and where that does not help SIGKILL."""
    for process in processes:
        process.terminate()
    _give_time(processes, _SECONDS_TO_END)
    for process in processes:
        process.kill()
        process.join()


def _by_torchrun() -> bool:
    return all(name in os.environ for name in _OF_TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1
