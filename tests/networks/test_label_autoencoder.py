"""Codes depend on the labels nearby, not on what else a tile or a batch holds."""

import pytest
import torch

from ldseg_auto.config import LDSegConfig
from ldseg_auto.networks.label_autoencoder import LabelDecoder, LabelEncoder, LatentStandardisation


def one_hot(labels, classes=2):
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_code_depends_on_its_neighbourhood_only(arch_kwargs, dimension):
    torch.manual_seed(0)
    encoder = LabelEncoder(LDSegConfig.from_arch_kwargs(arch_kwargs(dimension)), 2).eval()
    labels = torch.zeros((1, *[64] + [16] * (dimension - 1)), dtype=torch.long)
    labels[:, :16] = 1
    other = labels.clone()
    other[:, 48:] = 1
    a, b = encoder(one_hot(labels)), encoder(one_hot(other))
    assert torch.equal(a[:, :, :6], b[:, :, :6])
    assert not torch.allclose(a[:, :, -4:], b[:, :, -4:])


def test_tracked_statistics_converge_to_the_codes():
    standardise = LatentStandardisation("tracked", 2)
    generator = torch.Generator().manual_seed(0)
    code = torch.randn((64, 2, 8, 8), generator=generator) * torch.tensor([2.0, 5.0])[None, :, None, None] + 3
    for part in code.split(4):
        standardise(part)
    result = standardise.eval()(code)
    assert result.mean((0, 2, 3)).abs().max() < 0.1
    assert (result.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_statistics_stand_still_in_evaluation():
    standardise = LatentStandardisation("tracked", 1)
    standardise(torch.randn(4, 1, 8, 8))
    before = standardise.mean.clone()
    standardise.eval()(torch.randn(4, 1, 8, 8) + 10)
    assert torch.equal(standardise.mean, before)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_batch_without_finite_codes_leaves_the_statistics_alone(wrong):
    standardise = LatentStandardisation("tracked", 2)
    standardise(torch.randn(4, 2, 8, 8))
    before = {name: value.clone() for name, value in standardise.state_dict().items()}
    code = torch.randn(4, 2, 8, 8)
    code[0, 0, 0, 0] = wrong
    standardise(code)
    assert all(torch.equal(value, before[name]) for name, value in standardise.state_dict().items())
    standardise(torch.randn(4, 2, 8, 8))
    assert standardise.updates == 2 and torch.isfinite(standardise.mean).all()


@pytest.mark.parametrize("mode", ["tracked", "sample"])
def test_constant_codes_stay_finite(mode):
    standardise = LatentStandardisation(mode, 1)
    for _ in range(200):
        result = standardise(torch.full((2, 1, 4, 4), 7.0))
    assert torch.isfinite(result).all()
    assert result.abs().max() < 1


def test_sample_mode_standardises_each_sample():
    code = torch.randn(2, 1, 16, 16) * torch.tensor([1.0, 10.0])[:, None, None, None]
    result = LatentStandardisation("sample", 1)(code)
    assert torch.allclose(result.std((1, 2, 3)), torch.ones(2), atol=0.02)


def test_it_can_learn_to_code(arch_kwargs):
    """A half space in 2D: two channels at stride 4 are enough to code it almost perfectly."""
    torch.manual_seed(0)
    config = LDSegConfig.from_arch_kwargs(arch_kwargs(2, label_features=16))
    encoder, decoder = LabelEncoder(config, 2), LabelDecoder(config, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
    for _ in range(150):
        edges = torch.randint(2, 14, (8, 1, 1))
        labels = (torch.arange(16)[None, :, None] < edges).expand(8, 16, 16).long()
        loss = torch.nn.functional.cross_entropy(decoder(encoder(one_hot(labels))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (decoder(encoder.eval()(one_hot(labels))).argmax(1) == labels).float().mean()
    assert accuracy > 0.97
