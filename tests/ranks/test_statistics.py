"""The statistics by which codes are standardised are those of the joint batch, on every rank."""

import pytest
import torch
from step_work import standardised


def codes(iterations=3):
    """(iterations) of 4 samples, whose halves have other means and spreads."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0]).reshape(4, 1, 1, 1)
    return [torch.randn((4, 2, 3, 3), generator=generator) * scale + scale for _ in range(iterations)]


def weights(*shares):
    """For each iteration how much each sample counts."""
    return [torch.tensor(share).reshape(4, 1, 1, 1).expand(4, 1, 3, 3) for share in shares]


@pytest.mark.parametrize("weight", [[None] * 3, weights([1.0, 0.5, 0.25, 1.0], [1.0] * 4, [0.1, 0.2, 0.3, 0.4]),
                                    weights([1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0] * 4)],
                         ids=["unweighted", "weighted", "nothing known on one, on both"])
def test_they_are_those_of_the_joint_batch(weight, pair):
    ranks = pair(standardised, codes(), weight)
    alone = standardised(0, codes(), weight, shares=1)
    for name in ("mean", "variance", "updates"):
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        assert torch.allclose(ranks[0][name], alone[name], rtol=1e-5), name
    joint = torch.cat([torch.cat(parts) for parts in zip(*(rank["outputs"].chunk(3) for rank in ranks), strict=True)])
    assert torch.allclose(joint, alone["outputs"], atol=1e-5)
    assert not torch.allclose(ranks[0]["mean"], standardised(0, codes(), weight)["mean"], rtol=0.01), "halves differ"


def test_a_number_that_is_none_on_one_counts_on_none(pair):
    broken = codes()
    broken[1][3] = float("nan")
    for rank in pair(standardised, broken, [None] * 3):
        assert rank["updates"] == 2 and rank["mean"].isfinite().all() and rank["variance"].isfinite().all()
