"""The controls differ from their peers in one thing."""

from __future__ import annotations

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from peers import SIDES, DecoderWithoutSkips, LDSegTrainerNoNoise
from torch import nn


@pytest.fixture
def unet() -> PlainConvUNet:
    torch.manual_seed(0)
    return PlainConvUNet(1, 3, (4, 8, 16), nn.Conv2d, 3, (1, 2, 2), 2, 3, 2, conv_bias=True,
                         norm_op=nn.InstanceNorm2d, nonlin=nn.LeakyReLU, deep_supervision=False)


def test_without_skips_only_the_bottleneck_reaches_the_output(unet):
    decoder = DecoderWithoutSkips(unet)
    skips = unet.encoder(torch.randn(1, 1, 16, 16))
    changed = [torch.zeros_like(skip) for skip in skips[:-1]] + [skips[-1]]
    assert torch.equal(decoder(skips), decoder(changed))
    assert not torch.equal(unet.decoder(skips), unet.decoder(changed))
    assert decoder(skips).shape == unet.decoder(skips).shape


def test_without_skips_deep_supervision_has_the_unets_shapes(unet):
    unet.decoder.deep_supervision = True
    decoder = DecoderWithoutSkips(unet)
    skips = unet.encoder(torch.randn(1, 1, 16, 16))
    assert [out.shape for out in decoder(skips)] == [out.shape for out in unet.decoder(skips)]


def test_without_noise_nothing_else_is_gone():
    arguments = ([16, 16], (-0.1, 0.1), None, (0,), False)
    whole = nnUNetTrainer.get_training_transforms(*arguments).transforms
    left = LDSegTrainerNoNoise.get_training_transforms(*arguments).transforms
    noisy = [t for t in whole if isinstance(getattr(t, "transform", None), GaussianNoiseTransform)]
    assert len(noisy) == 1
    assert [type(getattr(t, "transform", t)) for t in left] == [
        type(getattr(t, "transform", t)) for t in whole if t not in noisy]


def test_names_of_models_are_told_apart():
    folders = [side.folder for side in SIDES.values()]
    assert len(set(folders)) == len(folders)
