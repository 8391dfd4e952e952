"""Label map <-> latent: the code in which diffusion happens."""

from __future__ import annotations

import torch
from torch import nn

from ldseg_auto.config import LDSegConfig
from ldseg_auto.networks.blocks import PlainResidualBlock, activation, conv3, he_initialised, upsample

_MIN_FEATURES = 16


def _level_strides(config: LDSegConfig) -> list[tuple[int, ...]]:
    """Strides from full resolution to the latent's grid, steps without a stride left out."""
    strides = config.strides[:config.latent_stage + 1]
    return [s for s in strides if any(v > 1 for v in s)]


def _level_features(config: LDSegConfig, levels: int) -> list[int]:
    """Widths from full resolution to the latent's grid: halved with every level away from it."""
    return [max(_MIN_FEATURES, config.label_features // 2 ** (levels - i)) for i in range(levels + 1)]


class LatentStandardisation(nn.Module):
    """Zero mean and unit variance for each latent channel.

    "tracked": by statistics of the training codes, averaged over iterations; a code then depends on its labels
    alone. The variance has a floor, so that a data set of nearly empty patches does not blow codes up.
    "sample": by each sample's own statistics, as published (LDSeg); they depend on what the tile holds.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    updates: torch.Tensor

    def __init__(self, mode: str, channels: int, momentum: float = 0.02, variance_floor: float = 1e-2):
        super().__init__()
        self.mode = mode
        self.momentum = momentum
        self.variance_floor = variance_floor
        if mode == "tracked":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("variance", torch.ones(channels))
            self.register_buffer("updates", torch.zeros(()))

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """(B, c, *grid) -> the same; in training mode the statistics move towards this batch's."""
        axes = [0, *range(2, code.ndim)]
        if self.mode == "sample":
            variance, mean = torch.var_mean(code.float(), dim=axes[1:], keepdim=True, correction=0)
        else:
            if self.training:
                self._track(code.detach().float(), axes)
            shape = (1, -1, *[1] * (code.ndim - 2))
            mean, variance = self.mean.reshape(shape), self.variance.reshape(shape)
        return (code.float() - mean) / (variance + self.variance_floor).sqrt()

    @torch.no_grad()
    def _track(self, code: torch.Tensor, axes: list[int]) -> None:
        variance, mean = torch.var_mean(code, dim=axes, correction=0)
        # one batch with a number that is none would stay in the statistics for ever; no wait for the device here
        finite = (mean + variance).isfinite().all()
        # a plain average while there are few batches, so that the start does not linger
        self.updates += finite
        weight = torch.clamp(1 / self.updates.clamp(min=1), min=self.momentum)
        self.mean.copy_(torch.where(finite, torch.lerp(self.mean, mean, weight), self.mean))
        self.variance.copy_(torch.where(finite, torch.lerp(self.variance, variance, weight), self.variance))


class LabelEncoder(nn.Module):
    """One-hot (or multi-hot) labels -> standardised latent.

    Beside the layers runs a linear path, block by block, as a principal component analysis would code the labels: it
    is learned within a few dozen iterations (measured: benchmarks/RESULTS.md), the layers refine it.
    """

    def __init__(self, config: LDSegConfig, num_classes: int):
        super().__init__()
        strides = _level_strides(config)
        features = _level_features(config, len(strides))
        layers: list[nn.Module] = []
        inputs = num_classes
        for stride, outputs in zip(strides, features[1:], strict=True):
            layers += [conv3(config.conv_op, inputs, outputs, stride), activation()]
            inputs = outputs
        if not strides:
            layers.append(conv3(config.conv_op, inputs, features[-1]))
        layers += [PlainResidualBlock(config.conv_op, features[-1]),
                   config.conv_op(features[-1], config.latent_channels, 1)]
        self.body = he_initialised(nn.Sequential(*layers))
        self.linear = config.conv_op(num_classes, config.latent_channels, config.latent_stride, config.latent_stride)
        self.standardise = LatentStandardisation(config.standardisation, config.latent_channels)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, K, *S) -> (B, c, *S / f), float32."""
        return self.standardise(self.body(labels) + self.linear(labels))


class LabelDecoder(nn.Module):
    """Latent -> logits at full resolution, with a linear path like the encoder's.

    It never sees the image: that bottleneck is what resists noise.
    """

    def __init__(self, config: LDSegConfig, num_classes: int):
        super().__init__()
        strides = _level_strides(config)
        features = _level_features(config, len(strides))
        widest = 2 * features[-1]  # most of the work is cheap on the latent's grid
        layers: list[nn.Module] = [conv3(config.conv_op, config.latent_channels, widest),
                                   PlainResidualBlock(config.conv_op, widest), activation()]
        inputs = widest
        for level in range(len(strides) - 1, -1, -1):
            layers += [upsample(config.conv_op, inputs, features[level], strides[level]), activation()]
            inputs = features[level]
            if level > 0:
                layers += [conv3(config.conv_op, inputs, inputs), activation()]
        layers.append(conv3(config.conv_op, inputs, num_classes))
        self.linear = upsample(config.conv_op, config.latent_channels, num_classes, config.latent_stride)
        self.body = he_initialised(nn.Sequential(*layers))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, c, *S / f) -> logits (B, K, *S)."""
        return self.body(latent) + self.linear(latent)
