"""A tiny training by two processes."""

import pytest
import torch
import training_work

from ldseg_auto.trainers import checkpoint

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(scope="module")
def world(copy_small_world, tmp_path_factory):
    """A copy: fold 1 is trained there."""
    return copy_small_world(tmp_path_factory.mktemp("ranks") / "world")


@pytest.fixture(scope="module")
def environment(world):
    """What the two processes must know, which were started before."""
    return {variable: str(world[variable]) for variable in VARIABLES}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_both_have_the_same_weights_and_go_on_as_if_nothing_had_been(world, environment, pair):
    first, second = pair(training_work.train, world, 1, environment=environment)
    assert (first["batch_size"], second["batch_size"]) == (1, 1), "shares of a batch of two"
    assert first["scaler"] is None and first["device"] == "cpu"
    assert same(first["weights"], second["weights"]) and same(first["average"], second["average"])
    assert not same(first["weights"], first["average"])
    for name in ("losses", "dice", "rates"):
        assert first[name] == second[name] and len(first[name]) >= 2
    assert len(first["drawn"]) == 4
    assert not set(first["drawn"]) & set(second["drawn"]), "patches and noise of their own"
    fold = world["model"] / "fold_1"
    final = checkpoint.load(str(fold / "checkpoint_final.pth"), torch.device("cpu"))
    assert same(final["raw_network_weights"], first["weights"]) and same(final["network_weights"], first["average"])
    assert final["raw_network_weights"]["label_encoder.standardise.updates"] > 4, "started from principal components"
    assert len(final["random_states_of_others"]) == 1
    assert final["random_states_of_others"][0]["numpy"] != final["random_state"]["numpy"]

    pair(training_work.train, world, 1, False, 1, environment=environment)
    resumed = pair(training_work.train, world, 1, True, environment=environment)
    for rank, straight in zip(resumed, (first, second), strict=True):
        assert rank["drawn"] == straight["drawn"][2:]
        assert same(rank["weights"], straight["weights"]) and same(rank["average"], straight["average"])


def test_the_budget_is_that_of_the_first_ones_clock(world, environment, pair):
    """The other's runs at twice that speed: each by itself would stop at another iteration, and wait for ever."""
    first, second = pair(training_work.train_by_the_clock, world, 2, environment=environment)
    assert first["rates"] == second["rates"] and 5 <= len(first["rates"]) <= 6
    assert first["rates"][-1] < 0.5 * first["rates"][0]
    assert same(first["weights"], second["weights"])
