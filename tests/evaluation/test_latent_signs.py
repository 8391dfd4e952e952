"""The signs tell a denoiser that uses z_t from one that ignores it."""

import json
import math

import pytest
import torch

from ldseg_auto.evaluation import latent_signs
from ldseg_auto.evaluation.latent_signs import LatentSigns, dice_per_patch, in_words, signs_per_patch, summary


class CodeIsLabel(torch.nn.Module):
    """The latent is the one-hot label itself, in units in which noise hurts; the condition is a poor guess."""

    class config:  # noqa: N801, stands in for a configuration
        output, prediction = "softmax", "x0"

    def __init__(self, uses_latent):
        super().__init__()
        self.uses_latent = uses_latent
        self.alpha_bar = torch.linspace(1, 0, 101, dtype=torch.float64)

    def label_channels(self, target):
        return torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()

    def known_voxels(self, target):
        return torch.ones_like(target, dtype=torch.bool)

    def encode_label(self, target):
        return 4 * self.label_channels(target)

    def encode_image(self, image):
        return image

    def denoise(self, noisy, timestep, condition):
        keep = self.alpha_bar[timestep].sqrt().float().reshape(-1, 1, 1, 1)
        return keep * noisy + (1 - keep) * condition if self.uses_latent else condition

    def estimate(self, output, noisy, signal):
        return output

    def decode(self, latent):
        return latent

    def probabilities(self, logits):
        return logits.softmax(1)

    def sample(self, condition, noise, steps, eta=None, step_noise=None):
        return condition + noise * (steps > 1)


@pytest.fixture
def patches():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (6, 1, 16, 16), generator=generator).float()
    guess = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()
    return guess + torch.randn(guess.shape, generator=generator) * 0.8, target


def measured(uses_latent, patches, samples=5):
    return signs_per_patch(CodeIsLabel(uses_latent), *patches, torch.Generator().manual_seed(0), samples, steps=2)


def test_a_denoiser_that_uses_the_latent_gets_better_with_signal(patches):
    signs = latent_signs.average(measured(True, patches))
    assert signs.coding_dice == 1
    assert signs.dice_at_0 < signs.dice_at_50 < signs.dice_at_95
    assert signs.use_of_latent > latent_signs.MIN_USE_OF_LATENT


def test_a_regressor_in_disguise_is_found(patches):
    signs = latent_signs.average(measured(False, patches))
    assert signs.use_of_latent == pytest.approx(0)
    assert not summary(measured(False, patches), 5, 2)["use_of_latent_holds"]


def test_the_mean_of_noisy_samples_gains_over_each_but_not_over_a_perfect_step(patches):
    per_patch = measured(True, patches, samples=9)
    assert (per_patch["pairwise_dice"] < per_patch["mean_of_samples_dice"]).all()
    assert summary(per_patch, 9, 2)["gain_of_samples"] < 0
    assert not summary(per_patch, 9, 2)["gain_of_samples_holds"]


def test_summary_states_the_interval():
    per_case = {name: torch.full((4,), 0.8) for name in latent_signs.SERIES}
    per_case["mean_of_samples_dice"] = torch.tensor([0.82, 0.84, 0.80, 0.82])
    per_case["coding_dice"] = torch.full((4,), 0.95)
    result = summary(per_case, 5, 2)
    assert result["gain_of_samples"] == pytest.approx(0.02)
    low, high = result["gain_of_samples_95"]
    assert low == pytest.approx(0.02 - 3.182 * 0.01633 / 2, abs=1e-3)
    assert high == pytest.approx(0.04 - low, abs=1e-6)
    assert result["coding_error_over_prediction_error"] == pytest.approx(0.05 / 0.18, rel=1e-3)
    assert result["label_coding_holds"] and result["gain_of_samples_holds"]


def test_a_summary_without_evidence_is_valid_json():
    per_case = {name: torch.full((1,), 0.8) for name in latent_signs.SERIES}
    result = summary(per_case, 5, 2)
    assert result["gain_of_samples_95"] is None and result["use_of_latent"] is None
    json.loads(json.dumps(result, allow_nan=False))


def test_the_signs_in_words():
    held = {"samples": 5, "use_of_latent": 0.412, "use_of_latent_holds": True,
            "coding_error_over_prediction_error": 0.6, "label_coding_holds": False,
            "gain_of_samples": 0.0031, "gain_of_samples_95": [-0.0002, 0.0064], "gain_of_samples_holds": True}
    text = in_words(held)
    assert [part.rsplit(": ", 1)[1] for part in text.split("; ")] == ["holds", "DOES NOT HOLD", "holds"]
    for part in ("use of the latent 41%, at least 25%", "error 60% of the prediction's, at most 50%",
                 "gain of 5 samples over one step +0.0031 Dice (95% interval -0.0002 to +0.0064), above 0"):
        assert part in text
    assert "\n" not in text and "{" not in text
    text = in_words(held | {"use_of_latent": None, "use_of_latent_holds": False, "gain_of_samples_95": None})
    assert "not defined, at least 25%: DOES NOT HOLD" in text and "interval" not in text


def test_dice_per_patch_counts_what_is_there():
    truth = torch.zeros(3, 3, 2, 2)
    truth[:, 0] = 1
    prediction = truth.clone()
    truth[0, 1, 0] = 1  # class 1 missed in patch 0
    prediction[1, 2, 0] = 1  # class 2 invented in patch 1; patch 2 is empty and stays so
    assert dice_per_patch(prediction, truth, slice(1, None)).tolist() == [0, 0, 1]


def test_no_gap_is_not_a_share():
    signs = LatentSigns(0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0)
    assert math.isnan(signs.use_of_latent)
