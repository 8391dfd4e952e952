"""(z_t, t, condition) -> the denoiser's output, on the latent's grid only."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's usual name

from ldseg_auto.config import LDSegConfig
from ldseg_auto.networks.blocks import ConvOp, SelfAttention, TimedResidualBlock, TimeEmbedding, conv3, group_norm


class _Level(nn.Module):
    """Residual blocks of one width, one after the other."""

    def __init__(self, conv_op: ConvOp, features: int, embedding: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(TimedResidualBlock(conv_op, features, features, embedding) for _ in range(blocks))

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class Denoiser(nn.Module):
    """A small U-Net with time embedding and attention at its lowest level.

    Condition and, where z_0 is predicted, z_t also reach the output directly, each as far as it can tell z_0: at
    t = T, where z_t holds nothing, the estimate is a function of the condition alone, near t = 0 it is z_t. The image
    encoder then learns without the U-Net in between, and the denoiser cannot overlook z_t.
    """

    def __init__(self, config: LDSegConfig, condition_channels: int):
        super().__init__()
        conv_op, widths = config.conv_op, config.denoiser_features
        embedding = 4 * widths[0]
        self.time = TimeEmbedding(embedding, config.timesteps)
        self.from_latent = conv3(conv_op, config.latent_channels, widths[0])
        self.from_condition = conv_op(condition_channels, widths[0], 1)
        self.direct = conv_op(condition_channels, config.latent_channels, 1)
        self.trust = nn.Parameter(torch.full((config.latent_channels,), 0.5)) if config.prediction == "x0" else None
        self.down = nn.ModuleList(_Level(conv_op, width, embedding, config.denoiser_blocks) for width in widths)
        self.shrink = nn.ModuleList(conv3(conv_op, widths[i], widths[i + 1], 2) for i in range(len(widths) - 1))
        self.attention = SelfAttention(conv_op, widths[-1])
        self.widen = nn.ModuleList(conv_op(widths[i + 1], widths[i], 1) for i in range(len(widths) - 1))
        self.up = nn.ModuleList(_Level(conv_op, width, embedding, config.denoiser_blocks) for width in widths[:-1])
        self.out = nn.Sequential(group_norm(widths[0]), nn.SiLU(), conv3(conv_op, widths[0], config.latent_channels))

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor,
                signal: torch.Tensor) -> torch.Tensor:
        """z_t (B, c, *grid), t (B,), condition (B, d, *grid), alpha_bar_t (B,) -> (B, c, *grid)."""
        embedding = self.time(timestep)
        h = self.from_latent(noisy) + self.from_condition(condition)
        skips = []
        for i, level in enumerate(self.down):
            h = level(h, embedding)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        h = self.attention(h)
        for i in range(len(self.up) - 1, -1, -1):
            skip = skips[i]
            # grids need not be divisible by two
            h = skip + F.interpolate(self.widen[i](h), size=skip.shape[2:], mode="nearest")
            h = self.up[i](h, embedding)
        return self.out(h) + self._directly(noisy, condition, signal)

    def _directly(self, noisy: torch.Tensor, condition: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        per_sample = (-1, *[1] * (noisy.ndim - 1))
        from_condition = (1 - signal).sqrt().reshape(per_sample) * self.direct(condition)
        if self.trust is None:
            return from_condition
        return from_condition + signal.sqrt().reshape(per_sample) * self.trust.reshape(1, *per_sample[:-1]) * noisy
