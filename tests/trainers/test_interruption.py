"""Signals, sent to this process."""

import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from ldseg_auto.cli import common
from ldseg_auto.errors import Interrupted
from ldseg_auto.trainers import cluster
from ldseg_auto.trainers.interruption import finish_first, stop_in_order
from ldseg_auto.trainers.run import _how_to_go_on


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_a_command_with_its_code_and_one_line(name, code, capsys):
    def command(_):
        with stop_in_order("Do this."):
            signal.raise_signal(getattr(signal, name))
    assert common.run(command, common.parser("test"), []) == code
    assert capsys.readouterr().err == f"interrupted by {name}. Do this.\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "as before"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_being_saved_is_saved_first():
    done = []
    with pytest.raises(Interrupted), stop_in_order(""):
        with finish_first():
            with finish_first():
                signal.raise_signal(signal.SIGTERM)
            done.append("saved")
        done.append("not reached")
    assert done == ["saved"]
    with pytest.raises(Interrupted), stop_in_order(""), finish_first():
        signal.raise_signal(signal.SIGTERM)
        raise OSError("the disk is full, too")


def test_signals_that_something_else_handles_are_left_to_it():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))  # as submitit does
    try:
        with stop_in_order(""):
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(came) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_a_thread_nothing_is_changed():
    found = []

    def look():
        with stop_in_order(""):
            found.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def _sleep():
    time.sleep(60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_hear_no_interrupt_and_end_by_sigterm(method, capfd):
    with stop_in_order(""):
        worker = multiprocessing.get_context(method).Process(target=_sleep, daemon=True)
        worker.start()
    for _ in range(20):
        os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.01)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == -signal.SIGTERM
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # here it is heard again


def test_a_worker_that_is_ended_while_it_starts_ends():
    """As when a pool replaces a dead process and is closed at the same moment."""
    with stop_in_order(""):
        for _ in range(40):
            worker = multiprocessing.get_context("fork").Process(target=_sleep, daemon=True)
            worker.start()
            worker.terminate()
            worker.join(10)
            ended = worker.exitcode
            worker.kill()
            assert ended == -signal.SIGTERM


def test_local_jobs_are_ended_when_their_command_is(monkeypatch, tmp_path):
    cancelled = []
    job = SimpleNamespace(done=lambda: False, cancel=lambda: cancelled.append(1), job_id="1",
                          paths=SimpleNamespace(stdout="log"))
    work = SimpleNamespace(model=tmp_path, dataset="Dataset007_Small", states={0: "new"})
    monkeypatch.setattr(cluster, "prepare_training", lambda device=None, **_: work)
    monkeypatch.setattr(cluster, "submit_folds", lambda *_: [job])
    monkeypatch.setattr(cluster, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="without --restart"):
        cluster.train_on_cluster("local", "7", [0], device="cpu")
    assert cancelled == [1]


def test_the_way_on_is_the_right_one():
    assert "--restart" not in _how_to_go_on(restart=False, disable_checkpointing=False)
    assert "again without --restart: it goes on" in _how_to_go_on(restart=True, disable_checkpointing=False)
    assert "Nothing of this training was saved" in _how_to_go_on(restart=False, disable_checkpointing=True)
