"""Work of ranks that test_launch.py starts."""

from __future__ import annotations

import os
import signal

from ldseg_auto import collectives
from ldseg_auto.cli import common
from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers import ranks
from ldseg_auto.trainers.interruption import stop_in_order


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


def step_for_ever() -> None:
    """As a training does, each step together with the other rank."""
    with stop_in_order(""):
        for step in range(1_000_000):
            if step == 1:
                print("at work", flush=True)
            collectives.gathered(step)


def start() -> None:
    with stop_in_order("Do this."):
        ranks.together(step_for_ever, 2, "cpu")


if __name__ == "__main__":
    import launch_work  # what is pickled must have a name that ranks can import

    raise SystemExit(common.run(lambda _: launch_work.start(), common.parser(""), []))
