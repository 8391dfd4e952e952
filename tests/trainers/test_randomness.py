"""The state of the random generators, out of a checkpoint."""

import random

import numpy as np
import torch

from ldseg_auto.trainers import checkpoint, randomness


def draw():
    return random.random(), np.random.rand(), np.random.normal(), torch.rand(1).item()


def test_draws_go_on_from_a_saved_state(tmp_path):
    randomness.seed_all(3)
    np.random.normal()  # numpy keeps the second of each two normal numbers
    checkpoint.save({"state": randomness.get_state()}, str(tmp_path / "c.pth"))
    expected = [draw() for _ in range(3)]
    randomness.seed_all(4)
    assert draw() != expected[0]
    randomness.set_state(checkpoint.load(str(tmp_path / "c.pth"), torch.device("cpu"))["state"])
    assert [draw() for _ in range(3)] == expected


def test_a_seed_sets_every_generator():
    drawn = []
    for seed in (1, 1, 2):
        randomness.seed_all(seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))
