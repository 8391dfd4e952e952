"""Schedules against their formulas and against diffusers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from ldseg_auto.config import SCHEDULES
from ldseg_auto.diffusion.schedule import alpha_bar

DIFFUSERS = {"cosine": {"beta_schedule": "squaredcos_cap_v2"},
             "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
             "quadratic": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_starts_at_one_and_decreases(schedule, zero_terminal_snr):
    signal = alpha_bar(schedule, 1000, zero_terminal_snr)
    assert signal.shape == (1001,)
    assert signal[0] == 1
    assert (signal[1:] < signal[:-1]).all()
    assert (signal[-1] == 0) == zero_terminal_snr


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_agrees_with_diffusers(schedule, zero_terminal_snr):
    # diffusers computes in float32: its values carry that error
    theirs = DDIMScheduler(num_train_timesteps=1000, rescale_betas_zero_snr=zero_terminal_snr, **DIFFUSERS[schedule])
    ours = alpha_bar(schedule, 1000, zero_terminal_snr)[1:]
    assert torch.allclose(ours, theirs.alphas_cumprod.double(), rtol=2e-3, atol=1e-6)


def test_cosine_follows_its_formula():
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    signal = alpha_bar("cosine", 1000, False)
    for t in (1, 250, 500, 900):
        assert signal[t].item() == pytest.approx(f(t) / f(0), rel=1e-9)


def test_schedules_differ():
    halves = {schedule: alpha_bar(schedule, 1000, True)[500].item() for schedule in SCHEDULES}
    assert len({round(value, 3) for value in halves.values()}) == len(SCHEDULES)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="sigmoid"):
        alpha_bar("sigmoid", 1000, False)
