"""The sides of the benchmarks: LDSegTrainer, nnU-Net's own trainer made to end within a wall time, and controls that
differ from one of the two in one thing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ldseg_auto.networks.smoothing import GaussianSmoothing
from ldseg_auto.planners.latent_geometry import MAX_SIGMA
from ldseg_auto.trainers.budget import BudgetPolyLR, WallTimeBudgetMixin
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.variants.paper import LDSegTrainerPaper, with_arch_kwargs


class nnUNetTrainerWithinBudget(WallTimeBudgetMixin, nnUNetTrainer):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net as it is: SGD with momentum .99, deep supervision; the learning rate is annealed to the budget."""


class nnUNetTrainerAdamWWithinBudget(nnUNetTrainerWithinBudget):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net's network with LDSegTrainer's optimiser: what the optimiser alone does in a short training."""

    learning_rate = 1e-3

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, BudgetPolyLR]:
        self.initial_lr = self.learning_rate
        return self.with_budget(torch.optim.AdamW(self.network.parameters(), self.initial_lr, betas=(0.9, 0.99),
                                                  weight_decay=1e-2))


class nnUNetTrainerAdamWNoSkips(nnUNetTrainerAdamWWithinBudget):  # noqa: N801, nnU-Net's way of naming
    """The same without skip connections: what the bottleneck alone does."""

    @staticmethod
    def build_network_architecture(plans_manager: PlansManager, configuration_manager: ConfigurationManager,
                                   num_input_channels: int, num_output_channels: int,
                                   enable_deep_supervision: bool = True) -> nn.Module:
        """nnU-Net looks for the names of these arguments."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)
        network.decoder = DecoderWithoutSkips(network)
        return network


class _In16Bits:
    """Convolutions in bfloat16 on a CPU, as LDSegTrainer's are where the CPU has it; nnU-Net itself computes in 32 bits
    there. Predict with it inside `in_16_bits` too."""

    def train_step(self, batch: dict) -> dict:
        with in_16_bits():
            return super().train_step(batch)  # type: ignore[misc]

    def validation_step(self, batch: dict) -> dict:
        with in_16_bits():
            return super().validation_step(batch)  # type: ignore[misc]

    def _build_loss(self) -> nn.Module:
        return _LossIn32Bits(super()._build_loss())  # type: ignore[misc]


def in_16_bits() -> torch.autocast:
    """For everything nnU-Net computes on a CPU inside the block."""
    return torch.autocast("cpu", torch.bfloat16)


class _LossIn32Bits(nn.Module):
    """Sums over the volume need more digits than bfloat16 has."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        return self.loss([o.float() for o in output] if isinstance(output, (list, tuple)) else output.float(), target)


class nnUNetTrainerAdamW16Bits(_In16Bits, nnUNetTrainerAdamWWithinBudget):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net's network with LDSegTrainer's optimiser and precision."""


class nnUNetTrainer16Bits(_In16Bits, nnUNetTrainerWithinBudget):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net as it is, with LDSegTrainer's precision."""


class DecoderWithoutSkips(UNetDecoder):
    """The decoder of a plain U-Net with its upsampling and heads, its stages fed by the coarser one alone."""

    def __init__(self, unet: nn.Module):
        decoder = unet.decoder
        counts = [len(stage.convs) for stage in decoder.stages]
        encoder = unet.encoder
        super().__init__(encoder, decoder.num_classes, counts, decoder.deep_supervision)
        widths = encoder.output_channels[-2::-1]
        kernels = encoder.kernel_sizes[-2::-1]
        self.stages = nn.ModuleList(
            StackedConvBlocks(count, encoder.conv_op, width, width, kernel, 1, encoder.conv_bias, encoder.norm_op,
                              encoder.norm_op_kwargs, encoder.dropout_op, encoder.dropout_op_kwargs, encoder.nonlin,
                              encoder.nonlin_kwargs)
            for count, width, kernel in zip(counts, widths, kernels, strict=True))

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        x, outputs = skips[-1], []
        for upsample, stage, head in zip(self.transpconvs, self.stages, self.seg_layers, strict=True):
            x = stage(upsample(x))
            outputs.append(head(x) if self.deep_supervision or stage is self.stages[-1] else None)
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class nnUNetTrainerAdamWNoSkips16Bits(_In16Bits, nnUNetTrainerAdamWNoSkips):  # noqa: N801, nnU-Net's way of naming
    """The U-Net without skip connections, with LDSegTrainer's precision."""


class LDSegTrainerAtT(LDSegTrainer):
    """Every timestep is T: a regressor by way of the latent, without diffusion."""

    share_at_last_timestep = 1.0
    recycled_share = 0.0


class LDSegTrainerUnsmoothed(LDSegTrainer):
    """Trained as LDSegTrainer is; in prediction too the image reaches the encoder as it is."""

    @staticmethod
    def build_network_architecture(plans_manager: PlansManager, configuration_manager: ConfigurationManager,
                                   num_input_channels: int, num_output_channels: int,
                                   enable_deep_supervision: bool = True) -> nn.Module:
        """nnU-Net looks for the names of these arguments."""
        return LDSegTrainer.build_network_architecture(
            plans_manager, with_arch_kwargs(configuration_manager, {"smoothing_sigma": ()}), num_input_channels,
            num_output_channels, enable_deep_supervision)


class nnUNetTrainerAdamWSmoothed16Bits(nnUNetTrainerAdamW16Bits):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net's network, in prediction behind the Gaussian that our plans have where the latent's stride is 4 and more:
    what the smoothing alone does."""

    @staticmethod
    def build_network_architecture(plans_manager: PlansManager, configuration_manager: ConfigurationManager,
                                   num_input_channels: int, num_output_channels: int,
                                   enable_deep_supervision: bool = True) -> nn.Module:
        """nnU-Net looks for the names of these arguments."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)
        smoothing = GaussianSmoothing([MAX_SIGMA] * len(configuration_manager.patch_size))
        network.register_forward_pre_hook(lambda module, inputs: None if module.training else smoothing(inputs[0]))
        return network


def _is_noise(step: BasicTransform) -> bool:
    return isinstance(step, RandomTransform) and isinstance(step.transform, GaussianNoiseTransform)


class _WithoutNoise:
    """nnU-Net's augmentation less its Gaussian noise."""

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        composed = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        return ComposeTransforms([step for step in composed.transforms if not _is_noise(step)])


class LDSegTrainerNoNoise(_WithoutNoise, LDSegTrainer):
    """LDSegTrainer without noise in its augmentation."""


class nnUNetTrainerAdamWNoNoise16Bits(_WithoutNoise, nnUNetTrainerAdamW16Bits):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net's network without noise in its augmentation."""


class nnUNetTrainerAdamWNoSkipsNoNoise16Bits(_WithoutNoise, nnUNetTrainerAdamWNoSkips16Bits):  # noqa: N801, as its own
    """The U-Net without skip connections and without noise in its augmentation."""


class _StrongNoise:
    """nnU-Net's augmentation with Gaussian noise up to the image's own strength in a fifth of the samples; nnU-Net's
    goes to a standard deviation of .1 in a tenth of them."""

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        composed = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        for step in composed.transforms:
            if _is_noise(step):
                step.transform.noise_variance = (0.0, 1.0)  # a standard deviation in spite of its name
                step.apply_probability = 0.2
        return composed


class LDSegTrainerStrongNoise(_StrongNoise, LDSegTrainer):
    """LDSegTrainer prepared for noisy images."""


class nnUNetTrainerAdamWStrongNoise16Bits(_StrongNoise, nnUNetTrainerAdamW16Bits):  # noqa: N801, nnU-Net's way
    """nnU-Net's network prepared for noisy images."""


@dataclass(frozen=True)
class Side:
    """A trainer and the plans it is trained by; `batch_of`: other plans whose batch it takes."""

    trainer: type[nnUNetTrainer]
    plans: str
    batch_of: str | None = None

    @property
    def folder(self) -> str:
        """Of its model in nnU-Net's results."""
        return f"{self.trainer.__name__}__{self.plans}__3d_fullres"

    @property
    def is_ours(self) -> bool:
        return issubclass(self.trainer, LDSegTrainer)

    @property
    def is_in_16_bits(self) -> bool:
        """Whether nnU-Net's predictor is told to compute so; ours decides by itself."""
        return issubclass(self.trainer, _In16Bits)


def register() -> None:
    """Let nnU-Net's search by name find the trainers of this module, which it needs to load their models."""
    os.environ["nnUNet_extTrainer"] = str(Path(__file__).resolve().parent / "nnunet_ext")


OURS, NNUNET, RESENC = "LDSegPlans", "nnUNetPlans", "nnUNetResEncUNetMPlans"
SIDES = {
    "ldseg": Side(LDSegTrainer, OURS),
    "ldseg-at-T": Side(LDSegTrainerAtT, OURS),
    "ldseg-paper": Side(LDSegTrainerPaper, OURS),
    "ldseg-unsmoothed": Side(LDSegTrainerUnsmoothed, OURS),
    "ldseg-no-noise": Side(LDSegTrainerNoNoise, OURS),
    "ldseg-strong-noise": Side(LDSegTrainerStrongNoise, OURS),
    "nnunet": Side(nnUNetTrainerWithinBudget, NNUNET),
    "nnunet-16": Side(nnUNetTrainer16Bits, NNUNET),
    "nnunet-adamw": Side(nnUNetTrainerAdamWWithinBudget, NNUNET),
    "nnunet-adamw-16": Side(nnUNetTrainerAdamW16Bits, NNUNET),
    "nnunet-no-skips-16": Side(nnUNetTrainerAdamWNoSkips16Bits, NNUNET),
    "nnunet-no-noise-16": Side(nnUNetTrainerAdamWNoNoise16Bits, NNUNET),
    "nnunet-no-skips-no-noise-16": Side(nnUNetTrainerAdamWNoSkipsNoNoise16Bits, NNUNET),
    "nnunet-smoothed-16": Side(nnUNetTrainerAdamWSmoothed16Bits, NNUNET),
    "nnunet-strong-noise-16": Side(nnUNetTrainerAdamWStrongNoise16Bits, NNUNET),
    "resenc-m": Side(nnUNetTrainerWithinBudget, RESENC, batch_of=NNUNET),  # its own is planned for a GPU
    "resenc-m-adamw-16": Side(nnUNetTrainerAdamW16Bits, RESENC, batch_of=NNUNET),
}
