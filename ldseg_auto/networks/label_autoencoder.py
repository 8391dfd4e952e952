"""Label map <-> latent: the code in which diffusion happens."""

from __future__ import annotations

import torch
from torch import nn

from ldseg_auto.collectives import is_distributed, stacked
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
    alone. Batches of few labels have little variance of their own: how far apart their means lie counts too. The
    variance has a floor, so that a data set of nearly empty patches does not blow codes up. Of several processes that
    train together the batch is their joint one: in training mode all of them must come here together.
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

    def forward(self, code: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """(B, c, *grid) -> the same; in training mode the statistics move towards this batch's.

        Args:
            weight: (B, 1, *grid), how much each position counts in the statistics; all alike where None or where
                none counts.
        """
        code = code.float()
        if self.mode == "sample":
            mean, variance = _moments(code, weight, tuple(range(2, code.ndim)))
        else:
            if self.training:
                self._track(code.detach(), weight)
            shape = (1, -1, *[1] * (code.ndim - 2))
            mean, variance = self.mean.reshape(shape), self.variance.reshape(shape)
        return (code - mean) / (variance + self.variance_floor).sqrt()

    @torch.no_grad()
    def _track(self, code: torch.Tensor, weight: torch.Tensor | None) -> None:
        """One more batch in the moving mean and variance (Chan, Golub and LeVeque 1983, eq. 1.5, for batches that all
        weigh the same); not one where nothing counts, nor one with a number that is none, which would stay for ever."""
        mean, variance = (moment.flatten() for moment in _moments(code, weight, (0, *range(2, code.ndim))))
        total = weight.sum() if weight is not None else torch.full_like(mean[0], code.numel() / code.shape[1])
        if is_distributed():
            mean, variance, total = _joint_moments(mean, variance, total)
        counts = (mean + variance).isfinite().all() & (total > 0)  # no wait for the device here
        self.updates += counts
        # a plain average while there are few batches, so that the start does not linger
        share = counts * torch.clamp(1 / self.updates.clamp(min=1), min=self.momentum)
        mean, variance = torch.where(counts, mean, self.mean), torch.where(counts, variance, self.variance)
        shift = mean - self.mean
        self.variance.lerp_(variance, share).add_(share * (1 - share) * shift.square())
        self.mean.lerp_(mean, share)


def _moments(code: torch.Tensor, weight: torch.Tensor | None,
             axes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and variance over the axes, which stay with length 1."""
    if weight is None:
        variance, mean = torch.var_mean(code, dim=axes, keepdim=True, correction=0)
        return mean, variance
    weight = torch.where(weight.sum(axes, keepdim=True) > 0, weight, torch.ones_like(weight))
    share = weight / weight.sum(axes, keepdim=True)
    mean = (share * code).sum(axes, keepdim=True)
    return mean, (share * (code - mean).square()).sum(axes, keepdim=True)


def _joint_moments(mean: torch.Tensor, variance: torch.Tensor,
                   weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance (c) and weight () of each process's batch -> those of all batches as one."""
    weights, means, variances = stacked(torch.cat((weight.reshape(1), mean, variance))).split(
        [1, len(mean), len(mean)], dim=1)
    share = weights / weights.sum()
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), weights.sum()


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

    def forward(self, labels: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """(B, K, *S) -> (B, c, *S / f), float32; weight of each position in the statistics, (B, 1, *S / f)."""
        return self.standardise(self.body(labels) + self.linear(labels), weight)


class LabelDecoder(nn.Module):
    """Latent -> logits at full resolution, with a linear path like the encoder's.

    It never sees the image: that bottleneck is what resists noise. The last upsampling gives the logits: features at
    full resolution would take most of a pass's time and memory (measured: benchmarks/RESULTS.md).
    """

    def __init__(self, config: LDSegConfig, num_classes: int):
        super().__init__()
        strides = _level_strides(config)
        features = _level_features(config, len(strides))
        inputs = 2 * features[-1]  # most of the work is cheap on the latent's grid
        layers: list[nn.Module] = [conv3(config.conv_op, config.latent_channels, inputs),
                                   PlainResidualBlock(config.conv_op, inputs), activation()]
        for level in range(len(strides) - 1, 0, -1):
            layers += [upsample(config.conv_op, inputs, features[level], strides[level]), activation(),
                       conv3(config.conv_op, features[level], features[level]), activation()]
            inputs = features[level]
        layers.append(upsample(config.conv_op, inputs, num_classes, strides[0]) if strides
                      else conv3(config.conv_op, inputs, num_classes))
        self.linear = upsample(config.conv_op, config.latent_channels, num_classes, config.latent_stride)
        self.body = he_initialised(nn.Sequential(*layers))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, c, *S / f) -> logits (B, K, *S)."""
        return self.body(latent) + self.linear(latent)
