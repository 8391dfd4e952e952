"""DDIM against diffusers (float64) and in its limits."""

import pytest
import torch
from diffusers import DDIMScheduler

from ldseg_auto.config import SCHEDULES
from ldseg_auto.diffusion.samplers import ddim, sampling_timesteps
from ldseg_auto.diffusion.schedule import alpha_bar

NAMES = {"x0": "sample", "v": "v_prediction", "eps": "epsilon"}
SHAPE = (2, 3, 4, 4)


def toy_denoiser(z, t):
    """Smooth, bounded and dependent on both arguments."""
    return torch.tanh(0.7 * z + 0.001 * t.reshape(-1, 1, 1, 1).to(z))


def noises(number):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(number)]


def sampled_by_diffusers(signal, prediction, steps, eta):
    scheduler = DDIMScheduler(num_train_timesteps=1000, prediction_type=NAMES[prediction], clip_sample=False,
                              set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.alphas_cumprod = signal[1:].clone()
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    z, *rest = noises(steps + 1)
    for i, t in enumerate(scheduler.timesteps):
        # their t counts from 0, ours from 1; they add noise at the last step too, where its variance is 0
        output = toy_denoiser(z, torch.full((len(z),), int(t) + 1))
        z = scheduler.step(output, t, z, eta=eta, variance_noise=rest[i]).prev_sample
    return z


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (2, 0.0), (10, 0.0), (10, 0.5), (20, 1.0)])
def test_agrees_with_diffusers(schedule, prediction, steps, eta):
    signal = alpha_bar(schedule, 1000, False)
    start, *rest = noises(steps + 1)
    ours = ddim(toy_denoiser, start, signal, prediction, steps, eta, lambda i: rest[i])
    assert torch.allclose(ours, sampled_by_diffusers(signal, prediction, steps, eta), rtol=1e-5)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_zero_terminal_snr_stays_finite(prediction, eta):
    start, *rest = noises(8)
    z = ddim(toy_denoiser, start.float(), alpha_bar("cosine", 1000, True), prediction, 7, eta, lambda i: rest[i])
    assert torch.isfinite(z).all()
    assert z.dtype == torch.float32


def test_a_denoiser_that_knows_the_latent_finds_it_in_any_number_of_steps():
    latent, start = noises(2)
    for steps in (1, 2, 3, 7, 50):
        z = ddim(lambda z, t: latent, start, alpha_bar("cosine", 1000, True), "x0", steps)
        assert torch.allclose(z, latent)


def test_one_step_is_the_denoiser_itself():
    start, = noises(1)
    z = ddim(toy_denoiser, start, alpha_bar("cosine", 1000, True), "x0", 1)
    assert torch.equal(z, toy_denoiser(start, torch.full((2,), 1000)))


def test_steps_and_eta_and_constrain_have_an_effect():
    start, *rest = noises(11)
    signal = alpha_bar("cosine", 1000, True)

    def sample(steps, eta=0.0, constrain=None):
        return ddim(toy_denoiser, start, signal, "x0", steps, eta, lambda i: rest[i], constrain)
    results = [sample(1), sample(10), sample(10, 1.0), sample(10, constrain=lambda z: z / z.std())]
    assert not any(torch.allclose(a, b, rtol=1e-3) for i, a in enumerate(results) for b in results[i + 1:])


def test_eta_zero_draws_no_noise():
    start, = noises(1)

    def refuse(_):
        raise AssertionError("no noise is to be drawn")
    ddim(toy_denoiser, start, alpha_bar("cosine", 1000, True), "x0", 5, 0.0, refuse)


def test_timesteps_run_from_the_last_down():
    assert sampling_timesteps(1000, 4) == [1000, 750, 500, 250]
    assert sampling_timesteps(10, 3) == [10, 7, 3]


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match=str(steps)):
        sampling_timesteps(1000, steps)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_impossible_eta_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        ddim(toy_denoiser, torch.zeros(SHAPE), alpha_bar("cosine", 1000, True), "x0", 2, eta)


def test_eta_without_noise_is_refused():
    with pytest.raises(ValueError, match="step_noise"):
        ddim(toy_denoiser, torch.zeros(SHAPE), alpha_bar("cosine", 1000, True), "x0", 2, 1.0)
