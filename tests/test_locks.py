"""Locks between real processes: refused, waited for, shared, and free again however their owner ended."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ldseg_auto import locks
from ldseg_auto.errors import LDSegError
from ldseg_auto.locks import Lock, held, one_at_a_time, require_unused

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def other_process():
    """Another process that has a lock until it is told to end."""
    started = []

    def start(lock: Lock, then: str = "sys.stdin.read()") -> subprocess.Popen:
        code = textwrap.dedent("""
            import os, sys, time
            from pathlib import Path
            from ldseg_auto.locks import Lock, held
            with held(Lock(Path(sys.argv[1]), sys.argv[2], shared=sys.argv[3] == "True")):
                print("locked", flush=True)
                {}
        """).format(then)
        process = subprocess.Popen([sys.executable, "-c", code, str(lock.file), lock.doing, str(lock.shared)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in started:
        with process:  # closes its pipes
            process.kill()


@pytest.fixture
def lock(tmp_path) -> Lock:
    return Lock(tmp_path / "folder" / ".ldseg.lock", "working on the folder", "Wait for it.")


def test_the_second_is_refused_with_who_is_at_work(lock, other_process):
    process = other_process(lock)
    with pytest.raises(LDSegError) as error, held(lock):
        raise AssertionError("two runs at once")
    who = f"Process {process.pid} on {socket.gethostname()}"
    assert f"{who} has been working on the folder since 20" in error.value.cause
    assert error.value.cure == "Wait for it."
    process.communicate("")
    with held(lock):
        assert lock.file.is_file()
    assert not lock.file.parent.exists(), "nothing is left where nothing was"


def test_a_second_run_in_the_same_process_is_refused(lock):
    with held(lock), pytest.raises(LDSegError, match=f"Process {os.getpid()} on"), held(lock):
        pass


def test_what_was_in_the_folder_stays(lock):
    lock.file.parent.mkdir()
    with held(lock):
        (lock.file.parent / "result").touch()
    assert [path.name for path in lock.file.parent.iterdir()] == ["result"]


def test_an_error_inside_frees_the_lock(lock):
    with pytest.raises(ZeroDivisionError), held(lock):
        raise ZeroDivisionError
    with held(lock):
        pass


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_holds_nothing_up(kill, lock, other_process):
    process = other_process(lock)
    process.send_signal(kill)
    process.wait()
    assert lock.file.is_file(), "what it left behind is no lock"
    with held(lock):
        assert json.loads(lock.file.read_text())["pid"] == os.getpid()
    assert not lock.file.exists()


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(lock, other_process):
    """As a forked loader worker of a training does."""
    process = other_process(lock, "child = os.fork() or time.sleep(60); print(child, flush=True); sys.stdin.read()")
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)
        with held(lock):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_that_another_run_removes_at_the_same_moment(lock, monkeypatch, capsys):
    original, calls = os.open, []

    def removed_before_the_first(path, flags, *mode):
        calls.append(path)
        if len(calls) == 1:
            lock.file.parent.rmdir()
        return original(path, flags, *mode)

    monkeypatch.setattr(os, "open", removed_before_the_first)
    with held(lock):
        assert lock.file.is_file()
    assert not capsys.readouterr().out


def test_one_that_waits_comes_second(lock, other_process, capsys):
    process = other_process(lock, "time.sleep(1)")
    with held(Lock(lock.file, "merging", wait=True)):
        assert json.loads(lock.file.read_text())["doing"] == "merging"
    assert f"Waiting: Process {process.pid} on" in capsys.readouterr().out


def test_shared_locks_exclude_only_the_one_that_is_not(lock, other_process):
    shared = Lock(lock.file, "reading", shared=True)
    process = other_process(shared)
    with held(shared):
        assert process.poll() is None
    assert lock.file.is_file(), "the other still has it"
    with pytest.raises(LDSegError, match="reading"), held(lock):
        pass
    process.communicate("")
    with held(lock), pytest.raises(LDSegError, match="working on the folder"), held(shared):
        pass


def test_rivals_and_allies(tmp_path, other_process):
    def part(number: int, of: int) -> Lock:
        return Lock(tmp_path / f".part_{of}_{number}.lock", f"part {number} of {of}", rivals=".part_*.lock",
                    allies=f".part_{of}_*.lock")

    process = other_process(part(0, 2))
    with held(part(1, 2)):
        assert process.poll() is None
    for rival in (part(0, 2), part(0, 1), part(1, 3)):
        with pytest.raises(LDSegError, match="part 0 of 2"), held(rival):
            pass
    process.communicate("")
    with held(part(0, 1)):
        pass


def test_locks_that_must_be_free(tmp_path, other_process):
    (tmp_path / ".left_behind.lock").touch()
    require_unused(tmp_path, ".*.lock", "Wait.")
    process = other_process(Lock(tmp_path / ".fold_0.lock", "training fold 0"))
    with pytest.raises(LDSegError, match=f"Process {process.pid} .* training fold 0 since .* Wait"):
        require_unused(tmp_path, ".*.lock", "Wait.")
    require_unused(tmp_path, ".other.lock", "Wait.")
    require_unused(tmp_path / "no folder", ".*.lock", "Wait.")


def test_the_decorator_gives_the_arguments_by_name(tmp_path):
    @one_at_a_time(lambda folder, part, **_: [Lock(Path(folder) / f".{part}.lock", "adding")])
    def add(folder: str, number: int, part: int = 7) -> int:
        assert [path.name for path in Path(folder).iterdir()] == [f".{part}.lock"]
        return number + part

    assert add(str(tmp_path), 1) == 8 and add(str(tmp_path), number=1, part=2) == 3
    assert add.__name__ == "add" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_said_and_used(code, lock, monkeypatch, capsys):
    def flock(descriptor, kind):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(lock):
        (lock.file.parent / "result").touch()
    assert f"WARNING: {lock.file.parent} cannot be locked ({os.strerror(code)})" in capsys.readouterr().out


def test_a_folder_that_may_not_be_written_to_is_said_and_used(lock, monkeypatch, capsys):
    lock.file.parent.mkdir()
    original = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return original(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with held(lock):
        pass
    assert "cannot be locked (Read-only file system)" in capsys.readouterr().out


def test_windows_is_said(lock, monkeypatch, capsys):
    monkeypatch.setattr(locks, "fcntl", None)
    lock.file.parent.mkdir()
    with held(lock):
        require_unused(lock.file.parent, ".*.lock", "Wait.")
    assert "this system has no flock" in capsys.readouterr().out


def test_what_is_no_folder_is_left_to_the_command(tmp_path, capsys):
    (tmp_path / "file").touch()
    with held(Lock(tmp_path / "file" / ".ldseg.lock", "working"), Lock(tmp_path / "file" / "a" / ".b.lock", "working")):
        pass
    assert not capsys.readouterr().out


def test_a_record_of_another_machine_is_told(lock, capsys):
    """Killed there, or at work there on a file system that keeps its locks to itself."""
    lock.file.parent.mkdir()
    lock.file.write_text(json.dumps({"pid": 17, "host": "node-9", "since": "2026-11-21 20:00:00", "doing": "training"}))
    with held(lock):
        pass
    assert "Process 17 on node-9 has been training since 2026-11-21 20:00:00, or was killed" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_record_that_says_nothing(content, lock):
    lock.file.parent.mkdir()
    lock.file.write_text(content)
    with open(lock.file) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LDSegError, match=r"Process \? on \? has been at work there"), held(lock):
            pass


def test_a_full_disk_does_not_undo_the_lock(lock, monkeypatch):
    def pwrite(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with held(lock), pytest.raises(LDSegError), held(lock):
        pass
