"""The autoencoder starts as a principal component analysis of the labels."""

import pytest
import torch
from torch import nn

from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.trainers.code_start import start_from_principal_components


def build(dimension, **changes):
    torch.manual_seed(0)
    kwargs = {"n_stages": 3, "features_per_stage": [4, 4, 4],
              "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dimension], "kernel_sizes": [[3] * dimension] * 3,
              "strides": [[1] * dimension, [2] * dimension, [1] + [2] * (dimension - 1)], "n_conv_per_stage": [1] * 3,
              "nonlin": nn.LeakyReLU, "latent_stride": [2] + [4] * (dimension - 1), "latent_channels": 6,
              "label_features": 8, "denoiser_features": [8]}
    return LDSegNet(1, 3, **kwargs | changes)


def balls(dimension, samples=12, size=16):
    """Two nested balls at random places, (B, 1, *S)."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.stack(torch.meshgrid(*[torch.arange(size)] * dimension, indexing="ij"))
    centres = 4 + 8 * torch.rand((samples, dimension, *[1] * dimension), generator=generator)
    distance = (axes[None] - centres).square().sum(1, keepdim=True).sqrt()
    return (distance < 6).float() + (distance < 3).float()


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_labels_are_coded_from_the_start(dimension, output):
    net = build(dimension, output=output)
    target = balls(dimension)
    if output == "sigmoid":
        target = torch.cat([target > 0, target > 1, target == 1], dim=1)
    truth = net.label_channels(target)

    def rebuilt():
        return ((net.probabilities(net.decode(net.eval().encode_label(target))) > 0.5) == (truth > 0.5)).float().mean()
    before = rebuilt()
    share = start_from_principal_components(net, target.split(4))
    assert 0.5 < share < 1
    assert rebuilt() > 0.95 > before


def test_a_rare_class_weighs_as_much_as_the_others():
    """Small cubes in few of the samples: the components of all blocks alike would not hold them."""
    target = (balls(3, samples=40, size=24) > 0).float()
    target[::4, :, 2:6, 2:6, 2:6] = 2
    net = build(3, latent_channels=8)
    start_from_principal_components(net, [target])
    found = net.decode(net.eval().encode_label(target)).argmax(1, keepdim=True) == 2
    true = target == 2
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9


def test_sparse_annotation_leaves_the_start_as_it_is():
    net = build(3, ignore_label=3)
    target = balls(3)
    target[:, :, ::2] = 3
    assert start_from_principal_components(net, [target]) is None


def test_codes_are_standardised_from_the_start():
    net = build(3)
    target = balls(3)
    start_from_principal_components(net, [target])
    code = net.eval().encode_label(target)
    assert code.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert (code.var((0, 2, 3, 4)) - 1).abs().max() < 0.2  # the floor of the variance


def test_the_layers_learn_from_there():
    net = build(2)
    target = balls(2)
    start_from_principal_components(net, [target])
    for _ in range(2):
        nn.functional.cross_entropy(net.decode(net.encode_label(target)), target[:, 0].long()).backward()
        assert net.label_encoder.body[-1].weight.grad.any() or net.label_decoder.body[-1].weight.grad.any()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert net.label_decoder.body[-1].weight.any() and net.label_encoder.body[-1].weight.any()


@pytest.mark.parametrize("case", ["sample", "large", "empty"])
def test_nothing_is_done_where_it_cannot(case, monkeypatch):
    net = build(2, standardisation="sample") if case == "sample" else build(2)
    if case == "large":
        monkeypatch.setattr("ldseg_auto.trainers.code_start.MAX_BLOCK_VALUES", 8)
    target = torch.zeros(2, 1, 16, 16) if case == "empty" else balls(2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert start_from_principal_components(net, [target]) is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_the_annotation_pattern_is_not_coded(output):
    """Rows that nobody annotated: blocks that hold some of them say nothing about structures."""
    net = build(2, output=output, ignore_label=3)
    target = balls(2)
    if output == "sigmoid":
        target = torch.cat([target > 0, target > 1, target == 1, torch.zeros_like(target)], dim=1)
    ignored = target.clone()
    ignored[:, -1, 5::8] = 3 if output == "softmax" else 1
    start_from_principal_components(net, [ignored])
    truth = net.label_channels(target)
    rebuilt = net.probabilities(net.decode(net.eval().encode_label(target))) > 0.5
    assert (rebuilt == (truth > 0.5)).float().mean() > 0.95
