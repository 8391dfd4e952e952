"""Processes that fail, die and are interrupted. The work is that of builtin functions: nothing heavy is imported."""

import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.workers import CaseWorkers, _attempt

INTERRUPTED = """
import multiprocessing, sys, time
from pathlib import Path
from ldseg_auto.inference.workers import CaseWorkers

if __name__ == "__main__":
    try:
        with CaseWorkers(3) as workers:
            for name in ("a", "b", "c"):
                workers.submit(Path(name), time.sleep, 0.1)
            while workers.at_work:
                workers.outcomes(wait_for_one=True)
            workers.submit(Path("a"), time.sleep, 60)
            workers.submit(Path("b"), time.sleep, 60)
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            workers.outcomes(wait_for_one=True)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.join(10)
        print("interrupted", multiprocessing.active_children(), file=sys.stderr)
        sys.exit(130)
"""


def collect(workers):
    outcomes = []
    while workers.at_work:
        outcomes += workers.outcomes(wait_for_one=True)
    return {outcome.case.name: outcome for outcome in outcomes}


@pytest.mark.parametrize("number", [0, 2])
def test_results_and_errors_by_case(number):
    with CaseWorkers(number) as workers:
        for name, values in (("a", (6, 2)), ("b", (6, 0)), ("c", (9, 3))):
            workers.submit(Path(name), operator.truediv, *values)
        outcomes = collect(workers)
    assert outcomes["a"].result == 3 and outcomes["c"].result == 3 and not outcomes["c"].error
    assert isinstance(outcomes["b"].error, ZeroDivisionError)
    assert workers.has_processes == (number > 0)


def test_what_was_foreseen_keeps_its_cure():
    """Across the process boundary: two parts, not one text."""
    import pickle
    sent = pickle.loads(pickle.dumps(LDSegError("A.", "B.")))
    assert (sent.cause, sent.cure, str(sent)) == ("A.", "B.", "A. B.")


class _NotSendable(Exception):
    def __init__(self, a, b):
        super().__init__("both")


def test_what_cannot_be_sent_is_said():
    def fail():
        raise _NotSendable(1, 2)

    with pytest.raises(RuntimeError, match="_NotSendable: both"):
        _attempt(fail)


@pytest.mark.processes
def test_a_process_that_dies_is_named_with_its_case():
    with CaseWorkers(2) as workers:
        workers.submit(Path("a"), operator.add, 1, 2)
        workers.submit(Path("killed"), os._exit, 137)
        for name in "bcd":
            workers.submit(Path(name), operator.add, 1, 2)
        outcomes = collect(workers)
    assert isinstance(outcomes.pop("killed").error, BrokenProcessPool)
    assert {name: outcome.result for name, outcome in outcomes.items()} == dict.fromkeys("abcd", 3)


@pytest.mark.processes
def test_a_process_that_dies_while_it_waits_is_replaced():
    with CaseWorkers(1) as workers:
        workers.submit(Path("a"), os.getpid)
        pid = collect(workers)["a"].result
        os.kill(pid, signal.SIGKILL)
        for _ in range(100):
            time.sleep(0.02)
            if workers._idle[0].executor._broken:
                break
        workers.submit(Path("b"), operator.add, 1, 2)
        assert collect(workers)["b"].result == 3


@pytest.mark.processes
def test_no_process_outlives_one_that_is_killed(tmp_path):
    """It would keep its memory, and could still write when the next run has begun."""
    script = tmp_path / "killed.py"
    script.write_text(INTERRUPTED)
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True)
    processes = [int(pid) for pid in running.stdout.readline().split()]
    assert len(processes) == 3  # two at work, one idle
    running.kill()
    running.communicate(timeout=30)
    end = time.monotonic() + 20
    while alive := [pid for pid in processes if _is_alive(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    """A zombie that nobody has waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.processes
def test_ctrl_c_ends_the_processes_without_a_word_of_theirs(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True)
    processes = running.stdout.readline().split()
    assert len(processes) == 3
    for pid in (*map(int, processes), running.pid):  # a terminal sends it to all; here the one that waits is the last
        os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "interrupted []\n")
