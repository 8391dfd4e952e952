"""Work of ranks that test_launch.py starts."""

from __future__ import annotations

import os
import signal

from ldseg_auto import collectives
from ldseg_auto.errors import LDSegError


def kill_rank_1() -> None:
    if collectives.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    collectives.wait_for_all()


def fail_on_rank_1() -> None:
    """Rank 0 meanwhile waits for it, and fails by that."""
    print(f"rank {collectives.rank()} speaks")
    if collectives.rank() == 1:
        raise LDSegError("The cause.", "The cure.")
    collectives.wait_for_all()
