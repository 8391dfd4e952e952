"""Memory that is freed in training is used again: counted in pages that the system clears."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from ldseg_auto.allocation import keeping_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def work(megabytes=64):
    before = faults()
    for _ in range(20):
        torch.ones(megabytes << 20, dtype=torch.uint8)
    return faults() - before

torch.set_num_threads(1)
torch.ones(1)
start, before = resident(), work()
with keeping_freed_memory():
    work()
    inside, kept = work(), resident()
left = resident()
work(8)
print(before, inside, work(), kept - start, left - start, work(8))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_pages_are_cleared_once_and_given_back():
    before, inside, after, kept, left, small = map(int, subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout.split())
    assert before > 100 and after > 100, "without it each block is asked for anew"
    assert inside < before / 10
    assert kept > 60 << 20 and left < 10 << 20
    assert small < 100, "medium blocks are used again as before"


def test_without_glibc_nothing_happens(monkeypatch):
    import ctypes

    from ldseg_auto.allocation import keeping_freed_memory

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with keeping_freed_memory():
        pass
