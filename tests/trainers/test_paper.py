"""The published recipe: its equations, and that it trains and predicts in 2D and 3D."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from torch.nn import functional as F  # noqa: N812, the field's usual name

from ldseg_auto.cli import predict, train
from ldseg_auto.trainers.variants.paper import PAPER_CONFIG, LDSegTrainerPaper

CPU = torch.device("cpu")


def make_trainer(world, configuration="3d_fullres"):
    plans = load_json(str(world["preprocessed"] / "LDSegPlans.json")) | {"continue_training": False}
    trainer = LDSegTrainerPaper(plans, configuration, 3, load_json(str(world["preprocessed"] / "dataset.json")), CPU)
    torch.manual_seed(0)
    trainer.initialize()
    return trainer


def make_batch(trainer, samples=3):
    generator = torch.Generator().manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    target = torch.zeros(samples, 1, *patch)
    target[:, :, 2:-3, 3:-2] = 1
    target[:, :, 4:-5, 4:-4] = 2
    return torch.randn(samples, 1, *patch, generator=generator), target


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_plans_keep_what_the_paper_leaves_open(in_small_world, configuration):
    trainer = make_trainer(in_small_world, configuration)
    planned = trainer.configuration_manager.network_arch_init_kwargs
    config = trainer.unwrapped_network.config
    for name, value in PAPER_CONFIG.items():
        assert getattr(config, name) == value
    assert config.latent_stride == tuple(planned["latent_stride"])
    assert config.features_per_stage == tuple(planned["features_per_stage"])
    assert planned["prediction"] == "x0", "the plans in memory are not touched"


def test_the_loss_is_cross_entropy_and_twice_dice_and_the_error_of_eps(in_small_world):
    trainer = make_trainer(in_small_world)
    data, target = make_batch(trainer)
    noise, timestep, recycled = trainer.draw_noise(data)
    assert recycled is None
    output = trainer.network(data, target, noise, timestep)
    logits, labels = output.estimate_logits, target[:, 0].long()
    p, truth = logits.softmax(1)[:, 1:], F.one_hot(labels, 3).movedim(-1, 1)[:, 1:]
    axes = (0, 2, 3, 4) if trainer.configuration_manager.batch_dice else (2, 3, 4)
    dice = (2 * (p * truth).sum(axes) + 1e-5) / (p.sum(axes) + truth.sum(axes) + 1e-5)
    expected = F.cross_entropy(logits, labels) - 2 * dice.mean() + F.mse_loss(output.denoiser_output, noise)
    assert trainer.loss(output, target).item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("timestep", [1, 500, 1000])
def test_the_estimate_is_scale_free(in_small_world, timestep):
    """standardise(z_t - sqrt(1 - alpha_bar_t) eps_hat), with or without the division by sqrt(alpha_bar_t)."""
    net = make_trainer(in_small_world).unwrapped_network.eval()
    noisy, output = torch.randn(2, 2, 1, 4, 5, 4, generator=torch.Generator().manual_seed(0))
    signal = net.alpha_bar[torch.full((2,), timestep)]
    undivided = noisy - (1 - signal).sqrt().reshape(2, 1, 1, 1, 1) * output
    variance, mean = torch.var_mean(undivided, (2, 3, 4), correction=0, keepdim=True)
    expected = (undivided - mean) / variance.sqrt()
    # the floor of the variance counts where z_t is hardly noisy, least where the division is large
    assert torch.allclose(net.estimate(output, noisy, signal), expected, atol=0.03 if timestep < 1000 else 1e-4)


def test_every_case_is_standardised_by_itself(in_small_world):
    """As published, the whole batch was: a case's result depended on its neighbours."""
    trainer = make_trainer(in_small_world)
    net = trainer.unwrapped_network.eval()
    data, target = make_batch(trainer)
    target[1:] = 0
    noise = torch.randn(3, 1, *net.encode_image(data).shape[2:], generator=torch.Generator().manual_seed(0))
    sample = lambda z: net.sample(net.encode_image(data[:len(z)]), z)  # noqa: E731
    for function, values in ((net.encode_label, target), (sample, noise)):
        together = function(values)
        assert torch.allclose(together[:1], function(values[:1]), atol=1e-3)
        assert together[0].mean().item() == pytest.approx(0, abs=1e-3)


def test_every_timestep_is_as_likely_as_another(in_small_world):
    trainer = make_trainer(in_small_world)
    data = torch.zeros(1, 1, *trainer.configuration_manager.patch_size).expand(
        20_000, -1, *trainer.configuration_manager.patch_size)
    timestep = trainer.draw_noise(data)[1]
    assert timestep.min() == 1 and timestep.max() == 1000
    counts = torch.histc(timestep.float(), 10, 0.5, 1000.5)
    assert (counts - 2000).abs().max() < 300


@pytest.mark.parametrize("configuration", [pytest.param("2d", marks=pytest.mark.slow), "3d_fullres"])
def test_it_trains_and_predicts(in_small_world, tmp_path, configuration, monkeypatch):
    monkeypatch.setattr(LDSegTrainerPaper, "validation_mirroring", False)  # eight times as quick
    assert train.main(["7", "0", "-c", configuration, "-tr", "LDSegTrainerPaper", "--epochs", "1",
                       "--iterations_per_epoch", "2", "-device", "cpu", "--seed", "0"]) == 0
    fold = in_small_world["model"].parent / f"LDSegTrainerPaper__LDSegPlans__{configuration}" / "fold_0"
    signs = json.loads((fold / "latent_signs.json").read_text())
    assert (signs["samples"], signs["steps"]) == (5, 15)
    assert np.isfinite(json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"])
    assert predict.main(["-i", str(in_small_world["images"]), "-o", str(tmp_path), "-d", "7", "-c", configuration,
                         "-tr", "LDSegTrainerPaper", "-f", "0", "--disable_tta", "--save_probabilities", "-npp", "0",
                         "-nps", "0", "-device", "cpu"]) == 0
    for image in in_small_world["images"].iterdir():
        case = image.name.removesuffix("_0000.nii.gz")
        assert sitk.ReadImage(str(tmp_path / f"{case}.nii.gz")).GetSize() == sitk.ReadImage(str(image)).GetSize()
        assert np.load(tmp_path / f"{case}.npz")["probabilities"].std() > 0
