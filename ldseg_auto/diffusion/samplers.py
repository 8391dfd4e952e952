"""DDIM: from noise to a latent in any number of steps (Song 2010.02502, eq. 12 and 16)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ldseg_auto.diffusion.objective import estimate_latent, estimate_noise

# (z_t, timestep of each sample) -> the denoiser's output; whatever conditions it is bound beforehand
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# (index of the step) -> standard normal noise of the latent's shape
StepNoise = Callable[[int], torch.Tensor]


def sampling_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps from T down, evenly spaced; the last one leads to t = 0 ("trailing" in Lin 2305.08891).

    Raises:
        ValueError: fewer than 1 step or more than T.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"{steps} sampling steps; choose from 1 to {timesteps}.")
    return [round(timesteps * (1 - i / steps)) for i in range(steps)]


def ddim(denoiser: Denoiser, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction: str, steps: int,
         eta: float = 0.0, step_noise: StepNoise | None = None,
         constrain: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """Sample a latent.

    Args:
        denoiser: conditioned already.
        noise: z_T, (B, c, *grid), float32 (or float64).
        alpha_bar: (T + 1,) of `schedule.alpha_bar`.
        prediction: what the denoiser outputs.
        steps: number of denoiser calls.
        eta: 0 is deterministic; 1 is ancestral sampling (DDPM with these steps).
        step_noise: needed where eta > 0; called with 0 .. steps - 2.
        constrain: applied to each estimate of z_0 (the paper's recipe standardises it).

    Returns:
        z_0, (B, c, *grid). The last step adds no noise, whatever eta.

    Raises:
        ValueError: eta outside [0, 1] or > 0 without `step_noise`, or an impossible number of steps.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; choose from 0 (deterministic) to 1 (ancestral).")
    if eta > 0 and step_noise is None:
        raise ValueError("eta > 0 needs step_noise.")
    path = [*sampling_timesteps(len(alpha_bar) - 1, steps), 0]
    z = noise
    for i, (t, t_next) in enumerate(zip(path[:-1], path[1:], strict=True)):
        signal = alpha_bar[t].to(z).expand(len(z))
        output = denoiser(z, torch.full((len(z),), t, device=z.device)).to(z.dtype)
        latent = estimate_latent(prediction, output, z, signal)
        if constrain is not None:
            latent = constrain(latent)
        if t_next == 0:
            return latent
        direction = estimate_noise(latent, z, signal)
        variance = _step_variance(alpha_bar[t], alpha_bar[t_next], eta)
        # rounding may push the radicand below zero where eta = 1 starts from alpha_bar = 0
        spread = (1 - alpha_bar[t_next] - variance).clamp(min=0).sqrt()
        z = alpha_bar[t_next].sqrt().to(z) * latent + spread.to(z) * direction
        if step_noise is not None and eta > 0:
            z = z + variance.sqrt().to(z) * step_noise(i).to(z)
    raise AssertionError("the path ends at t = 0")


def _step_variance(signal: torch.Tensor, signal_next: torch.Tensor, eta: float) -> torch.Tensor:
    """sigma_t^2 of a step (Song 2010.02502, eq. 16)."""
    return eta ** 2 * (1 - signal_next) / (1 - signal) * (1 - signal / signal_next)
