"""The training loss: three segmentation terms by nnU-Net's own loss and the denoising term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's usual name

from ldseg_auto.collectives import is_distributed, mean_over_ranks
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
    """Adds up the terms of `LossWeights`; none of them depends on what a network says where labels are ignored.

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
            return self._segmentation(output, target)
        terms: dict[str, Callable[[], torch.Tensor]] = {
            "estimate": lambda: self._segmentation(output.estimate_logits, target),
            "denoising": lambda: denoising_error(output),
            "coding": lambda: self._segmentation(output.coding_logits, target),
            "heads": lambda: self._of_heads(output.head_logits, target)}
        weighted = [(getattr(self.weights, name), term) for name, term in terms.items()]
        # of several processes each parameter must get a gradient, be it zero, or DDP waits for it
        return torch.stack([weight * term() for weight, term in weighted if weight or is_distributed()]).sum()

    def _segmentation(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """In 32 bits: on a CPU autocast would leave sums over the volume at 16."""
        return self.segmentation(logits.float(), target)

    def _of_heads(self, head_logits: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Mean over scales, each half the weight of the one before, as nnU-Net weighs deep supervision."""
        weights = [0.5 ** i for i in range(len(head_logits))]
        return torch.stack([weight / sum(weights) * self._segmentation(logits, _at_grid(target, logits.shape[2:]))
                            for weight, logits in zip(weights, head_logits, strict=True)]).sum()


def denoising_error(output: TrainingOutput) -> torch.Tensor:
    """Mean square of the denoiser's error. A position counts by the share of its voxels that is known: what the code
    of unknown voxels should be, nobody said. 0 where none is known. Of several processes the mean over their errors is
    that of the joint batch."""
    if output.known_share is None:
        return F.mse_loss(output.denoiser_output, output.denoiser_target)
    squares = (output.denoiser_output - output.denoiser_target).square().mean(1, keepdim=True)
    total = mean_over_ranks(output.known_share.sum())
    return (output.known_share * squares).sum() / torch.where(total > 0, total, torch.ones_like(total))


def _at_grid(target: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Nearest neighbour, as nnU-Net makes the targets of its deep supervision."""
    if target.shape[2:] == grid:
        return target
    return F.interpolate(target.float(), size=tuple(grid), mode="nearest").to(target.dtype)
