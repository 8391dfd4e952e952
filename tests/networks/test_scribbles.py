"""Short strokes, a sixteenth of the voxels, teach the network the whole structures."""

import pytest
import torch
from torch import nn

from ldseg_auto.evaluation.latent_signs import dice_per_patch
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights

SIZE, IGNORE, ITERATIONS = 32, 3, 250


def discs(samples, generator):
    """Noisy images (B, 1, 32, 32) and labels of a disc with a core."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centre = 8 + 16 * torch.rand(samples, 2, 1, 1, generator=generator)
    radius = 6 + 4 * torch.rand(samples, 1, 1, generator=generator)
    distance = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt()
    labels = ((distance < radius).long() + (distance < radius - 3).long())[:, None]
    return labels + 0.7 * torch.randn(labels.shape, generator=generator), labels


def one_hot(labels):
    return nn.functional.one_hot(labels, 3).movedim(-1, 1)


@pytest.mark.slow
def test_structures_are_learned_from_strokes(arch_kwargs):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = LDSegNet(1, 3, **arch_kwargs(2, features_per_stage=[16, 32, 32, 32], latent_channels=4, label_features=32,
                                       denoiser_features=[32], ignore_label=IGNORE))
    images, labels = discs(64, generator)
    rows = (torch.rand(64, 1, SIZE // 2, 1, generator=generator) < 0.15).repeat_interleave(2, 2)
    known = rows & (torch.rand(64, 1, 1, SIZE, generator=generator) < 0.4)
    targets = torch.where(known, labels, IGNORE).float()
    assert 0.05 < known.float().mean() < 0.07
    loss = LatentDiffusionLoss(DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, ignore_label=IGNORE,
        dice_class=MemoryEfficientSoftDiceLoss), LossWeights())
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, ITERATIONS, 0.9)
    for _ in range(ITERATIONS):
        drawn = torch.randint(0, 64, (8,), generator=generator)
        recycled = torch.rand(8, generator=generator) < 0.5
        timestep = torch.where(recycled, 500, torch.randint(1, 1001, (8,), generator=generator))
        noise = torch.randn(8, 4, 8, 8, generator=generator)
        value = loss(net(images[drawn], targets[drawn], noise, timestep, recycled), targets[drawn])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 12)
        optimizer.step()
        schedule.step()
    unseen, truth = discs(64, generator)
    with torch.no_grad():
        segmentation = net.eval()(unseen).argmax(1)
    assert dice_per_patch(one_hot(segmentation), one_hot(truth[:, 0]), slice(1, None)).mean() > 0.65
