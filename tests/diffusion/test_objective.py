"""The forward process and its inverses."""

import pytest
import torch

from ldseg_auto.config import PREDICTIONS
from ldseg_auto.diffusion.objective import add_noise, denoiser_target, estimate_latent, estimate_noise


@pytest.fixture(params=[(2, 3, 4, 5), (2, 3, 4, 5, 2)], ids=["2d", "3d"])
def latent_and_noise(request):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(request.param, generator=generator, dtype=torch.float64),
            torch.randn(request.param, generator=generator, dtype=torch.float64))


def test_noisy_latent_is_a_mixture_of_each_sample_own_level(latent_and_noise):
    latent, noise = latent_and_noise
    noisy = add_noise(latent, noise, torch.tensor([0.25, 1.0], dtype=torch.float64))
    assert torch.allclose(noisy[0], 0.5 * latent[0] + 0.75 ** 0.5 * noise[0])
    assert torch.equal(noisy[1], latent[1])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_denoiser_gives_the_latent_and_the_noise_back(prediction, latent_and_noise):
    latent, noise = latent_and_noise
    signal = torch.tensor([0.1, 0.9], dtype=torch.float64)
    noisy = add_noise(latent, noise, signal)
    output = denoiser_target(prediction, latent, noise, signal)
    estimate = estimate_latent(prediction, output, noisy, signal)
    assert torch.allclose(estimate, latent)
    assert torch.allclose(estimate_noise(estimate, noisy, signal), noise)


def test_targets_of_the_prediction_types_differ(latent_and_noise):
    latent, noise = latent_and_noise
    targets = [denoiser_target(p, latent, noise, torch.tensor([0.3, 0.3])) for p in PREDICTIONS]
    assert not any(torch.allclose(a, b) for i, a in enumerate(targets) for b in targets[i + 1:])


def test_velocity_at_pure_noise_is_minus_the_latent(latent_and_noise):
    latent, noise = latent_and_noise
    assert torch.allclose(denoiser_target("v", latent, noise, torch.zeros(2)), -latent)


def test_the_clean_latent_holds_no_noise(latent_and_noise):
    latent, _ = latent_and_noise
    assert torch.equal(estimate_noise(latent, latent, torch.ones(2)), torch.zeros_like(latent))


@pytest.mark.parametrize("function", [lambda: denoiser_target("score", *[torch.zeros(1, 1)] * 2, torch.zeros(1)),
                                      lambda: estimate_latent("score", *[torch.zeros(1, 1)] * 2, torch.zeros(1))])
def test_unknown_prediction_is_named(function):
    with pytest.raises(ValueError, match="score"):
        function()
