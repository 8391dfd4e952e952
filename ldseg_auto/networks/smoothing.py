"""Smoothing of the image before the network sees it: noise lies mostly where a latent cannot follow."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's usual name

_CUT_OFF = 3  # standard deviations


class GaussianSmoothing(nn.Module):
    """A fixed Gaussian over each channel, axis by axis; beyond the border the outermost voxels go on.

    Args:
        sigma: standard deviation in voxels, one for each spatial axis; an axis with 0 stays as it is.
    """

    def __init__(self, sigma: Sequence[float]):
        super().__init__()
        self.weights = [_gaussian(s) for s in sigma]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> the same shape."""
        for axis, weights in enumerate(self.weights):
            if len(weights) == 1:
                continue
            radius, size = len(weights) // 2, image.shape[2 + axis]
            sides = [(radius, radius) if other == axis else (0, 0) for other in range(len(self.weights))]
            padded = F.pad(image, [n for side in reversed(sides) for n in side], mode="replicate")
            image = weights[0] * padded.narrow(2 + axis, 0, size)
            for start, weight in enumerate(weights[1:], 1):
                image.add_(padded.narrow(2 + axis, start, size), alpha=weight)
        return image


def _gaussian(sigma: float) -> list[float]:
    """Weights at whole voxels, which add up to 1."""
    radius = ceil(_CUT_OFF * sigma)
    weights = [exp(-0.5 * (x / sigma) ** 2) if sigma else 1.0 for x in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]
