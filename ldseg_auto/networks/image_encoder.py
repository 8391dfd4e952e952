"""Image -> condition: by nnU-Net's encoder, then up again to the latent's grid and no further."""

from __future__ import annotations

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import nn

from ldseg_auto.config import LDSegConfig
from ldseg_auto.networks.blocks import QUICKER_NORMS
from ldseg_auto.networks.previous_stage import PreviousStageCondition
from ldseg_auto.networks.smoothing import GaussianSmoothing


class ImageEncoder(nn.Module):
    """nnU-Net's encoder at full depth and its decoder's lowest stages, which end at the latent's stage.

    The deep stages give the context of a U-Net; the decoder's costly stages near full resolution are gone.
    """

    def __init__(self, config: LDSegConfig, input_channels: int):
        super().__init__()
        encoder_class, blocks = ((PlainConvEncoder, "n_conv_per_stage") if config.encoder == "plain"
                                 else (ResidualEncoder, "n_blocks_per_stage"))
        shared = {name: getattr(config, name) for name in
                  ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin",
                   "nonlin_kwargs")}
        shared["norm_op"] = QUICKER_NORMS.get(config.norm_op, config.norm_op)
        self.encoder = encoder_class(
            input_channels=input_channels, n_stages=config.n_stages, features_per_stage=config.features_per_stage,
            kernel_sizes=config.kernel_sizes, strides=config.strides, return_skips=True,
            **{blocks: config.n_conv_per_stage}, **shared)
        self.smoothing = GaussianSmoothing(config.smoothing_sigma)
        self.image_channels = input_channels - config.previous_stage_channels
        self.latent_stage = config.latent_stage
        self.channels = config.features_per_stage[config.latent_stage]
        coarse_to_fine = range(config.n_stages - 2, config.latent_stage - 1, -1)
        transposed = get_matching_convtransp(config.conv_op)
        self.up = nn.ModuleList(
            transposed(config.features_per_stage[s + 1], config.features_per_stage[s], config.strides[s + 1],
                       config.strides[s + 1], bias=config.conv_bias) for s in coarse_to_fine)
        self.merge = nn.ModuleList(
            StackedConvBlocks(num_convs=2, input_channels=2 * config.features_per_stage[s],
                              output_channels=config.features_per_stage[s], kernel_size=config.kernel_sizes[s],
                              initial_stride=1, **shared) for s in coarse_to_fine)
        self.previous_stage = (PreviousStageCondition(config, self.channels) if config.previous_stage_channels
                               else None)
        # as nnU-Net starts its networks (measured: benchmarks/RESULTS.md)
        self.apply(InitWeights_He(1e-2))
        if config.encoder == "residual" and (config.norm_op_kwargs or {}).get("affine"):
            self.apply(init_last_bn_before_add_to_0)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, *S) -> features of the latent's stage, then of each coarser one: (B, d_s, *S / f_s)."""
        *skips, deepest = self._stages(self._smoothed(image))
        features = [deepest]
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            features.insert(0, merge(torch.cat([up(features[0]), skip], dim=1)))
        if self.previous_stage is not None:
            features[0] = features[0] + self.previous_stage(image)
        return features

    def _smoothed(self, image: torch.Tensor) -> torch.Tensor:
        """In prediction alone. In training nnU-Net's augmentation blurs some images more than this; of a network that
        sees none but smoothed ones less was learnt in the same time (measured: benchmarks/RESULTS.md). The segmentation
        by a first stage, which is the last channels, holds no noise."""
        if self.training:
            return image
        smoothed = self.smoothing(image[:, :self.image_channels])
        return torch.cat([smoothed, image[:, self.image_channels:]], 1) if self.previous_stage else smoothed

    def _stages(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the encoder's stages from the latent's on; those of finer ones, the largest, are freed as soon as
        the next stage has read them."""
        x = image if getattr(self.encoder, "stem", None) is None else self.encoder.stem(image)
        outputs = []
        for number, stage in enumerate(self.encoder.stages):
            x = stage(x)
            if number >= self.latent_stage:
                outputs.append(x)
        return outputs
