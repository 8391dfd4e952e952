"""Noise schedules: how much of the latent is left at each timestep.

    symbol        here            meaning
    T             timesteps       number of timesteps
    beta_t                        variance added at step t
    alpha_bar_t   alpha_bar[t]    share of the latent's variance left after t steps, alpha_bar[0] = 1
"""

from __future__ import annotations

import math

import torch

_MAX_BETA = 0.999  # Nichol & Dhariwal (2102.09672), section 3.2: the cosine schedule's singularity near T


def alpha_bar(schedule: str, timesteps: int, zero_terminal_snr: bool) -> torch.Tensor:
    """Cumulative signal variance of a schedule.

    Args:
        schedule: "cosine" (Nichol & Dhariwal 2102.09672, eq. 17), "linear" (Ho 2006.11239, beta from 1e-4 to 0.02)
            or "quadratic" (Rombach 2112.10752: sqrt(beta) linear from sqrt(8.5e-4) to sqrt(0.012)).
            The two latter are stated for T = 1000.
        timesteps: T.
        zero_terminal_snr: rescale so that nothing of the latent is left at T (Lin 2305.08891, algorithm 1).

    Returns:
        (T + 1,) float64, decreasing, the first entry 1.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule == "cosine":
        beta = _cosine_betas(timesteps)
    elif schedule == "linear":
        beta = torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)
    elif schedule == "quadratic":
        beta = torch.linspace(math.sqrt(8.5e-4), math.sqrt(0.012), timesteps, dtype=torch.float64) ** 2
    else:
        raise ValueError(f"Unknown schedule {schedule!r}; choose cosine, linear or quadratic.")
    cumulative = torch.cumprod(1 - beta, dim=0)
    if zero_terminal_snr:
        cumulative = _rescaled_to_zero_terminal_snr(cumulative)
    return torch.cat([torch.ones(1, dtype=torch.float64), cumulative])


def _cosine_betas(timesteps: int) -> torch.Tensor:
    position = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal = torch.cos((position + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=_MAX_BETA)


def _rescaled_to_zero_terminal_snr(cumulative: torch.Tensor) -> torch.Tensor:
    root = cumulative.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2
