"""Each term of the loss counts, with its weight."""

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from ldseg_auto.networks.ldseg_net import TrainingOutput
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights

TARGET = torch.randint(0, 3, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()


def segmentation():
    return DC_and_CE_loss({"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
                          dice_class=MemoryEfficientSoftDiceLoss)


def output(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)
    return TrainingOutput(draw(2, 3, 8, 8), draw(2, 3, 8, 8), draw(2, 4, 2, 2), draw(2, 4, 2, 2),
                          [draw(2, 3, 8, 8), draw(2, 3, 4, 4)])


def test_sum_of_terms():
    out, part = output(), segmentation()
    loss = LatentDiffusionLoss(part, LossWeights(estimate=2.0, denoising=3.0, coding=5.0, heads=7.0))(out, TARGET)
    expected = (2 * part(out.estimate_logits, TARGET)
                + 3 * torch.nn.functional.mse_loss(out.denoiser_output, out.denoiser_target)
                + 5 * part(out.coding_logits, TARGET)
                + 7 * (2 / 3 * part(out.head_logits[0], TARGET) + 1 / 3 * part(out.head_logits[1],
                                                                             TARGET[:, :, ::2, ::2])))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("term", ["estimate", "denoising", "coding", "heads"])
def test_every_weight_has_an_effect(term):
    default = LatentDiffusionLoss(segmentation(), LossWeights())(output(), TARGET)
    changed = LatentDiffusionLoss(segmentation(), LossWeights(**{term: 0.0}))(output(), TARGET)
    assert abs(default - changed) > 1e-3


def test_logits_alone_give_the_segmentation_loss():
    logits = output().estimate_logits
    assert torch.equal(LatentDiffusionLoss(segmentation(), LossWeights())(logits, TARGET),
                       segmentation()(logits, TARGET))
