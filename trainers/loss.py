"""The training loss: three segmentation terms by nnU-Net's own loss and the denoising term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's usual name

from ldseg_auto.networks.ldseg_net import TrainingOutput


@dataclass(frozen=True)
class LossWeights:
    """L = estimate * segmentation(decode(z_0 estimate), y) + denoising * MSE(denoiser output, its target)
    + coding * segmentation(decode(z_0), y) + heads * sum over scales of segmentation(head(condition), y).

    In the design: lambda is `denoising`, rho is `coding`, kappa is `heads`.
    """

    estimate: float = 1.0
    denoising: float = 0.1
    coding: float = 1.0
    heads: float = 1.0


class LatentDiffusionLoss(nn.Module):
    """Adds up the terms of `LossWeights`.

    Args:
        segmentation: nnU-Net's loss of logits (B, K, *S) against nnU-Net's target.
        weights: of the terms.
    """

    def __init__(self, segmentation: nn.Module, weights: LossWeights):
        super().__init__()
        self.segmentation = segmentation
        self.weights = weights

    def forward(self, output: TrainingOutput | torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a training output; of logits alone (validation) the segmentation loss."""
        if isinstance(output, torch.Tensor):
            return self.segmentation(output, target)
        weights = self.weights
        loss = weights.estimate * self.segmentation(output.estimate_logits, target)
        loss = loss + weights.denoising * F.mse_loss(output.denoiser_output, output.denoiser_target)
        loss = loss + weights.coding * self.segmentation(output.coding_logits, target)
        scale_weights = [0.5 ** i for i in range(len(output.head_logits))]  # as nnU-Net weighs deep supervision
        for weight, logits in zip(scale_weights, output.head_logits, strict=True):
            loss = loss + weights.heads * weight / sum(scale_weights) * self.segmentation(
                logits, _at_grid(target, logits.shape[2:]))
        return loss


def _at_grid(target: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Nearest neighbour, as nnU-Net makes the targets of its deep supervision."""
    if target.shape[2:] == grid:
        return target
    return F.interpolate(target.float(), size=tuple(grid), mode="nearest").to(target.dtype)
