"""SIGTERM and Ctrl-C end a command in order: what is being saved is saved, and no worker process complains."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from ldseg_auto.errors import Interrupted

_DEFAULTS: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
_waiting: list[Interrupted] | None = None  # inside `finish_first`: what came meanwhile


@contextmanager
def stop_in_order(advice: str) -> Iterator[None]:
    """Inside the block SIGTERM and SIGINT raise `Interrupted`, and Ctrl-C does not reach processes that
    multiprocessing starts: the terminal sends it to all of them, and each would print a traceback.

    A signal that something else handles already is left to it: submitit's jobs are requeued by its own handlers.

    Args:
        advice: how to go on, for the message.
    """
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in no other
        yield
        return
    ours = [number for number, default in _DEFAULTS.items() if signal.getsignal(number) is default]
    start = BaseProcess.start
    for number in ours:
        signal.signal(number, _raising(advice))
    BaseProcess.start = _without_interrupts(start)  # type: ignore[method-assign]
    try:
        yield
    finally:
        BaseProcess.start = start  # type: ignore[method-assign]
        for number in ours:
            signal.signal(number, _DEFAULTS[number])


@contextmanager
def finish_first() -> Iterator[None]:
    """A signal that comes inside the block takes effect at its end. For what takes seconds at most."""
    global _waiting
    if _waiting is not None:
        yield
        return
    _waiting = []
    try:
        yield
    finally:
        came, _waiting = _waiting, None
        if came:
            raise came[0]


def _raising(advice: str) -> Any:
    owner = os.getpid()

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker inherits the handler; its parent ends it by SIGTERM
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        interruption = Interrupted(signal.Signals(number).name, number, advice)
        if _waiting is None:
            raise interruption
        _waiting.append(interruption)

    return handle


def _without_interrupts(start: Any) -> Any:
    """`start` of a process, in which SIGINT is blocked from its first instruction on, and SIGTERM ends it at once."""
    if not hasattr(signal, "pthread_sigmask"):
        return start

    def start_blocked(process: BaseProcess) -> None:
        blocked = {signal.SIGINT}
        _starting.by_fork = getattr(process, "_start_method", "fork") == "fork"
        if _starting.by_fork:
            # until `_end_by_sigterm` has run: Python forgets a signal that comes while it forks, and a pool that ends
            # a worker just then would wait for it for ever
            blocked.add(signal.SIGTERM)
        else:
            resource_tracker.ensure_running()  # before: to start it unblocks SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            start(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _starting.by_fork = False

    return start_blocked


def _end_by_sigterm() -> None:
    """In a process that `_without_interrupts` has forked: its parent's handler of SIGTERM is not its own."""
    if getattr(_starting, "by_fork", False):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


_starting = threading.local()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_by_sigterm)
