"""Feature-map elements and multiply-adds of LDSegNet, part by part, from formulas.

Elements are counted as nnU-Net counts them (outputs of convolutions, one sample), so that its reference figures,
560e6 elements at batch 2 for 8 GB in 3D and 85e6 at batch 12 in 2D, keep their meaning. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from ldseg_auto.config import LDSegConfig

# In training the label decoder runs on the true z_0 and on its estimate; all other parts run once.
PASSES = {"image_encoder": 1, "top_down": 1, "heads": 1, "label_encoder": 1, "label_decoder": 2, "denoiser": 1}
DENOISER_WIDTHS = (32, 48, 64, 96, 128, 192, 256)
MAX_ATTENTION_POSITIONS = 4096  # at the denoiser's lowest level
DENOISER_SHARE = 1 / 10  # of the image encoder, per call: the 10 of 5 samples x 2 steps cost no more than the encoder


class Cost(NamedTuple):
    """Of one pass for one sample."""

    elements: int  # values in outputs of convolutions
    multiply_adds: int

    def __add__(self, other):  # type: ignore[override]
        return Cost(self.elements + other.elements, self.multiply_adds + other.multiply_adds)


def network_cost(config: LDSegConfig, patch: Sequence[int], num_inputs: int, num_heads: int) -> dict[str, Cost]:
    """Cost of each part of the network.

    Args:
        config: of the network.
        patch: voxels per axis.
        num_inputs: image channels.
        num_heads: label channels.

    Returns:
        part (the keys of `PASSES`) -> cost of one pass with one sample.
    """
    patch = tuple(int(p) for p in patch)
    return {
        "image_encoder": _image_encoder(config, patch, num_inputs),
        "top_down": _top_down(config, patch),
        "heads": _heads(config, patch, num_heads),
        "label_encoder": _label_encoder(config, patch, num_heads),
        "label_decoder": _label_decoder(config, patch, num_heads),
        "denoiser": _denoiser(config, patch),
    }


def training_elements(costs: dict[str, Cost]) -> int:
    """Feature-map elements of one training step with one sample."""
    return sum(PASSES[part] * cost.elements for part, cost in costs.items())


def choose_denoiser_features(config: LDSegConfig, patch: Sequence[int], num_inputs: int, num_heads: int,
                             share: float = DENOISER_SHARE) -> tuple[tuple[int, ...], float]:
    """The widest denoiser that costs at most `share` of the image encoder's multiply-adds per call.

    A prediction runs the encoder once per tile and the denoiser samples x steps times, so a wide denoiser decides
    the time; the narrowest width is taken where even that costs more. There are two levels, and more on a large grid:
    attention at the lowest one costs the square of its positions.

    Returns:
        the width of each level (doubled from level to level), and the share they take.
    """
    levels, grid = 2, _halved(grid_size(patch, config.latent_stride))
    while prod(grid) > MAX_ATTENTION_POSITIONS:
        levels, grid = levels + 1, _halved(grid)
    shares = {}
    for width in DENOISER_WIDTHS:
        widths = tuple(width * 2 ** level for level in range(levels))
        costs = network_cost(replace(config, denoiser_features=widths), patch, num_inputs, num_heads)
        shares[widths] = costs["denoiser"].multiply_adds / costs["image_encoder"].multiply_adds
    chosen = max((w for w in shares if shares[w] <= share), default=min(shares))
    return chosen, shares[chosen]


def _halved(grid: Sequence[int]) -> tuple[int, ...]:
    return tuple((edge + 1) // 2 for edge in grid)


def memory_gb(elements: float, batch_size: int, reference_elements: float, reference_batch_size: int,
              reference_gb: float) -> float:
    """Memory in GB by proportion to a measured reference.

    Args:
        elements: of one sample (`training_elements`).
        batch_size: samples per step.
        reference_elements: of one sample of the reference network.
        reference_batch_size: samples per step of the reference.
        reference_gb: what the reference needs.
    """
    return elements * batch_size / (reference_elements * reference_batch_size) * reference_gb


def grid_size(patch: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Positions per axis of the grid with this stride."""
    return tuple(int(p) // int(s) for p, s in zip(patch, stride, strict=True))


def _conv(grid: Sequence[int], inputs: int, outputs: int, kernel: Sequence[int] | None = None, times: int = 1) -> Cost:
    """`times` equal convolutions with output on `grid`; `kernel` None is 3 along every axis."""
    elements = prod(grid) * outputs
    return Cost(times * elements, times * elements * inputs * (3 ** len(grid) if kernel is None else prod(kernel)))


def _pointwise(grid: Sequence[int], inputs: int, outputs: int) -> Cost:
    """Kernel 1; also a transposed convolution with kernel = stride: each output comes from one position."""
    return _conv(grid, inputs, outputs, (1,))


def _image_encoder(config: LDSegConfig, patch: tuple[int, ...], num_inputs: int) -> Cost:
    """nnU-Net's plain or residual encoder at full depth."""
    cost = Cost(0, 0)
    inputs = num_inputs
    if config.encoder == "residual":  # its stem
        inputs = config.features_per_stage[0]
        cost += _conv(patch, num_inputs, inputs, config.kernel_sizes[0])
    for stride, width, kernel, number in zip(config.cumulative_strides(), config.features_per_stage,
                                             config.kernel_sizes, config.n_conv_per_stage, strict=True):
        grid = grid_size(patch, stride)
        convs = number if config.encoder == "plain" else 2 * number
        cost += _conv(grid, inputs, width, kernel) + _conv(grid, width, width, kernel, convs - 1)
        if config.encoder == "residual" and inputs != width:
            cost += _pointwise(grid, inputs, width)  # the shortcut of the stage's first block
        inputs = width
    return cost


def _top_down(config: LDSegConfig, patch: tuple[int, ...]) -> Cost:
    """From the deepest stage up to the latent's: upsampling, skip, two convolutions per stage, as nnU-Net's decoder."""
    cost = Cost(0, 0)
    strides = config.cumulative_strides()
    for stage in range(config.latent_stage, config.n_stages - 1):
        grid, kernel = grid_size(patch, strides[stage]), config.kernel_sizes[stage]
        width = config.features_per_stage[stage]
        cost += _pointwise(grid, config.features_per_stage[stage + 1], width)
        cost += _conv(grid, 2 * width, width, kernel) + _conv(grid, width, width, kernel)
    return cost


def _heads(config: LDSegConfig, patch: tuple[int, ...], num_heads: int) -> Cost:
    """One transposed convolution per stage from the latent's down; each position becomes a block of logits."""
    cost = Cost(0, 0)
    for stride, width in list(zip(config.cumulative_strides(), config.features_per_stage,
                                  strict=True))[config.latent_stage:]:
        blocks = prod(grid_size(patch, stride))
        cost += _pointwise((blocks, prod(config.latent_stride)), width, num_heads)
    return cost


def _label_levels(config: LDSegConfig) -> list[tuple[tuple[int, ...], int]]:
    """(cumulative stride, width) of the label autoencoder from full resolution to the latent, each grid once."""
    ones = tuple(1 for _ in config.latent_stride)
    path = list(dict.fromkeys([ones, *config.cumulative_strides()[:config.latent_stage + 1]]))
    return [(stride, max(16, config.label_features // 2 ** (len(path) - 1 - level)))
            for level, stride in enumerate(path)]


def _label_encoder(config: LDSegConfig, patch: tuple[int, ...], num_heads: int) -> Cost:
    """One strided convolution per level, then a residual block of two convolutions and the projection to z_0; beside
    them the linear path."""
    cost = Cost(0, 0)
    inputs = num_heads
    levels = _label_levels(config)
    for stride, width in levels[1:] or levels:
        cost += _conv(grid_size(patch, stride), inputs, width)
        inputs = width
    grid = grid_size(patch, config.latent_stride)
    linear = _conv(grid, num_heads, config.latent_channels, config.latent_stride)
    return cost + _conv(grid, inputs, inputs, times=2) + _pointwise(grid, inputs, config.latent_channels) + linear


def _label_decoder(config: LDSegConfig, patch: tuple[int, ...], num_heads: int) -> Cost:
    """A convolution and a residual block at the latent's grid, then upsampling and a convolution per level; beside
    them the linear path."""
    levels = _label_levels(config)
    inputs = 2 * levels[-1][1]
    grid = grid_size(patch, config.latent_stride)
    cost = _conv(grid, config.latent_channels, inputs) + _conv(grid, inputs, inputs, times=2)
    for level in range(len(levels) - 2, -1, -1):
        stride, width = levels[level]
        cost += _pointwise(grid_size(patch, stride), inputs, width)
        if level:
            cost += _conv(grid_size(patch, stride), width, width)
        inputs = width
    linear = _pointwise((prod(grid), prod(config.latent_stride)), config.latent_channels, num_heads)
    return cost + _conv(patch, inputs, num_heads) + linear


def _denoiser(config: LDSegConfig, patch: tuple[int, ...]) -> Cost:
    """U-Net on the latent grid, conditioned by a sum, with attention at its lowest level."""
    widths, channels = config.denoiser_features, config.latent_channels
    condition = config.features_per_stage[config.latent_stage]
    grids = [grid_size(patch, config.latent_stride)]
    for _ in widths[1:]:
        grids.append(_halved(grids[-1]))
    cost = _conv(grids[0], channels, widths[0]) + _conv(grids[0], widths[0], channels)
    cost += _pointwise(grids[0], condition, widths[0]) + _pointwise(grids[0], condition, channels)
    for level, (grid, width) in enumerate(zip(grids, widths, strict=True)):
        directions = 1 if level == len(widths) - 1 else 2  # blocks on the way down, and up except at the lowest
        cost += _conv(grid, width, width, times=2 * config.denoiser_blocks * directions)
        if level:
            cost += _conv(grid, widths[level - 1], width) + _pointwise(grid, width, widths[level - 1])
    positions, lowest = prod(grids[-1]), widths[-1]
    attention = Cost(0, 2 * positions ** 2 * lowest)  # its matrix is not stored (scaled_dot_product_attention)
    return cost + attention + _pointwise(grids[-1], lowest, 3 * lowest) + _pointwise(grids[-1], lowest, lowest)
