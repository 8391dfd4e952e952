"""Building blocks on the latent's grid and below; `conv_op` (nn.Conv2d or nn.Conv3d) decides the dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's usual name

_Module = TypeVar("_Module", bound=nn.Module)
ConvOp = Callable[..., nn.Module]  # nn.Conv2d or nn.Conv3d


def conv3(conv_op: ConvOp, inputs: int, outputs: int, stride: Sequence[int] | int = 1) -> nn.Module:
    """Kernel 3 on every axis, size kept (divided by the stride)."""
    return conv_op(inputs, outputs, 3, tuple(stride) if isinstance(stride, Sequence) else stride, padding=1)


def upsample(conv_op: ConvOp, inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Each position becomes a block of the stride's size, with weights of its own (no overlap, so no checkerboard)."""
    return get_matching_convtransp(conv_op)(inputs, outputs, tuple(stride), tuple(stride))


def activation() -> nn.Module:
    """nnU-Net's, for the parts without normalisation."""
    return nn.LeakyReLU()


def he_initialised(module: _Module) -> _Module:
    """Convolutions whose outputs have the variance of their inputs (He 1502.01852): torch's default lets the signal
    of a deep network without normalisation fade, and its training starts late."""
    for part in module.modules():
        if isinstance(part, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
            # kernel and stride are equal: each output has one tap per input channel
            nn.init.normal_(part.weight, std=math.sqrt(2 / part.in_channels))
        elif isinstance(part, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight, a=1e-2)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    return module


def zeroed(module: nn.Module) -> nn.Module:
    """All parameters set to zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PlainResidualBlock(nn.Module):
    """Two convolutions with a shortcut and without normalisation.

    Normalisation over space would make a code depend on how much of a structure the tile holds; here a code depends
    on its neighbourhood alone.
    """

    def __init__(self, conv_op: ConvOp, features: int):
        super().__init__()
        self.body = nn.Sequential(activation(), conv3(conv_op, features, features), activation(),
                                  conv3(conv_op, features, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class TimedResidualBlock(nn.Module):
    """Residual block whose features are scaled and shifted by the time embedding (Dhariwal & Nichol 2105.05233)."""

    def __init__(self, conv_op: ConvOp, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm_in = group_norm(inputs)
        self.conv_in = conv3(conv_op, inputs, outputs)
        self.modulation = zeroed(nn.Linear(embedding, 2 * outputs))
        self.norm_out = group_norm(outputs)
        self.conv_out = zeroed(conv3(conv_op, outputs, outputs))
        self.shortcut = nn.Identity() if inputs == outputs else conv_op(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x: (B, inputs, *grid), embedding: (B, embedding) -> (B, outputs, *grid)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding).reshape(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = self.norm_out(h) * (1 + scale) + shift
        return self.shortcut(x) + self.conv_out(F.silu(h))


class SelfAttention(nn.Module):
    """Multi-head attention over all positions of the grid, with a shortcut."""

    def __init__(self, conv_op: ConvOp, features: int, heads: int = 4):
        super().__init__()
        self.heads = heads if features % heads == 0 else 1
        self.norm = group_norm(features)
        self.qkv = conv_op(features, 3 * features, 1)
        self.out = zeroed(conv_op(features, features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, features, *grid) -> the same."""
        qkv = self.qkv(self.norm(x)).reshape(len(x), 3, self.heads, -1, math.prod(x.shape[2:]))
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)  # each (B, heads, positions, features / heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        return x + self.out(mixed)


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep (Ho 2006.11239, appendix B), then a small network."""

    frequencies: torch.Tensor

    def __init__(self, features: int, timesteps: int):
        super().__init__()
        self.scale = 1000 / timesteps  # the frequencies suit a range of 0 to 1000
        frequencies = torch.exp(-math.log(10000) * torch.arange(features // 2) / (features // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """(B,) integers -> (B, features)."""
        angle = timestep[:, None].to(self.frequencies.dtype) * self.scale * self.frequencies
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class _ByGroups:
    """Instance normalisation as the group normalisation with one channel a group that it is: on a CPU torch's kernel
    for the latter keeps the layout of its input, and is quicker."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = cast(nn.InstanceNorm3d, self)
        if x.device.type != "cpu" or norm.track_running_stats:
            return super().forward(x)  # type: ignore[misc]
        return F.group_norm(x, norm.num_features, norm.weight, norm.bias, norm.eps)


class InstanceNorm2d(_ByGroups, nn.InstanceNorm2d):
    """nn.InstanceNorm2d with another kernel."""


class InstanceNorm3d(_ByGroups, nn.InstanceNorm3d):
    """nn.InstanceNorm3d with another kernel."""


QUICKER_NORMS: dict[Any, Any] = {nn.InstanceNorm2d: InstanceNorm2d, nn.InstanceNorm3d: InstanceNorm3d}


def group_norm(features: int) -> nn.GroupNorm:
    """Up to 8 groups, as many as divide the features."""
    return nn.GroupNorm(math.gcd(8, features), features)
