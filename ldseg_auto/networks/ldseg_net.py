"""LDSegNet: image encoder, label autoencoder and denoiser joined; nnU-Net's loader builds it from the plans alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn import functional as F  # noqa: N812, the field's usual name
from torch.nn.parallel import DistributedDataParallel

from ldseg_auto.config import LDSegConfig
from ldseg_auto.diffusion.objective import add_noise, denoiser_target, estimate_latent, estimate_noise
from ldseg_auto.diffusion.samplers import StepNoise, ddim
from ldseg_auto.diffusion.schedule import alpha_bar
from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.denoiser import Denoiser
from ldseg_auto.networks.heads import ConditionHeads
from ldseg_auto.networks.image_encoder import ImageEncoder
from ldseg_auto.networks.label_autoencoder import LabelDecoder, LabelEncoder

_STOCK_SEED = 0
_PROBABILITY_FLOOR = 1e-3  # on the stock path logits are averaged: without a floor one fold vetoes the others


def unwrapped(network: nn.Module) -> Any:
    """The network without DDP or torch.compile around it."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


class TrainingOutput(NamedTuple):
    """What the loss needs; B samples, K label channels, c latent channels."""

    estimate_logits: torch.Tensor  # decode(estimate of z_0), (B, K, *S)
    coding_logits: torch.Tensor  # decode(z_0), (B, K, *S)
    denoiser_output: torch.Tensor  # (B, c, *S / f)
    denoiser_target: torch.Tensor  # (B, c, *S / f)
    head_logits: list[torch.Tensor]  # heads on the condition, (B, K, *S) and coarser
    known_share: torch.Tensor | None = None  # of each position's voxels, (B, 1, *S / f); None: nothing is ever ignored


class LDSegNet(nn.Module):
    """Latent conditional diffusion for segmentation (LDSeg, 2407.12952), configured by `LDSegConfig`.

    Args:
        input_channels: C.
        num_classes: K, labels with background (softmax) or regions (sigmoid).
        deep_supervision: nnU-Net's loader passes it; this network has heads on the condition instead.
        arch_kwargs: the fields of `LDSegConfig`.

    Raises:
        LDSegError: the configuration is not valid.
    """

    alpha_bar: torch.Tensor

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **arch_kwargs: Any):
        super().__init__()
        if deep_supervision:
            raise LDSegError("LDSegNet has no deep supervision outputs.", "Train it with LDSegTrainer.")
        self.config = LDSegConfig.from_arch_kwargs(arch_kwargs)
        self.num_classes = num_classes
        self.image_encoder = ImageEncoder(self.config, input_channels)
        self.label_encoder = LabelEncoder(self.config, num_classes)
        self.denoiser = Denoiser(self.config, self.image_encoder.channels)
        self.label_decoder = LabelDecoder(self.config, num_classes)
        self.heads = ConditionHeads(
            self.config.conv_op, self.config.features_per_stage[self.config.latent_stage:], num_classes,
            self.config.latent_stride)
        # float32: not every device knows float64
        self.register_buffer("alpha_bar", alpha_bar(
            self.config.schedule, self.config.timesteps, self.config.zero_terminal_snr).float(), persistent=False)

    def forward(self, image: torch.Tensor, target: torch.Tensor | None = None, noise: torch.Tensor | None = None,
                timestep: torch.Tensor | None = None,
                recycled: torch.Tensor | None = None) -> torch.Tensor | TrainingOutput:
        """Segment, or with a target compute what the loss needs.

        Args:
            image: (B, C, *S).
            target: nnU-Net's: label map (B, 1, *S), or regions (B, R, *S) with the ignore mask last if there is one.
            noise: standard normal, (B, c, *S / f); needed with a target.
            timestep: (B,), from 1 to T; needed with a target.
            recycled: (B,), where True z_t is made from the network's own one-step estimate, as in sampling.

        Returns:
            Logits (B, K, *S) of the mean of `sampler_samples` posterior samples, or a `TrainingOutput`.
        """
        self.check_shape(image)
        if target is None:
            return self._segment(image)
        if noise is None or timestep is None:
            raise ValueError("With a target, noise and timestep are needed too.")
        features = self.image_encoder(image)
        latent, known = self.encode_label(target), self.known_share(target)
        signal = self.alpha_bar[timestep]
        noisy = add_noise(latent, noise, signal)
        if recycled is not None:
            noisy, noise = self._recycle(latent, noise, noisy, signal, features[0], recycled)
        output = self.denoise(noisy, timestep, features[0])
        return TrainingOutput(
            estimate_logits=self.decode(self.estimate(output, noisy, signal, known)),
            coding_logits=self.decode(latent), denoiser_output=output,
            denoiser_target=denoiser_target(self.config.prediction, latent, noise, signal),
            head_logits=self.heads(features), known_share=known)

    @torch.no_grad()
    def _recycle(self, latent: torch.Tensor, noise: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor,
                 condition: torch.Tensor, recycled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z_t as deterministic sampling meets it: the estimate from z_T = noise, mixed with that same noise.

        In training z_t otherwise holds the truth, in sampling it holds the network's own errors; here it learns to
        correct them (recycling, Fu et al., MELBA 2023:016). Returns z_t and the noise that leads to it from z_0.
        """
        last = torch.full((len(noise),), self.config.timesteps, device=noise.device)
        estimate = self.estimate(self.denoise(noise, last, condition), noise, self.alpha_bar[last])
        where = recycled.reshape(-1, *[1] * (noise.ndim - 1))
        noisy = torch.where(where, add_noise(estimate, noise, signal), noisy)
        return noisy, torch.where(where, estimate_noise(latent, noisy, signal), noise)

    def check_shape(self, image: torch.Tensor) -> None:
        """Raises ValueError where the encoder's strides do not divide the image."""
        total = self.config.cumulative_strides()[-1]
        if any(size % stride for size, stride in zip(image.shape[2:], total, strict=True)):
            raise ValueError(f"Image of shape {tuple(image.shape[2:])}: every axis must be a multiple of {total}.")

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> condition (B, d, *S / f)."""
        return self.image_encoder(image)[0]

    def encode_label(self, target: torch.Tensor) -> torch.Tensor:
        """nnU-Net's target (see `forward`) -> latent z_0, (B, c, *S / f).

        Ignored voxels are no label and thereby unlike background: all channels are zero. Regions that are all zero
        would be background: there each is present by one half. In a code that starts as principal components both lie
        in the middle of the labels' codes. Positions count in the codes' statistics by the share of their voxels that
        is known.
        """
        channels = self.label_channels(target)
        if self.config.ignore_label is not None and self.config.output == "sigmoid":
            channels = channels.masked_fill(~self.known_voxels(target), 0.5)
        return self.label_encoder(channels, self.known_share(target))

    def label_channels(self, target: torch.Tensor) -> torch.Tensor:
        """nnU-Net's target -> one-hot labels or multi-hot regions, float, (B, K, *S); zero where ignored."""
        if self.config.output == "sigmoid":
            regions = target[:, :self.num_classes].float()
            return regions * (1 - target[:, -1:].float()) if self.config.ignore_label is not None else regions
        labels = target.long()
        if self.config.ignore_label is None:
            return torch.zeros_like(target, dtype=torch.float32).repeat(
                1, self.num_classes, *[1] * (target.ndim - 2)).scatter_(1, labels, 1)
        known = labels != self.config.ignore_label
        one_hot = F.one_hot(torch.where(known, labels, 0)[:, 0], self.num_classes).movedim(-1, 1)
        return one_hot.float() * known

    def known_voxels(self, target: torch.Tensor) -> torch.Tensor:
        """nnU-Net's target -> whether each voxel has a label, bool, (B, 1, *S)."""
        if self.config.ignore_label is None:
            return torch.ones_like(target[:, :1], dtype=torch.bool)
        if self.config.output == "sigmoid":
            return ~target[:, -1:].bool()
        return target != self.config.ignore_label

    def known_share(self, target: torch.Tensor) -> torch.Tensor | None:
        """nnU-Net's target -> the share of each latent position's voxels that have a label, (B, 1, *S / f); None where
        the data set has no ignore label."""
        if self.config.ignore_label is None:
            return None
        average = F.avg_pool2d if target.ndim == 4 else F.avg_pool3d
        return average(self.known_voxels(target).float(), self.config.latent_stride)

    def denoise(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """z_t (B, c, *g), t (B,), condition (B, d, *g) -> the denoiser's output, float32, (B, c, *g)."""
        return self.denoiser(noisy, timestep, condition, self.alpha_bar[timestep]).float()

    def estimate(self, output: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor,
                 known: torch.Tensor | None = None) -> torch.Tensor:
        """The estimate of z_0 that the denoiser's output for z_t stands for, (B, c, *g); signal is alpha_bar_t, (B,).

        With per-sample standardisation it is standardised as the codes are (in training by the positions that are
        `known`, (B, 1, *g)), which takes back the division by sqrt(alpha_bar_t) of a predicted eps, up to 20,000 near
        t = T.
        """
        latent = estimate_latent(self.config.prediction, output, noisy, signal)
        return latent if self._constrain is None else self._constrain(latent, known)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, c, *S / f) -> logits (B, K, *S)."""
        return self.label_decoder(latent)

    def sample(self, condition: torch.Tensor, noise: torch.Tensor, steps: int | None = None,
               eta: float | None = None, step_noise: StepNoise | None = None) -> torch.Tensor:
        """Posterior samples of z_0 by DDIM.

        Args:
            condition: (B, d, *g).
            noise: z_T, (B, c, *g).
            steps, eta: the configuration's where None.
            step_noise: needed where eta > 0.
        """
        return ddim(lambda z, t: self.denoise(z, t, condition), noise, self.alpha_bar, self.config.prediction,
                    self.config.sampler_steps if steps is None else steps,
                    self.config.sampler_eta if eta is None else eta, step_noise, self._constrain)

    @property
    def _constrain(self) -> Callable[..., torch.Tensor] | None:
        return self.label_encoder.standardise if self.config.standardisation == "sample" else None

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over labels or sigmoid of regions, float32."""
        logits = logits.float()
        return logits.softmax(1) if self.config.output == "softmax" else logits.sigmoid()

    def logits(self, probabilities: torch.Tensor, floor: float) -> torch.Tensor:
        """The inverse of `probabilities` (up to a constant per voxel for labels), clamped at `floor`."""
        return (probabilities.clamp(floor, 1).log() if self.config.output == "softmax"
                else probabilities.logit(eps=floor))

    @contextmanager
    def sampler(self, steps: int, samples: int) -> Iterator[None]:
        """Inside the block `forward(image)` uses this many steps and samples."""
        before = self.config
        self.config = replace(before, sampler_steps=steps, sampler_samples=samples)
        try:
            yield
        finally:
            self.config = before

    def _segment(self, image: torch.Tensor) -> torch.Tensor:
        """Mean of the default samples, with the same noise for every image: what nnU-Net's own predictor runs."""
        condition = self.encode_image(image)
        generator = torch.Generator().manual_seed(_STOCK_SEED)
        grid = (self.config.latent_channels, *condition.shape[2:])

        def draw(_: int) -> torch.Tensor:
            return torch.randn((1, *grid), generator=generator).expand(len(image), *grid).to(image.device)

        mean = torch.zeros((), device=image.device)
        for _ in range(self.config.sampler_samples):
            latent = self.sample(condition, draw(-1), step_noise=draw)
            mean = mean + self.probabilities(self.decode(latent)) / self.config.sampler_samples
        return self.logits(mean, _PROBABILITY_FLOOR)
