"""The recipe of LDSeg as published, with the faults of its code mended (docs/recipes.md, equation by equation)."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights

# What the paper fixes, in place of the plans' values. Encoder, patch, batch and latent stride stay planned.
PAPER_CONFIG: dict[str, Any] = {
    "prediction": "eps", "schedule": "cosine", "zero_terminal_snr": False, "timesteps": 1000,
    "latent_channels": 1, "standardisation": "sample", "smoothing_sigma": (),
    "sampler_steps": 15, "sampler_eta": 0.0, "sampler_samples": 1}


def with_arch_kwargs(manager: ConfigurationManager, changes: dict[str, Any]) -> ConfigurationManager:
    """The configuration with some of its network's `arch_kwargs` changed; the plans in memory are not touched."""
    architecture = manager.configuration["architecture"]
    changed = {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], **changes}}
    return ConfigurationManager({**manager.configuration, "architecture": changed})


class LDSegTrainerPaper(LDSegTrainer):
    """Zaman et al., 2407.12952: eps prediction, uniform timesteps, L = CE + 2 (1 - Dice) + MSE(eps), no other terms."""

    loss_weights = LossWeights(estimate=1.0, denoising=1.0, coding=0.0, heads=0.0)
    dice_weight = 2.0
    share_at_last_timestep = 0.0
    recycled_share = 0.0
    learning_rate = 1e-3
    code_from_principal_components = False
    epoch_validation_steps = None  # one step from t = T tells nothing where eps is predicted

    @staticmethod
    def build_network_architecture(plans_manager: PlansManager, configuration_manager: ConfigurationManager,
                                   num_input_channels: int, num_output_channels: int,
                                   enable_deep_supervision: bool = True) -> nn.Module:
        """The planned network with the paper's latent and diffusion; nnU-Net calls this at prediction too."""
        return LDSegTrainer.build_network_architecture(
            plans_manager, with_arch_kwargs(configuration_manager, PAPER_CONFIG), num_input_channels,
            num_output_channels, enable_deep_supervision)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        assert isinstance(loss, LatentDiffusionLoss)
        loss.segmentation.weight_dice = self.dice_weight
        return loss

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self.initial_lr)
