"""Work in other processes: one that dies or never ends costs its item only."""

import multiprocessing
import os

import pytest
from misbehaving import ends_at_once, work

from ldseg_auto.checks import apart
from ldseg_auto.errors import LDSegError

pytestmark = pytest.mark.processes


def test_an_item_that_kills_its_process_or_never_ends():
    before = set(multiprocessing.active_children())  # of other tests
    items = ["a", "kill", "b", "hang", "c", "exit", "d"]
    results = apart.run_apart(work, items, 2, "", False, seconds=8)
    good = [result for item, result in zip(items, results, strict=True) if item in "abcd"]
    assert [result.split()[0] for result in good] == ["a", "b", "c", "d"]
    assert str(os.getpid()) not in {result.split()[1] for result in good}
    assert results[1] == apart.Lost("ended the process that read it (exit code -9)")
    assert results[3] == apart.Lost("could not be read in time")
    assert results[5] == apart.Lost("ended the process that read it (exit code 3)")
    assert not set(multiprocessing.active_children()) - before


def test_processes_that_do_not_start_are_no_fault_of_the_files(monkeypatch):
    before = set(multiprocessing.active_children())
    monkeypatch.setattr(apart, "_serve", ends_at_once)
    with pytest.raises(LDSegError, match="do not start"):
        apart.run_apart(work, ["a"], 1, "", False)
    assert not set(multiprocessing.active_children()) - before


def test_no_other_process_where_none_is_asked_for():
    assert apart.run_apart(work, ["a"], 0, "", False) == [f"a {os.getpid()}"]
