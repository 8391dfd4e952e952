"""One run at a time in a folder: the second refuses and says who is at work, so that no files are mixed.

A lock is `flock` on a hidden file beside what is written. The kernel releases it when its process ends, however it
ends: a kill leaves a file that holds nothing up. On one machine that is sure. Between machines it holds where the file
system passes locks on (NFS version 4; Lustre mounted with `flock`); where a file system, or Windows, has none, the
command says so and goes on.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from ldseg_auto.errors import LDSegError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Result = TypeVar("Result")
_HELD: set[int] = set()  # open lock files of this process
_TRIES, _PAUSE_SECONDS = 4, 0.1  # another run that only looks whether a lock is free has it for an instant
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what a lock that another process has is answered with


@dataclass(frozen=True)
class Lock:
    """What one run must have for itself.

    Args:
        file: hidden, beside what is written; made when it is locked, removed afterwards.
        doing: what its owner does, as in "PID 17 on HOST has been {doing} since ...".
        cure: for the second run.
        shared: several may have it at once, but not together with one that wants it alone.
        wait: wait for the other instead of refusing.
        rivals, allies: patterns of lock files beside it: those that nobody else may have at the same time, and which
            of these others may have after all.
    """

    file: Path
    doing: str
    cure: str = "Wait until it has ended."
    shared: bool = False
    wait: bool = False
    rivals: str = ""
    allies: str = ""


@contextmanager
def held(*locks: Lock) -> Iterator[None]:
    """Inside the block this run has all of the locks.

    Raises:
        LDSegError: another run has one of them, which is named with its process, host and time.
    """
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(_held(lock))
        yield


def one_at_a_time(locks_of: Callable[..., Sequence[Lock]]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator: the function's call has the locks that `locks_of` names, which is given the same arguments by name."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(function)

        @wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Result:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            with held(*locks_of(**call.arguments)):
                return function(*args, **kwargs)

        return locked

    return decorate


def require_unused(folder: Path, pattern: str, cure: str) -> None:
    """Raise if another run has one of the locks in `folder` that fit the pattern."""
    for file in sorted(folder.glob(pattern)):
        holder = _holder(file)
        if holder is not None:
            raise LDSegError(f"{_described(holder)}.", cure)


@contextmanager
def _held(lock: Lock) -> Iterator[None]:
    made: list[Path] = []
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            descriptor = _acquire(lock, made)
        except OSError as error:
            _warn_of_no_lock(lock, error.strerror)
        else:
            stack.callback(_release, descriptor, lock.file)
            _require_no_rival(lock)
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _acquire(lock: Lock, made: list[Path]) -> int:
    """The locked file's descriptor; folders that are made for it go to `made`.

    Raises:
        OSError: nothing can be locked there.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no flock")
    while True:
        descriptor = _open(lock.file, made)
        _HELD.add(descriptor)
        try:
            _flock(lock, descriptor)
        except BaseException:
            _close(descriptor)
            raise
        if _is_still(descriptor, lock.file):
            break
        _close(descriptor)  # the one before has removed it in the meantime
    _warn_of_other_host(lock.file)
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds"),
              "doing": lock.doing}
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
    return descriptor


def _open(file: Path, made: list[Path]) -> int:
    for _ in range(_TRIES):
        made += [path for path in (file.parent, *file.parent.parents) if not path.exists()]
        with suppress(OSError):  # what cannot be made, the command itself will complain about
            file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who made the folder has just removed it
            return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _flock(lock: Lock, descriptor: int) -> None:
    kind = fcntl.LOCK_SH if lock.shared else fcntl.LOCK_EX
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _BUSY:
                raise
        sleep(_PAUSE_SECONDS)
    owner = _described(_record(lock.file))
    if not lock.wait:
        raise LDSegError(f"{owner}, and a second run there would mix its files with these.", lock.cure)
    print(f"Waiting: {owner}.", flush=True)
    fcntl.flock(descriptor, kind)


def _require_no_rival(lock: Lock) -> None:
    """Both of two rivals have their own lock before they look for the other's: one of them sees it at least."""
    rivals = set(lock.file.parent.glob(lock.rivals)) - set(lock.file.parent.glob(lock.allies)) if lock.rivals else set()
    for file in sorted(rivals - {lock.file}):
        if (holder := _holder(file)) is not None:
            raise LDSegError(f"{_described(holder)}, and a second run there would mix its files with these.", lock.cure)


def _holder(file: Path) -> dict[str, Any] | None:
    """Who has the lock; None if nobody has."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _record(file) if error.errno in _BUSY else None
    finally:
        os.close(descriptor)
    return None


def _release(descriptor: int, file: Path) -> None:
    if descriptor not in _HELD:  # in a forked child, which has closed it
        return
    with suppress(OSError):  # others that share the lock still need the file
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(descriptor, file):
            file.unlink()
    _close(descriptor)


def _is_still(descriptor: int, file: Path) -> bool:
    """Whether the open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _close(descriptor: int) -> None:
    _HELD.discard(descriptor)
    os.close(descriptor)


def _close_in_child() -> None:
    """A worker that outlives its killed parent must not keep the parent's locks."""
    for descriptor in list(_HELD):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _record(file: Path) -> dict[str, Any]:
    """What the owner wrote about itself, which may be nothing yet."""
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _described(record: Mapping[str, Any]) -> str:
    return (f"Process {record.get('pid', '?')} on {record.get('host', '?')} has been "
            f"{record.get('doing', 'at work there')} since {record.get('since', '?')}")


def _warn_of_other_host(file: Path) -> None:
    """A record that was left behind: by a kill, or by a run on another machine whose locks do not reach this one."""
    record = _record(file)
    if record.get("host", socket.gethostname()) != socket.gethostname():
        print(f"WARNING: {_described(record)}, or was killed: make sure that it does not run any more. Its lock is not "
              "seen from here.")


def _warn_of_no_lock(lock: Lock, reason: str | None) -> None:
    """A folder that is not there, or is none, is the command's to complain about."""
    if lock.file.parent.is_dir():
        print(f"WARNING: {lock.file.parent} cannot be locked ({reason}): make sure that no other run writes there.")
