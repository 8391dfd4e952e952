"""Peak memory of a network in training and in prediction, counted by running it on tensors without data.

Every tensor that the step allocates is followed until it is freed (torch's `MemTracker` on fake tensors), so a plan of
any size is measured in seconds, in no memory and without a GPU. What a device adds, context, workspaces of its
convolutions and fragments, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ldseg_auto.config import LDSegConfig
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights


def training_peak_bytes(config: LDSegConfig, patch: Sequence[int], batch_size: int, num_inputs: int, num_heads: int,
                        half: bool = False) -> int:
    """Of a training step of `LDSegTrainer` that is not its first: weights, their average, gradients, AdamW's moments,
    feature maps and what is in between.

    Args:
        config: of the network; no ignore label.
        patch: voxels per axis.
        batch_size: samples.
        num_inputs: image channels.
        num_heads: label channels.
        half: under autocast to 16 bits.
    """
    grid = [size // stride for size, stride in zip(patch, config.latent_stride, strict=True)]
    regions = config.output == "sigmoid"

    def prepare() -> tuple[Callable[[], None], list[object]]:
        network = LDSegNet(num_inputs, num_heads, **config.to_arch_kwargs())
        average = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer = torch.optim.AdamW(network.parameters())
        loss = LatentDiffusionLoss(segmentation_loss(regions), LossWeights())

        def step() -> None:
            image = torch.zeros(batch_size, num_inputs, *patch)
            target = torch.zeros(batch_size, num_heads if regions else 1, *patch)
            noise = torch.zeros(batch_size, config.latent_channels, *grid)
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                output = network(image, target, noise, torch.ones(batch_size, dtype=torch.long),
                                 torch.ones(batch_size, dtype=torch.bool))
                value = loss(output, target)
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, [network, optimizer, average]

    return peak_bytes(prepare)


def prediction_peak_bytes(config: LDSegConfig, patch: Sequence[int], images: int, num_inputs: int, num_heads: int,
                          half: bool = False) -> int:
    """Of encoding `images` tiles, drawing a sample of each and decoding it, as `LDSegPredictor` does; what it keeps
    of a whole volume is not counted. Arguments as for training."""
    grid = [size // stride for size, stride in zip(patch, config.latent_stride, strict=True)]

    def prepare() -> tuple[Callable[[], None], list[object]]:
        network = LDSegNet(num_inputs, num_heads, **config.to_arch_kwargs()).eval()

        def step() -> None:
            with torch.inference_mode(False), torch.no_grad(), (
                    torch.autocast("cpu", torch.bfloat16) if half else nullcontext()):
                condition = network.encode_image(torch.zeros(images, num_inputs, *patch))
                latent = network.sample(condition, torch.zeros(images, config.latent_channels, *grid), 1)
                network.probabilities(network.decode(latent))

        return step, [network]

    return peak_bytes(prepare)


def segmentation_loss(regions: bool) -> nn.Module:
    """nnU-Net's, as its trainer configures it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "ddp": False}
    if regions:
        return DC_and_BCE_loss({}, {"do_bg": True, **dice}, dice_class=MemoryEfficientSoftDiceLoss)
    return DC_and_CE_loss(dice | {"do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)


def peak_bytes(prepare: Callable[[], tuple[Callable[[], None], list[object]]]) -> int:
    """Of a step and of what exists before it.

    Args:
        prepare: () -> the step, and what exists: networks, optimisers, lists of tensors. Called where tensors have no
            data.
    """
    with FakeTensorMode():
        step, known = prepare()
        for optimizer in [each for each in known if isinstance(each, torch.optim.Optimizer)]:
            for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # its moments come into being
            optimizer.zero_grad(set_to_none=True)
        tracker = MemTracker()
        tracker.track_external(*[each for each in known if isinstance(each, (nn.Module, torch.optim.Optimizer))])
        with tracker:
            step()
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    untracked = sum(tensor.nbytes for each in known if isinstance(each, list) for tensor in each)
    return int(peak["Total"]) + untracked
