"""The segmentation of a cascade's first stage as part of the condition."""

from __future__ import annotations

import torch
from torch import nn

from ldseg_auto.config import LDSegConfig


class PreviousStageCondition(nn.Module):
    """One-hot channels of the image -> condition channels, block by block, as the label encoder's linear path.

    The channels go through the image encoder too, as nnU-Net has it, but normalised by tile: what is the same all over
    a tile, a tile inside a large structure, is taken away by the first normalisation, and it is just there that the
    first stage knows what the tile does not show (tests/networks/test_previous_stage.py). Here nothing is normalised.
    """

    def __init__(self, config: LDSegConfig, condition_channels: int):
        super().__init__()
        self.channels = config.previous_stage_channels
        self.blocks = config.conv_op(self.channels, condition_channels, config.latent_stride, config.latent_stride)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, *S), the last channels one-hot -> (B, d, *S / f)."""
        return self.blocks(image[:, -self.channels:])
