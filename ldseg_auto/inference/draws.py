"""What is added up of each draw: its probabilities, and what maps of uncertainty are made of."""

from __future__ import annotations

import torch

from ldseg_auto.inference.uncertainty import torch_entropy
from ldseg_auto.networks.ldseg_net import LDSegNet


def channels_of(network: LDSegNet, spread: bool) -> int:
    """Of `summands`."""
    return 2 * network.num_classes + 1 if spread else network.num_classes


def summands(network: LDSegNet, probabilities: torch.Tensor, spread: bool) -> torch.Tensor:
    """Probabilities (K, *S); for maps of uncertainty behind them their squares and their entropy, (2 K + 1, *S)."""
    if not spread:
        return probabilities
    entropy = torch_entropy(probabilities, network.config.output == "sigmoid")
    return torch.cat([probabilities, probabilities ** 2, entropy[None]])


def voxels_of(network: LDSegNet, probabilities: torch.Tensor, share: torch.Tensor,
              inside: tuple[slice, ...]) -> torch.Tensor:
    """Voxels that a draw's segmentation of a tile gives to each label or region, (K,).

    Args:
        probabilities: (K, *patch).
        share: by which each voxel counts, see `RowAccumulator.share`.
        inside: the tile without the padding.
    """
    if network.config.output == "softmax":
        segmented = torch.nn.functional.one_hot(probabilities.argmax(0), len(probabilities)).movedim(-1, 0).bool()
    else:
        segmented = probabilities > 0.5
    there = segmented.reshape(len(segmented), *share.shape)[(slice(None), *inside)]
    return (there * share[inside].to(there.device)).flatten(1).sum(1, dtype=torch.float64).cpu()
