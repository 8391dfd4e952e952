"""Each term of the loss counts, with its weight."""

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from ldseg_auto.networks.ldseg_net import TrainingOutput
from ldseg_auto.trainers import loss as loss_module
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights, denoising_error

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


def leaves():
    """`output`, its tensors ready to receive gradients."""
    out = output()
    for tensor in (*out[:4], *out.head_logits):
        tensor.requires_grad_()
    return out


@pytest.mark.parametrize("distributed", [False, True])
def test_terms_without_weight_are_not_computed(distributed, monkeypatch):
    """But for several processes: DDP waits for a gradient of every parameter."""
    monkeypatch.setattr(loss_module, "is_distributed", lambda: distributed)
    out = leaves()
    LatentDiffusionLoss(segmentation(), LossWeights(coding=0.0, heads=0.0))(out, TARGET).backward()
    assert out.estimate_logits.grad.any() and out.denoiser_output.grad.any()
    for tensor in (out.coding_logits, *out.head_logits):
        assert (tensor.grad is not None) == distributed
        assert tensor.grad is None or not tensor.grad.any()


def test_the_denoising_error_counts_positions_by_what_is_known():
    out = leaves()
    share = torch.tensor([[1.0, 0.5], [0.0, 0.25]]).expand(2, 1, 2, 2)
    error = denoising_error(out._replace(known_share=share))
    squares = (out.denoiser_output - out.denoiser_target).square()
    assert error.item() == pytest.approx(((squares * share).sum() / (share.sum() * 4)).item(), rel=1e-5)
    error.backward()
    assert not out.denoiser_output.grad[:, :, 1, 0].any() and out.denoiser_output.grad[:, :, 0].all()
    elsewhere = out.denoiser_output.detach().clone()
    elsewhere[:, :, 1, 0] = 100
    assert denoising_error(out._replace(denoiser_output=elsewhere, known_share=share)) == error


def test_where_everything_is_known_the_denoising_error_is_the_mean_square():
    out = output()
    plain = torch.nn.functional.mse_loss(out.denoiser_output, out.denoiser_target).item()
    assert denoising_error(out).item() == pytest.approx(plain)
    assert denoising_error(out._replace(known_share=torch.ones(2, 1, 2, 2))).item() == pytest.approx(plain, rel=1e-5)


def test_where_nothing_is_known_there_is_no_error():
    out = leaves()
    error = denoising_error(out._replace(known_share=torch.zeros(2, 1, 2, 2)))
    error.backward()
    assert error == 0 and not out.denoiser_output.grad.any()
