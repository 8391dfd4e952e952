"""Two processes that wrap the network in DDP have the gradient of one with the joint batch.

The condition: equal shares of the batch and, with an ignore label, equal numbers of known voxels in each share, at full
resolution and at the heads' coarser scales: nnU-Net's cross-entropy is a mean over the known voxels of each process.
Everything of our own (denoising error, statistics) holds for unequal numbers too.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from small_nets import Case, gradients

from ldseg_auto.trainers.loss import LossWeights

TOLERANCE = 1e-5  # float32


def difference(case, pair):
    """Of each tensor, relative to its norm (of tiny ones to a hundredth of the norm of all): the largest. Both ranks
    have the same to the last bit."""
    first, second = pair(gradients, case)
    alone = gradients(0, case, shares=1)
    assert first.keys() == alone.keys()
    least = 0.01 * torch.cat([expected.flatten() for name, expected in alone.items() if "buffer" not in name]).norm()
    assert all(torch.equal(first[name], second[name]) for name in alone)
    return max(((first[name] - expected).norm() / max(expected.norm(), least)).item()
               for name, expected in alone.items())


CASES = [Case(dimension, output, ignore, True, recycled, batch_dice)
         for dimension, output, ignore, recycled, batch_dice in product(
             (2, 3), ("softmax", "sigmoid"), (False, True), (False, True), (False, True))
         if dimension == 2 or recycled == batch_dice != ignore]  # of the slower ones a part


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dimension}d {case.output}" + " ignore" * case.ignore
                         + " recycled" * case.recycled + " batch_dice" * case.batch_dice)
def test_gradients_and_statistics_are_those_of_the_joint_batch(case, pair):
    assert difference(case, pair) < TOLERANCE


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_with_unequal_numbers_of_known_voxels_only_the_cross_entropy_differs(output, pair):
    ours = LossWeights(estimate=0.0, denoising=1.0, coding=0.0, heads=0.0)
    unequal = Case(output=output, ignore=True, equal_known=False)
    assert difference(replace(unequal, weights=ours), pair) < TOLERANCE
    assert difference(unequal, pair) > 1e-2, "the condition above is needed"


@pytest.mark.parametrize("weights", [LossWeights(coding=0.0, heads=0.0), LossWeights(denoising=0.0)])
def test_terms_without_weight_hold_nobody_up(weights, pair):
    """DDP waits for a gradient of every parameter; that of a head, where heads do not count, is 0."""
    assert difference(Case(weights=weights), pair) < TOLERANCE
