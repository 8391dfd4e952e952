"""Patches that hold one label, or next to nothing: codes stay bounded, losses and gradients finite."""

import pytest
import torch

from ldseg_auto.evaluation.peak_memory import segmentation_loss
from ldseg_auto.networks.label_autoencoder import LatentStandardisation
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights

RECIPES = {"default": {}, "published": {"prediction": "eps", "zero_terminal_snr": False, "standardisation": "sample"}}


def patches(kind, output):
    """Two patches, as nnU-Net's target."""
    labels = torch.zeros(2, 1, 16, 16)
    if kind == "one label":
        labels += 1
    elif kind == "one voxel":
        labels[0, 0, 5, 5] = 2
    return labels if output == "softmax" else torch.cat([labels > 0, labels > 1], dim=1).float()


@pytest.mark.parametrize("kind", ["background", "one label", "one voxel"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_training_on_nothing_else(arch_kwargs, kind, output, recipe):
    """With the narrowest code there is."""
    torch.manual_seed(0)
    net = LDSegNet(1, 3 if output == "softmax" else 2,
                   **arch_kwargs(2, output=output, latent_channels=1, **RECIPES[recipe]))
    loss = LatentDiffusionLoss(segmentation_loss(output == "sigmoid"), LossWeights())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    target = patches(kind, output)
    values = []
    for step in range(8):
        code = net.encode_label(target)
        assert code.abs().max() < 20
        result = net(torch.randn(2, 1, 16, 16), target, torch.randn(2, 1, 4, 4),
                     torch.tensor([1000, 1 + 100 * step]), torch.tensor([step % 2 == 0, False]))
        value = loss(result, target)
        optimizer.zero_grad()
        value.backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] and all(map(torch.isfinite, map(torch.tensor, values)))
    assert torch.isfinite(net.eval()(torch.zeros(1, 1, 16, 16))).all(), "nor does a constant image break it"


def test_batches_of_one_label_each_have_a_variance_together():
    """Small patches in or outside of a large organ: within a batch nothing varies, between them all does."""
    standardise = LatentStandardisation("tracked", 1)
    generator = torch.Generator().manual_seed(0)
    for inside in torch.rand(400, generator=generator) < 0.5:
        standardise(torch.full((1, 1, 4, 4), 6.0 if inside else 2.0))
    codes = [standardise.eval()(torch.full((1, 1, 4, 4), value)).mean().item() for value in (2.0, 6.0)]
    assert codes == pytest.approx([-1, 1], abs=0.3)


def test_pooled_statistics_are_those_of_all_batches_together():
    """While the average is a plain one: exactly."""
    standardise = LatentStandardisation("tracked", 2, momentum=1e-3)
    batches = torch.randn(10, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2
    batches += torch.arange(10.0).reshape(-1, 1, 1, 1, 1)
    for batch in batches:
        standardise(batch)
    together = batches.movedim(2, 0).flatten(1)
    assert torch.allclose(standardise.mean, together.mean(1), atol=1e-4)
    assert torch.allclose(standardise.variance, together.var(1, correction=0), rtol=1e-4)


@pytest.mark.parametrize("mode", ["tracked", "sample"])
def test_positions_of_weight_zero_count_for_nothing(mode):
    standardise, other = LatentStandardisation(mode, 2), LatentStandardisation(mode, 2)
    code = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.ones(3, 1, 4, 4)
    weight[..., 2:] = 0
    weight[..., :1, :2] = 0.25
    changed = torch.where(weight == 0, 1e3, code)
    a, b = standardise(code, weight), other(changed, weight)
    assert torch.allclose(a[..., :2], b[..., :2], atol=1e-5)
    alike = LatentStandardisation(mode, 2)(code, torch.full_like(weight, 0.3))
    assert torch.allclose(alike, LatentStandardisation(mode, 2)(code), atol=1e-5)
    assert not torch.allclose(alike, a, atol=0.05)
