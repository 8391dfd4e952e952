"""A network of a few voxels, a batch for it, and its gradients: by one process, or by each of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ldseg_auto.networks.ldseg_net import LDSegNet, unwrapped
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights

SAMPLES, SIZE, IGNORE = 4, 16, 3


@dataclass(frozen=True)
class Case:
    dimension: int = 2
    output: str = "softmax"
    ignore: bool = False
    equal_known: bool = True  # the two halves of the batch have as many known voxels
    recycled: bool = False
    batch_dice: bool = False
    weights: LossWeights = LossWeights()


def gradients(rank: int, case: Case, shares: int = 2) -> dict[str, torch.Tensor]:
    """Of every parameter (0 where it has none), and the buffers afterwards, of a rank with its share of the batch."""
    network: nn.Module = network_of(case)
    loss = loss_of(case, joint=shares > 1)
    inputs = [each if each is None else each.chunk(shares)[rank] for each in batch_of(case)]
    if shares > 1:
        network = DistributedDataParallel(network)
    network.train()
    loss(network(*inputs), inputs[1]).backward()
    own = unwrapped(network)
    return {**{name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
               for name, parameter in own.named_parameters()},
            **{f"buffer {name}": value for name, value in own.named_buffers()}}


def network_of(case: Case) -> LDSegNet:
    torch.manual_seed(2)  # by others a value of an ignored region lies on the bend of a LeakyReLU, and rounding decides
    conv, norm = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[case.dimension]
    return LDSegNet(
        1, 3 if case.output == "softmax" else 2, n_stages=4, features_per_stage=[4, 8, 8, 8], conv_op=conv,
        kernel_sizes=[[3] * case.dimension] * 4, strides=[[1] * case.dimension] + [[2] * case.dimension] * 3,
        n_conv_per_stage=[1] * 4, norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, latent_stride=[4] * case.dimension, latent_channels=2, label_features=8,
        denoiser_features=[8, 16], output=case.output, ignore_label=IGNORE if case.ignore else None)


def loss_of(case: Case, joint: bool) -> LatentDiffusionLoss:
    """With nnU-Net's own, as its trainer makes them."""
    dice = {"batch_dice": case.batch_dice, "smooth": 1e-5, "do_bg": case.output == "sigmoid", "ddp": joint}
    if case.output == "softmax":
        own: nn.Module = DC_and_CE_loss(dice, {}, ignore_label=IGNORE if case.ignore else None,
                                        dice_class=MemoryEfficientSoftDiceLoss)
    else:
        own = DC_and_BCE_loss({}, dice, use_ignore_label=case.ignore, dice_class=MemoryEfficientSoftDiceLoss)
    return LatentDiffusionLoss(own, case.weights)


def batch_of(case: Case) -> list[torch.Tensor | None]:
    """Image, target, noise, timesteps, which are recycled."""
    generator = torch.Generator().manual_seed(1)
    shape = (SAMPLES, 1, *[SIZE] * case.dimension)
    image = torch.randn(shape, generator=generator)
    labels = torch.randint(0, 3, shape, generator=generator)
    ignored = torch.zeros(shape, dtype=torch.bool)
    if case.ignore:
        for sample in range(SAMPLES):  # halves alike at the heads' coarser scales too
            ignored[sample, ..., 4 * sample:4 * sample + 4] = True
        if not case.equal_known:
            ignored[0, ..., 3:] = True
    if case.output == "softmax":
        target = torch.where(ignored, IGNORE, labels).float()
    else:
        target = torch.cat([labels > 0, labels > 1] + [ignored] * case.ignore, dim=1).float()
    noise = torch.randn((SAMPLES, 2, *[SIZE // 4] * case.dimension), generator=generator)
    timestep = torch.randint(1, 1001, (SAMPLES,), generator=generator)
    recycled = torch.tensor([True, False, True, True]) if case.recycled else None
    return [image, target, noise, timestep, recycled]
