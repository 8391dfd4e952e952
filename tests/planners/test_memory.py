"""The formulas against the network itself: every convolution's output counted by hooks."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from ldseg_auto.config import LDSegConfig
from ldseg_auto.evaluation.peak_memory import prediction_peak_bytes, training_peak_bytes
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.planners.memory import (
    DENOISER_WIDTHS,
    MAX_DENOISER_PARAMETERS,
    PASSES,
    choose_denoiser_features,
    network_cost,
    prediction_bytes,
    training_bytes,
    training_elements,
)

PATCHES = {2: (32, 48), 3: (16, 32, 32)}


def _config(dim: int, **changes) -> LDSegConfig:
    strides = {2: ((1, 1), (2, 2), (2, 2), (2, 2)), 3: ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))}[dim]
    settings = {
        "n_stages": 4, "features_per_stage": (8, 16, 24, 32), "conv_op": nn.Conv2d if dim == 2 else nn.Conv3d,
        "kernel_sizes": ((1,) * (dim - 2) + (3, 3), *(((3,) * dim,) * 3)), "strides": strides,
        "n_conv_per_stage": (2, 1, 2, 3), "latent_stride": (4, 4) if dim == 2 else (2, 4, 4), "latent_channels": 3,
        "norm_op": nn.InstanceNorm2d if dim == 2 else nn.InstanceNorm3d, "nonlin": nn.LeakyReLU,
        "denoiser_features": (16, 32), "label_features": 32}
    return LDSegConfig(**(settings | changes))


def _counted(config: LDSegConfig, patch: tuple[int, ...], inputs: int, heads: int) -> dict[str, int]:
    """Values in the outputs of all convolutions in one training pass, per part."""
    net = LDSegNet(inputs, heads, **config.to_arch_kwargs())
    parts = {"image_encoder": net.image_encoder.encoder, "label_encoder": net.label_encoder,
             "label_decoder": net.label_decoder, "denoiser": net.denoiser, "heads": net.heads,
             "up": net.image_encoder.up, "merge": net.image_encoder.merge,
             "previous": net.image_encoder.previous_stage or nn.Identity()}
    counts = dict.fromkeys(parts, 0)
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for name, part in parts.items():
        for module in part.modules():
            if isinstance(module, convolutions):
                def count(_module, _inputs, output, name=name):
                    counts[name] += output.numel()
                module.register_forward_hook(count)
    grid = tuple(p // s for p, s in zip(patch, config.latent_stride, strict=True))
    with torch.no_grad():
        net(torch.zeros(1, inputs, *patch), torch.zeros(1, 1, *patch), torch.zeros(1, config.latent_channels, *grid),
            torch.ones(1, dtype=torch.long))
    counts["top_down"] = counts.pop("up") + counts.pop("merge") + counts.pop("previous")
    return counts


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"denoiser_blocks": 2, "denoiser_features": (8, 16, 24)},
                                     {"label_features": 64, "latent_channels": 8}, {"encoder": "residual"},
                                     {"latent": "deepest"}, {"latent": "finest"},
                                     {"previous_stage_channels": 1}])
def test_elements_equal_those_of_the_network(dim, changes):
    changes = dict(changes)
    place = changes.pop("latent", None)
    if place:
        changes["latent_stride"] = _config(dim).cumulative_strides()[-1 if place == "deepest" else 1]
    config = _config(dim, **changes)
    counted = _counted(config, PATCHES[dim], 2, 3)
    costs = network_cost(config, PATCHES[dim], 2, 3)
    assert {part: PASSES[part] * cost.elements for part, cost in costs.items()} == counted
    assert training_elements(costs) == sum(counted.values())


@pytest.mark.parametrize("dim", [2, 3])
def test_multiply_adds_of_the_first_convolution(dim):
    """One stage more adds one convolution with known cost."""
    config = _config(dim, n_conv_per_stage=(1, 1, 1, 1))
    wider = replace(config, n_conv_per_stage=(2, 1, 1, 1))
    more = (network_cost(wider, PATCHES[dim], 2, 3)["image_encoder"].multiply_adds
            - network_cost(config, PATCHES[dim], 2, 3)["image_encoder"].multiply_adds)
    assert more == prod(PATCHES[dim]) * 8 * 8 * 9  # kernel 3x3 or 1x3x3


@pytest.mark.parametrize("change, part", [
    ({"label_features": 64}, "label_decoder"), ({"latent_channels": 9}, "label_encoder"),
    ({"denoiser_blocks": 3}, "denoiser"), ({"denoiser_features": (32, 64)}, "denoiser"),
    ({"features_per_stage": (8, 16, 24, 64)}, "image_encoder"), ({"encoder": "residual"}, "image_encoder"),
    ({"features_per_stage": (8, 16, 32, 32)}, "top_down"), ({"previous_stage_channels": 1}, "top_down"),
    ({"latent_stride": (2, 2)}, "heads")])
def test_every_choice_costs_something(change, part):
    before = network_cost(_config(2), PATCHES[2], 1, 3)[part]
    after = network_cost(_config(2, **change), PATCHES[2], 1, 3)[part]
    assert before != after


def test_inputs_and_heads_count():
    base = network_cost(_config(3), PATCHES[3], 1, 3)
    assert network_cost(_config(3), PATCHES[3], 4, 3)["image_encoder"].multiply_adds > base[
        "image_encoder"].multiply_adds
    assert training_elements(network_cost(_config(3), PATCHES[3], 1, 9)) > training_elements(base)


@pytest.mark.parametrize("dim", [2, 3])
def test_denoiser_width_stays_below_its_share(dim):
    config = _config(dim, features_per_stage=(32, 64, 128, 256))
    chosen = {share: choose_denoiser_features(config, PATCHES[dim], 1, 3, share) for share in (0.1, 0.3, 10.0)}
    assert all(taken <= share or widths[0] == DENOISER_WIDTHS[0] for share, (widths, taken) in chosen.items())
    assert all(widths[1] == 2 * widths[0] for widths, _ in chosen.values())
    assert chosen[0.1][0][0] < chosen[10.0][0][0]


def test_narrowest_denoiser_where_all_cost_too_much():
    widths, taken = choose_denoiser_features(_config(2), PATCHES[2], 1, 3, 1e-6)
    assert widths == (16, 32) and taken > 1e-6


def test_denoiser_holds_no_more_weights_than_it_may():
    """On a grid this small any width would keep within its share of the time."""
    config = _config(3, features_per_stage=(32, 64, 128, 256), latent_stride=(4, 8, 8))
    widths, _ = choose_denoiser_features(config, PATCHES[3], 1, 3, 10.0)
    costs = network_cost(replace(config, denoiser_features=widths), PATCHES[3], 1, 3)
    assert costs["denoiser"].parameters <= MAX_DENOISER_PARAMETERS * costs["image_encoder"].parameters
    assert widths[0] > DENOISER_WIDTHS[0]


@pytest.mark.parametrize("changes", [{}, {"denoiser_blocks": 2}, {"encoder": "residual"}, {"latent_channels": 16},
                                     {"previous_stage_channels": 1}])
@pytest.mark.parametrize("dim", [2, 3])
def test_parameters_are_those_of_the_network(dim, changes):
    config = _config(dim, **changes)
    held = sum(p.numel() for p in LDSegNet(2, 3, **config.to_arch_kwargs()).parameters())
    assert sum(cost.parameters for cost in network_cost(config, PATCHES[dim], 2, 3).values()) == pytest.approx(
        held, rel=0.03)  # norms are not counted


# patch, latent stage, channels, heads, batch size, encoder; test_archetypes.py and benchmarks/memory.py have more
PLANS = [((64, 64, 64), 2, 16, 2, 4, "plain"), ((256, 192), 2, 32, 21, 16, "plain"),
         *(pytest.param(*plan, marks=pytest.mark.slow) for plan in (
             ((64, 64, 64), 2, 32, 20, 3, "plain"), ((80, 96, 80), 2, 8, 3, 2, "residual")))]


@pytest.mark.parametrize("patch, stage, channels, heads, batch_size, encoder", PLANS)
def test_memory_is_what_a_step_allocates(patch, stage, channels, heads, batch_size, encoder):
    dim, stages = len(patch), 5
    strides = ((1,) * dim, *((2,) * dim,) * (stages - 1))
    config = _config(dim, n_stages=stages, features_per_stage=(32, 64, 128, 256, 320), strides=strides,
                     kernel_sizes=((3,) * dim,) * stages, n_conv_per_stage=(2,) * stages, encoder=encoder,
                     latent_stride=(2 ** stage,) * dim, latent_channels=channels, denoiser_features=(48, 96),
                     norm_op_kwargs={"affine": True}, nonlin_kwargs={"inplace": True})
    for half in (True, False) if batch_size == 4 else (True,):
        assert training_bytes(config, patch, batch_size, 1, heads, half) == pytest.approx(
            training_peak_bytes(config, patch, batch_size, 1, heads, half), rel=0.15)
        assert prediction_bytes(config, patch, 1, 1, heads, half) == pytest.approx(
            prediction_peak_bytes(config, patch, 1, 1, heads, half), rel=0.15)
