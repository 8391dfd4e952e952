"""Feature-map elements, multiply-adds, parameters and memory of LDSegNet, part by part, from formulas.

Elements are counted as nnU-Net counts them: outputs of convolutions, one sample. Memory is that of all tensors a step
holds at its peak; `ldseg_auto.evaluation.peak_memory` counts the same by running the step, and benchmarks/RESULTS.md
has both for many plans. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from ldseg_auto.config import LDSegConfig

# In training the label decoder runs on the true z_0 and on its estimate; all other parts run once.
PASSES = {"image_encoder": 1, "top_down": 1, "heads": 1, "label_encoder": 1, "label_decoder": 2, "denoiser": 1}
DENOISER_WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
MAX_ATTENTION_POSITIONS = 4096  # at the denoiser's lowest level
DENOISER_SHARE = 1 / 6  # of the image encoder, per call
MAX_DENOISER_PARAMETERS = 0.5  # of the image encoder's

# Fitted to peaks counted by running training steps (benchmarks/memory.py), in 32 bits and under autocast to 16.
_BYTES_PER_ELEMENT = {False: 8.42, True: 4.52}  # a convolution's output is kept twice: before and after its activation
_BYTES_PER_LOGIT = {False: 12.9, True: 16.6}  # softmax, its logarithm and the one-hot labels are kept in 32 bits
_BYTES_PER_PARAMETER = {False: 16, True: 18}  # the weight, its average and two moments; autocast's copy
# Share of the memory a GPU needs, by nnU-Net's measurement of its own U-Net, that the same count finds in tensors: the
# rest is the device's (context, workspaces, fragments). By number of spatial axes.
TENSOR_SHARE = {2: 0.67, 3: 0.77}


class Cost(NamedTuple):
    """Of one pass for one sample."""

    elements: int  # values in outputs of convolutions
    multiply_adds: int
    parameters: int = 0  # of convolutions

    def __add__(self, other):  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


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
        "image_encoder": sum(_encoder_stages(config, patch, num_inputs), Cost(0, 0)),
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
    """The widest denoiser that costs at most `share` of the image encoder's multiply-adds per call (its way up to the
    latent's stage included), and holds at most `MAX_DENOISER_PARAMETERS` of its parameters.

    A prediction runs the encoder once per tile and the denoiser samples x steps times, so a wide denoiser decides
    the time; on a small grid it would cost no time but most of the weights. The narrowest width is taken where even
    that is above. There are two levels, and more on a large grid: attention at the lowest one costs the square of its
    positions.

    Returns:
        the width of each level (doubled from level to level), and the share they take.
    """
    levels, grid = 2, _halved(grid_size(patch, config.latent_stride))
    while prod(grid) > MAX_ATTENTION_POSITIONS:
        levels, grid = levels + 1, _halved(grid)
    parts = network_cost(config, patch, num_inputs, num_heads)
    encoder = parts["image_encoder"] + parts["top_down"]
    costs = {}
    for width in DENOISER_WIDTHS:
        widths = tuple(width * 2 ** level for level in range(levels))
        costs[widths] = _denoiser(replace(config, denoiser_features=widths), tuple(int(p) for p in patch))
    chosen = max((widths for widths, cost in costs.items() if cost.multiply_adds <= share * encoder.multiply_adds
                  and cost.parameters <= MAX_DENOISER_PARAMETERS * encoder.parameters), default=min(costs))
    return chosen, costs[chosen].multiply_adds / encoder.multiply_adds


def _halved(grid: Sequence[int]) -> tuple[int, ...]:
    return tuple((edge + 1) // 2 for edge in grid)


def training_bytes(config: LDSegConfig, patch: Sequence[int], batch_size: int, num_inputs: int, num_heads: int,
                   half: bool = True) -> float:
    """Peak memory of a training step: what all its tensors hold together.

    Args:
        config: of the network.
        patch: voxels per axis.
        batch_size: samples.
        num_inputs: image channels.
        num_heads: label channels.
        half: under autocast to 16 bits, as on a GPU.
    """
    costs = network_cost(config, patch, num_inputs, num_heads)
    logits = costs["heads"].elements + num_heads * prod(patch)
    convolved = training_elements(costs) - costs["heads"].elements
    fixed = sum(cost.parameters for cost in costs.values()) * _BYTES_PER_PARAMETER[half]
    return fixed + batch_size * (convolved * _BYTES_PER_ELEMENT[half] + logits * _BYTES_PER_LOGIT[half])


def prediction_bytes(config: LDSegConfig, patch: Sequence[int], images: int, num_inputs: int, num_heads: int,
                     half: bool = True) -> float:
    """Peak memory of encoding, sampling and decoding `images` tiles at once, the volume's own arrays not counted.

    Either a stage of the encoder decides, with the input of its first convolution and the skips from the latent's stage
    on, or the way up to the latent's stage, or the decoder's full resolution.
    Arguments as for training.
    """
    value, voxels = (2 if half else 4), prod(int(p) for p in patch)
    stages = _encoder_stages(config, tuple(int(p) for p in patch), num_inputs)
    held, cast, encoder, before = 0.0, 0.0, 0.0, 0.0
    for level, (stage, width, cost, number) in enumerate(zip(config.cumulative_strides(), config.features_per_stage,
                                                             stages, config.n_conv_per_stage, strict=True)):
        # convolution, norm, and from the second one on the convolution's input; a residual block's shortcut, and from
        # the second block on the block's input
        at_once = 2 + (number > 1) if config.encoder == "plain" else 4 + (number > 1)
        values = images * width * prod(grid_size(patch, stage))
        cast += 2 * cost.parameters if half else 0  # autocast keeps its copies of the weights
        encoder = max(encoder, value * (held + before + at_once * values) + cast)
        if level >= config.latent_stage:
            held, before = held + values, 0.0
        else:
            before = values  # held until the next stage is done
    costs = network_cost(config, patch, num_inputs, num_heads)
    cast += 2 * costs["top_down"].parameters if half else 0
    if config.latent_stage < config.n_stages - 1:  # upsampled, beside its skip, convolved, norm
        values = images * config.features_per_stage[config.latent_stage] * prod(grid_size(patch, config.latent_stride))
        encoder = max(encoder, value * (held + 5 * values) + cast)
    parameters = sum(cost.parameters for cost in costs.values())
    per_logit = max(3 * value, value + 4 + (4 if half else 0))  # the sum of two paths; or probabilities in 32 bits
    decoder = images * voxels * num_heads * per_logit
    return 4 * parameters + max(encoder + 4 * images * num_inputs * voxels,
                                decoder + (2 * parameters if half else 0))


def convolutions_per_stage(of_nnunet: Sequence[int], strides: Sequence[Sequence[int]],
                           latent_stride: Sequence[int]) -> tuple[int, ...]:
    """Convolutions (or residual blocks) of each encoder stage: nnU-Net's from the latent's stage on, one in each finer
    stage. Those are the costly ones, and no decoder reads them (measured: benchmarks/RESULTS.md)."""
    numbers, stage = list(of_nnunet[:len(strides)]), [1] * len(latent_stride)
    for index, stride in enumerate(strides):
        stage = [a * int(b) for a, b in zip(stage, stride, strict=True)]
        if stage == [int(s) for s in latent_stride]:
            break
        numbers[index] = 1
    return tuple(int(number) for number in numbers)


def grid_size(patch: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Positions per axis of the grid with this stride."""
    return tuple(int(p) // int(s) for p, s in zip(patch, stride, strict=True))


def _conv(grid: Sequence[int], inputs: int, outputs: int, kernel: Sequence[int] | None = None, times: int = 1) -> Cost:
    """`times` equal convolutions with output on `grid`; `kernel` None is 3 along every axis."""
    elements, taps = prod(grid) * outputs, 3 ** len(grid) if kernel is None else prod(kernel)
    return Cost(times * elements, times * elements * inputs * taps, times * outputs * (inputs * taps + 1))


def _pointwise(grid: Sequence[int], inputs: int, outputs: int) -> Cost:
    """Kernel 1."""
    return _conv(grid, inputs, outputs, (1,))


def _transposed(grid: Sequence[int], inputs: int, outputs: int, stride: Sequence[int]) -> Cost:
    """Transposed convolution with kernel = stride, output on `grid`: each output comes from one position."""
    cost = _pointwise(grid, inputs, outputs)
    return cost._replace(parameters=outputs * (inputs * prod(stride) + 1))


def _encoder_stages(config: LDSegConfig, patch: tuple[int, ...], num_inputs: int) -> list[Cost]:
    """nnU-Net's plain or residual encoder at full depth; the stem counts to the first stage."""
    costs = []
    inputs = num_inputs
    cost = Cost(0, 0)
    if config.encoder == "residual":
        inputs = config.features_per_stage[0]
        cost += _conv(patch, num_inputs, inputs, config.kernel_sizes[0])
    for stride, width, kernel, number in zip(config.cumulative_strides(), config.features_per_stage,
                                             config.kernel_sizes, config.n_conv_per_stage, strict=True):
        grid = grid_size(patch, stride)
        convs = number if config.encoder == "plain" else 2 * number
        cost += _conv(grid, inputs, width, kernel) + _conv(grid, width, width, kernel, convs - 1)
        if config.encoder == "residual" and inputs != width:
            cost += _pointwise(grid, inputs, width)  # the shortcut of the stage's first block
        costs.append(cost)
        inputs, cost = width, Cost(0, 0)
    return costs


def _top_down(config: LDSegConfig, patch: tuple[int, ...]) -> Cost:
    """From the deepest stage up to the latent's: upsampling, skip, two convolutions per stage, as nnU-Net's decoder;
    and what a cascade's first stage adds to the condition."""
    cost = Cost(0, 0)
    if config.previous_stage_channels:
        cost += _conv(grid_size(patch, config.latent_stride), config.previous_stage_channels,
                      config.features_per_stage[config.latent_stage], config.latent_stride)
    strides = config.cumulative_strides()
    for stage in range(config.latent_stage, config.n_stages - 1):
        grid, kernel = grid_size(patch, strides[stage]), config.kernel_sizes[stage]
        width = config.features_per_stage[stage]
        cost += _transposed(grid, config.features_per_stage[stage + 1], width, config.strides[stage + 1])
        cost += _conv(grid, 2 * width, width, kernel) + _conv(grid, width, width, kernel)
    return cost


def _heads(config: LDSegConfig, patch: tuple[int, ...], num_heads: int) -> Cost:
    """One transposed convolution per stage from the latent's down; each position becomes a block of logits."""
    cost = Cost(0, 0)
    for stride, width in list(zip(config.cumulative_strides(), config.features_per_stage,
                                  strict=True))[config.latent_stage:]:
        blocks = prod(grid_size(patch, stride))
        cost += _transposed((blocks, prod(config.latent_stride)), width, num_heads, config.latent_stride)
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
    """A convolution and a residual block at the latent's grid, then upsampling and a convolution per level, at full
    resolution the upsampling alone; beside them the linear path."""
    levels = _label_levels(config)
    inputs = 2 * levels[-1][1]
    grid = grid_size(patch, config.latent_stride)
    cost = _conv(grid, config.latent_channels, inputs) + _conv(grid, inputs, inputs, times=2)
    for level in range(len(levels) - 2, -1, -1):
        stride, width = levels[level]
        step = [coarse // fine for coarse, fine in zip(levels[level + 1][0], stride, strict=True)]
        outputs = width if level else num_heads
        cost += _transposed(grid_size(patch, stride), inputs, outputs, step)
        if level:
            cost += _conv(grid_size(patch, stride), width, width)
        inputs = outputs
    if len(levels) == 1:
        cost += _conv(patch, inputs, num_heads)
    linear = _transposed((prod(grid), prod(config.latent_stride)), config.latent_channels, num_heads,
                         config.latent_stride)
    return cost + linear


def _denoiser(config: LDSegConfig, patch: tuple[int, ...]) -> Cost:
    """U-Net on the latent grid, conditioned by a sum, with attention at its lowest level."""
    widths, channels = config.denoiser_features, config.latent_channels
    condition = config.features_per_stage[config.latent_stage]
    embedding = 4 * widths[0]
    grids = [grid_size(patch, config.latent_stride)]
    for _ in widths[1:]:
        grids.append(_halved(grids[-1]))
    cost = _conv(grids[0], channels, widths[0]) + _conv(grids[0], widths[0], channels)
    cost += _pointwise(grids[0], condition, widths[0]) + _pointwise(grids[0], condition, channels)
    cost += Cost(0, 2 * embedding ** 2, 2 * embedding ** 2)  # of the timestep
    for level, (grid, width) in enumerate(zip(grids, widths, strict=True)):
        directions = 1 if level == len(widths) - 1 else 2  # blocks on the way down, and up except at the lowest
        cost += _conv(grid, width, width, times=2 * config.denoiser_blocks * directions)
        if level:
            cost += _conv(grid, widths[level - 1], width) + _pointwise(grid, width, widths[level - 1])
        modulation = 2 * width * embedding * config.denoiser_blocks * directions
        cost += Cost(0, modulation, modulation)
    positions, lowest = prod(grids[-1]), widths[-1]
    attention = Cost(0, 2 * positions ** 2 * lowest)  # its matrix is not stored (scaled_dot_product_attention)
    return cost + attention + _pointwise(grids[-1], lowest, 3 * lowest) + _pointwise(grids[-1], lowest, lowest)
