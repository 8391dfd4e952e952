"""Segmentation heads on the condition, used in training only: the counterpart of nnU-Net's deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ldseg_auto.networks.blocks import ConvOp, upsample


class ConditionHeads(nn.Module):
    """One linear head a scale, from the latent's grid down; each turns a position into a block of logits.

    A block has as many positions as the latent's stride has voxels: the finest head ends at full resolution, a head
    on features twice as coarse ends at half of it.

    Args:
        features: channels of each scale.
        num_classes: K.
        latent_stride: voxels per position of the finest scale, per axis.
    """

    def __init__(self, conv_op: ConvOp, features: Sequence[int], num_classes: int, latent_stride: Sequence[int]):
        super().__init__()
        self.heads = nn.ModuleList(upsample(conv_op, width, num_classes, latent_stride) for width in features)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features of each scale -> logits (B, K, *S), then (B, K, *coarser grids)."""
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]
