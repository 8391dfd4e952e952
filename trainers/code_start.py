"""The label autoencoder starts as a principal component analysis of the training labels.

The planner chose the latent by what such an analysis can code; started from it, the code holds the labels from the
first iteration on, and the way from image to latent has a target that means something.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch

from ldseg_auto.networks.blocks import zeroed
from ldseg_auto.networks.ldseg_net import LDSegNet

MAX_BLOCK_VALUES = 4096  # of one block of one-hot labels: beyond, the covariance is too large to decompose
_BLOCKS_PER_BATCH = 4_000  # a batch of whole patches with many classes would fill the memory
_LOGIT_GAIN = 10.0  # logits of a perfectly coded voxel lie this far apart


def start_from_principal_components(network: LDSegNet, targets: Iterable[torch.Tensor]) -> float | None:
    """Set the linear paths of the label autoencoder and its tracked statistics; the layers start at zero.

    Args:
        network: not trained yet.
        targets: nnU-Net's, see `LDSegNet.forward`, on any device.

    Returns:
        The share of the boundary blocks' variance that the code holds; None where nothing was done: per-sample
        standardisation, blocks too large, no block fully annotated, or fewer boundary blocks than latent
        channels.
    """
    config = network.config
    if config.standardisation != "tracked" or network.num_classes * prod(config.latent_stride) > MAX_BLOCK_VALUES:
        return None
    blocks = torch.cat([_known_blocks(network, target) for target in targets])
    if not len(blocks):  # sparsely annotated: every block holds an ignored voxel
        return None
    per_class = blocks.reshape(len(blocks), network.num_classes, -1)
    boundary = blocks[(per_class.amin(2) != per_class.amax(2)).any(1)]
    if len(boundary) <= config.latent_channels:
        return None
    weights = _balance(boundary, network.num_classes)
    mean = weights @ boundary
    variances, vectors = torch.linalg.eigh(torch.cov(boundary.T, aweights=weights))  # in ascending order
    components = vectors[:, -config.latent_channels:].flip(1)  # (block values, c)
    _set(network, blocks, mean, components)
    return float(variances[-config.latent_channels:].sum() / variances.sum())


def _known_blocks(network: LDSegNet, target: torch.Tensor) -> torch.Tensor:
    """Some blocks of a batch, those with ignored voxels left out: they tell of the annotation, not of structures."""
    stride = network.config.latent_stride
    blocks = _blocks(network.label_channels(target).cpu(), stride)
    known = _blocks(network.known_voxels(target).float().cpu(), stride).all(1)
    blocks = blocks[known]
    return blocks[torch.randperm(len(blocks))[:_BLOCKS_PER_BATCH]]


def _balance(blocks: torch.Tensor, num_classes: int) -> torch.Tensor:
    """A weight for each block, summing to 1, by which every class weighs the same: the planner's analysis does so too,
    and so does the loss."""
    holds = blocks.reshape(len(blocks), num_classes, -1).amax(2) > 0
    weights = (holds / holds.sum(0).clamp(min=1)).sum(1)
    return weights / weights.sum()


def _blocks(channels: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """(B, K, *S) -> (blocks, K * prod(stride)), the order of a convolution's weights."""
    for axis, step in enumerate(stride):
        channels = channels.unfold(2 + axis, step, step)
    grid = range(2, 2 + len(stride))
    return channels.permute(0, *grid, 1, *(axis + len(stride) for axis in grid)).flatten(0, len(stride)).flatten(1)


@torch.no_grad()
def _set(network: LDSegNet, blocks: torch.Tensor, mean: torch.Tensor, components: torch.Tensor) -> None:
    encoder, decoder = network.label_encoder, network.label_decoder
    code = (blocks - mean) @ components
    standardise = encoder.standardise
    variance, centre = torch.var_mean(code, dim=0)
    standardise.mean.copy_(centre)
    standardise.variance.copy_(variance)
    standardise.updates.fill_(1 / standardise.momentum)
    shape = (components.shape[1], network.num_classes, *network.config.latent_stride)
    encoder.linear.load_state_dict({"weight": components.T.reshape(shape), "bias": -(mean @ components)})
    scale = (variance + standardise.variance_floor).sqrt()
    # a transposed convolution has one bias a class: the mean of the block's voxels
    rebuilt_mean = (mean + components @ centre).reshape(network.num_classes, -1).mean(1)
    decoder.linear.load_state_dict({"weight": _LOGIT_GAIN * (components * scale).T.reshape(shape),
                                    "bias": _LOGIT_GAIN * (rebuilt_mean - 0.5)})
    zeroed(encoder.body[-1])
    zeroed(decoder.body[-1])
