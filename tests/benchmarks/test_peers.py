"""The controls differ from their peers in one thing."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from peers import SIDES, DecoderWithoutSkips, LDSegTrainerNoNoise, _In16Bits
from torch import nn

from ldseg_auto.networks.smoothing import GaussianSmoothing
from ldseg_auto.planners.latent_geometry import MAX_SIGMA


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


@pytest.mark.parametrize("side", ["ldseg-strong-noise", "nnunet-strong-noise-16"])
def test_strong_noise_reaches_a_fifth_of_the_images(side):
    torch.manual_seed(0)
    steps = SIDES[side].trainer.get_training_transforms([24, 24, 24], (-0.1, 0.1), None, (0,), False).transforms
    whole = nnUNetTrainer.get_training_transforms([24, 24, 24], (-0.1, 0.1), None, (0,), False).transforms
    assert [type(getattr(t, "transform", t)) for t in steps] == [type(getattr(t, "transform", t)) for t in whole]
    noise, = [t for t in steps if isinstance(getattr(t, "transform", None), GaussianNoiseTransform)]
    found = torch.stack([noise(image=torch.zeros(1, 24, 24, 24))["image"].std() for _ in range(500)])
    assert 0.15 < (found > 0).float().mean() < 0.25
    assert 0.4 < found[found > 0].mean() < 0.6 and 0.9 < found.max() < 1.05


def test_unsmoothed_only_the_smoothing_is_gone_and_the_plans_stay():
    convolution = "torch.nn.modules.conv.Conv2d"
    kwargs = {"n_stages": 3, "features_per_stage": [4, 8, 16], "conv_op": convolution, "kernel_sizes": [[3, 3]] * 3,
              "strides": [[1, 1], [2, 2], [2, 2]], "n_conv_per_stage": [1, 2, 3], "latent_stride": [2, 2],
              "latent_channels": 2, "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
              "norm_op_kwargs": {"affine": True}, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
              "smoothing_sigma": [0.3, 0.3]}
    architecture = {"network_class_name": "ldseg_auto.networks.ldseg_net.LDSegNet", "arch_kwargs": kwargs,
                    "_kw_requires_import": ["conv_op", "norm_op", "nonlin"]}
    plans = PlansManager({"configurations": {"2d": {"architecture": architecture}}})
    unsmoothed, default = (SIDES[side].trainer.build_network_architecture(
        plans, plans.get_configuration("2d"), 1, 3, False).config for side in ("ldseg-unsmoothed", "ldseg"))
    assert unsmoothed == replace(default, smoothing_sigma=()) and unsmoothed != default


def test_in_prediction_nnunets_network_sees_the_smoothed_image(unet):
    trainer = SIDES["nnunet-smoothed-16"].trainer
    image = torch.randn(1, 1, 16, 16)
    expected = unet(GaussianSmoothing((MAX_SIGMA, MAX_SIGMA))(image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(lambda *_: unet))
        network = trainer.build_network_architecture(None, SimpleNamespace(patch_size=[16, 16]), 1, 3)
    assert torch.equal(network.eval()(image), expected)
    assert not torch.allclose(network.train()(image), expected)


def test_names_of_models_are_told_apart():
    folders = [side.folder for side in SIDES.values()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", [name for name, side in SIDES.items() if side.plans != "LDSegPlans"])
def test_networks_are_built_as_nnunet_builds_them(name):
    """In training, and by its predictor from the trainer's name."""
    convolution = "torch.nn.modules.conv.Conv2d"
    kwargs = {"n_stages": 3, "features_per_stage": [4, 8, 16], "conv_op": convolution, "kernel_sizes": [[3, 3]] * 3,
              "strides": [[1, 1], [2, 2], [2, 2]], "n_conv_per_stage": [1, 2, 2], "n_conv_per_stage_decoder": [2, 2],
              "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
              "norm_op_kwargs": {"affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
              "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}}
    architecture = {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": kwargs, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}
    plans = PlansManager({"configurations": {"2d": {"architecture": architecture, "patch_size": [16, 16]}}})
    trainer = SIDES[name].trainer
    assert "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters
    for deep_supervision in (True, False):
        network = trainer.build_network_architecture(plans, plans.get_configuration("2d"), 1, 3, deep_supervision)
        outputs = network(torch.zeros(1, 1, 16, 16))
        assert (outputs[0] if deep_supervision else outputs).shape == (1, 3, 16, 16)


def test_16_bits_are_used_and_the_loss_is_not_in_them():
    class Parent:
        def train_step(self, batch):
            return nn.Conv2d(1, 1, 1)(batch).dtype

        def validation_step(self, batch):
            return self.train_step(batch)

        def _build_loss(self):
            return lambda output, target: output[0].dtype

    class Trainer(_In16Bits, Parent):
        pass

    batch = torch.zeros(1, 1, 2, 2)
    assert Trainer().train_step(batch) == Trainer().validation_step(batch) == torch.bfloat16
    assert Trainer()._build_loss()([batch.bfloat16()], None) == torch.float32
    assert SIDES["nnunet-16"].is_in_16_bits and not SIDES["nnunet"].is_in_16_bits
