"""Is it still latent diffusion? Three signs, measured on patches whose truth is known.

(a) use of the latent: how much better the estimate of z_0 gets when z_t holds part of the true z_0;
(b) label-coding error: what the code itself loses;
(c) whether the mean of posterior samples beats the one-step prediction, and how alike samples are.
A denoiser that ignores z_t is a regressor in disguise, whatever its Dice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy import stats

from ldseg_auto.diffusion.objective import add_noise
from ldseg_auto.networks.ldseg_net import LDSegNet

MIN_USE_OF_LATENT = 0.25  # of the gap between alpha_bar 0 and label coding, at alpha_bar .5
WARN_USE_OF_LATENT = 0.05
_SIGNAL_LEVELS = (0.0, 0.5, 0.95)


@dataclass(frozen=True)
class LatentSigns:
    """Dice (mean of the classes, averaged over patches) behind the three signs."""

    coding_dice: float  # decode(z_0)
    dice_at_0: float  # decode(estimate of z_0 from z_t), alpha_bar_t nearest to 0
    dice_at_50: float  # nearest to .5
    dice_at_95: float  # nearest to .95
    one_step_dice: float
    mean_of_samples_dice: float
    pairwise_dice: float  # between samples of one image

    @property
    def use_of_latent(self) -> float:
        """Sign (a): share of the gap between alpha_bar 0 and label coding that alpha_bar .5 closes."""
        gap = self.coding_dice - self.dice_at_0
        return (self.dice_at_50 - self.dice_at_0) / gap if gap > 0 else float("nan")


SERIES = tuple(f.name for f in fields(LatentSigns))


def dice_per_patch(prediction: torch.Tensor, truth: torch.Tensor, foreground: slice) -> torch.Tensor:
    """(B, K, *S) twice, 0 or 1 -> (B,) mean Dice of the classes that one of both holds; 1 where there are none."""
    axes = tuple(range(2, truth.ndim))
    prediction, truth = prediction[:, foreground].float(), truth[:, foreground].float()
    overlap, total = (prediction * truth).sum(axes), prediction.sum(axes) + truth.sum(axes)
    present = total > 0
    dice = torch.where(present, 2 * overlap / total.clamp(min=1), 0).sum(1) / present.sum(1).clamp(min=1)
    return torch.where(present.any(1), dice, torch.ones_like(dice))


@torch.no_grad()
def signs_per_patch(net: LDSegNet, image: torch.Tensor, target: torch.Tensor, generator: torch.Generator,
                    samples: int, steps: int) -> dict[str, torch.Tensor]:
    """Every Dice of `LatentSigns` for each patch.

    Args:
        net: in evaluation mode.
        image: (B, C, *S). target: nnU-Net's, see `LDSegNet.forward`. Both on the network's device.
        generator: on the CPU.

    Returns:
        Each field of `LatentSigns`: (B,).
    """
    truth = net.label_channels(target)
    known = net.known_voxels(target)
    foreground = slice(1, None) if net.config.output == "softmax" else slice(None)
    condition, latent = net.encode_image(image), net.encode_label(target)

    def draw(_: int = 0) -> torch.Tensor:
        return torch.randn(latent.shape, generator=generator).to(latent)

    def segmented(probabilities: torch.Tensor) -> torch.Tensor:
        hard = (torch.zeros_like(probabilities).scatter_(1, probabilities.argmax(1, keepdim=True), 1)
                if net.config.output == "softmax" else probabilities > 0.5)
        return hard * known

    def score(probabilities: torch.Tensor) -> torch.Tensor:
        return dice_per_patch(segmented(probabilities), truth, foreground)

    def decoded(z: torch.Tensor) -> torch.Tensor:
        return net.probabilities(net.decode(z))

    result = {"coding_dice": score(decoded(latent))}
    for level in _SIGNAL_LEVELS:
        t = int((net.alpha_bar[1:] - level).abs().argmin()) + 1
        signal = net.alpha_bar[t].expand(len(image))
        noisy = add_noise(latent, draw(), signal)
        output = net.denoise(noisy, torch.full((len(image),), t, device=image.device), condition)
        result[f"dice_at_{round(100 * level)}"] = score(decoded(net.estimate(output, noisy, signal)))
    result["one_step_dice"] = score(decoded(net.sample(condition, draw(), steps=1, eta=0.0)))
    drawn = [decoded(net.sample(condition, draw(), steps=steps, step_noise=draw)) for _ in range(samples)]
    result["mean_of_samples_dice"] = score(torch.stack(drawn).mean(0))
    hard = [segmented(p) for p in drawn]
    pairs = [dice_per_patch(a, b, foreground) for i, a in enumerate(hard) for b in hard[i + 1:]]
    result["pairwise_dice"] = torch.stack(pairs).mean(0) if pairs else torch.ones(len(image))
    return result


def average(per_patch: dict[str, torch.Tensor]) -> LatentSigns:
    """Mean over patches."""
    return LatentSigns(**{name: float(per_patch[name].mean()) for name in SERIES})


def summary(per_case: dict[str, torch.Tensor], samples: int, steps: int) -> dict:
    """The three signs over cases, as they are written beside the validation.

    Args:
        per_case: of `signs_per_patch`, cases concatenated; for the interval two cases are needed, else it is None,
            as is the use of the latent where label coding is no better than alpha_bar 0.
    """
    signs = average(per_case)
    gain = (per_case["mean_of_samples_dice"] - per_case["one_step_dice"]).double().cpu().numpy()
    interval = None
    if len(gain) > 1:
        half_width = float(stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain))
        interval = [float(np.mean(gain)) - half_width, float(np.mean(gain)) + half_width]
    coding_error, prediction_error = 1 - signs.coding_dice, 1 - signs.mean_of_samples_dice
    return {
        "cases": len(gain), "samples": samples, "steps": steps, **asdict(signs),
        "use_of_latent": None if np.isnan(signs.use_of_latent) else signs.use_of_latent,
        "use_of_latent_holds": bool(signs.use_of_latent >= MIN_USE_OF_LATENT),
        "coding_error_over_prediction_error": coding_error / prediction_error if prediction_error > 0 else 0.0,
        "label_coding_holds": bool(coding_error <= 0.5 * prediction_error),
        "gain_of_samples": float(np.mean(gain)),
        "gain_of_samples_95": interval,
        "gain_of_samples_holds": bool(np.mean(gain) > 0),
    }


def in_words(result: Mapping[str, Any]) -> str:
    """The three signs of `summary` in one line, each with its limit and whether it holds."""
    use, interval = result["use_of_latent"], result["gain_of_samples_95"]
    spread = "" if interval is None else f" (95% interval {interval[0]:+.4f} to {interval[1]:+.4f})"
    signs = [
        (f"use of the latent {'not defined' if use is None else f'{use:.0%}'}, at least {MIN_USE_OF_LATENT:.0%}",
         result["use_of_latent_holds"]),
        (f"label-coding error {result['coding_error_over_prediction_error']:.0%} of the prediction's, at most 50%",
         result["label_coding_holds"]),
        (f"gain of {result['samples']} samples over one step {result['gain_of_samples']:+.4f} Dice{spread}, above 0",
         result["gain_of_samples_holds"])]
    return "; ".join(f"{text}: {'holds' if holds else 'DOES NOT HOLD'}" for text, holds in signs)
