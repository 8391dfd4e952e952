"""Two processes step together or not at all, and draw differently."""

import math

import numpy as np
import pytest
import step_work
import torch

from ldseg_auto import collectives
from ldseg_auto.trainers import randomness

NAN = float("nan")


@pytest.mark.parametrize("factors, constants", [((1.0, 1.0), (0.0, NAN)), ((1.0, NAN), (0.0, 0.0)),
                                                ((1.0, 1.0), (float("inf"), 0.0))])
def test_where_one_has_no_number_none_steps(factors, constants, pair):
    ranks = pair(step_work.steps, factors, constants)
    for rank in ranks:
        loss, changed = rank["first"]
        assert not math.isfinite(loss) and not changed and rank["weight"] == 1 and rank["told"] == 1
        assert rank["second"] == (1.0, True) and rank["weight after"] != 1
    assert ranks[0]["weight after"] == ranks[1]["weight after"]


def test_the_loss_is_the_mean(pair):
    for rank in pair(step_work.steps, (1.0, 3.0), (0.0, 0.0)):
        assert rank["first"] == (2.0, True)


def test_images_without_numbers_are_named_whoever_has_them(pair):
    first, second = pair(step_work.ten_in_a_row)
    assert "images of case of rank 1 hold values that are no numbers" in first
    assert first == second


def test_what_is_said_and_heard(pair, tmp_path):
    for number, rank in enumerate(ranks := pair(step_work.said)):
        assert (rank["rank"], rank["size"], rank["first"], rank["gathered"]) == (number, 2, "rank 0", [0, 1])
        assert rank["stacked"].tolist() == [[1, 0], [1, 1]] and rank["mean"].tolist() == [1, 0.5]
    assert torch.equal(ranks[0]["weight"], ranks[1]["weight"])
    assert pair(step_work.before_others, str(tmp_path / "file")) == ["repaired", "repaired"]


def test_alone_one_hears_oneself():
    alone = step_work.said(0)
    assert (alone["rank"], alone["size"], alone["first"], alone["gathered"]) == (0, 1, "rank 0", [0])
    assert alone["stacked"].tolist() == [[1, 0]] and alone["mean"].tolist() == [1, 0]
    assert not collectives.is_distributed()


def test_a_seed_is_another_stream_for_each(pair):
    """The first one's is that of a process alone."""
    first, second = pair(step_work.seeded, 5)
    assert first == step_work.seeded(0, 5)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert pair(step_work.seeded, 5) == [first, second] and pair(step_work.seeded, 6)[1] != second


def test_random_states_of_fewer_or_of_none():
    assert randomness.of_this_rank({}) is None
    content = randomness.of_all_ranks()
    np.random.rand()
    assert randomness.of_this_rank(content)["numpy"] == content["random_state"]["numpy"]
    assert content["random_states_of_others"] == []
