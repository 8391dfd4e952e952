"""The forward process and what the denoiser is trained to output.

    symbol        here            meaning
    z_0           latent          standardised code of the label map, (B, c, *grid)
    eps           noise           standard normal, of the same shape
    z_t           noisy           sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps
    v             velocity        sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) z_0 (Salimans & Ho 2202.00512, eq. 11)

`signal` is alpha_bar_t, one value per sample, (B,); 1 is the clean latent, 0 pure noise.
"""

from __future__ import annotations

import torch


def _per_sample(signal: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to broadcast over `like`."""
    signal = signal.reshape(-1, *[1] * (like.ndim - 1))
    return signal.clamp(min=0).sqrt().to(like.dtype), (1 - signal).clamp(min=0).sqrt().to(like.dtype)


def add_noise(latent: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """z_t from z_0 (Ho 2006.11239, eq. 4)."""
    keep, spread = _per_sample(signal, latent)
    return keep * latent + spread * noise


def denoiser_target(prediction: str, latent: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """What a denoiser of this prediction type should output for z_t.

    Raises:
        ValueError: an unknown prediction type.
    """
    if prediction == "x0":
        return latent
    if prediction == "eps":
        return noise
    if prediction == "v":
        keep, spread = _per_sample(signal, latent)
        return keep * noise - spread * latent
    raise ValueError(f"Unknown prediction {prediction!r}; choose x0, v or eps.")


def estimate_latent(prediction: str, output: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """The estimate of z_0 that a denoiser's output stands for.

    Raises:
        ValueError: an unknown prediction type.
    """
    keep, spread = _per_sample(signal, noisy)
    if prediction == "x0":
        return output
    if prediction == "v":
        return keep * noisy - spread * output
    if prediction == "eps":
        return (noisy - spread * output) / keep
    raise ValueError(f"Unknown prediction {prediction!r}; choose x0, v or eps.")


def estimate_noise(latent: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """The noise that leads from an estimate of z_0 to z_t (DDIM, Song 2010.02502, eq. 12).

    Where z_t is the clean latent (alpha_bar_t = 1) there is no noise to find, and zero is returned.
    """
    keep, spread = _per_sample(signal, noisy)
    return torch.where(spread > 0, (noisy - keep * latent) / spread.clamp(min=1e-12), torch.zeros_like(noisy))
