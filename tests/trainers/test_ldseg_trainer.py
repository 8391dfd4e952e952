"""The trainer on a tiny data set, through nnU-Net's real classes."""

import json

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from ldseg_auto.config import FORMAT_KEY, PLANS_FORMAT
from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.latent_signs import SERIES
from ldseg_auto.trainers import budget, checkpoint
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.variants.training_length import (
    LDSegTrainer_1epoch,
    LDSegTrainer_5iterations,
    LDSegTrainer_250epochs,
)

CPU = torch.device("cpu")


def make_trainer(world, cls=LDSegTrainer, configuration="3d_fullres", fold=1, **attributes):
    plans = load_json(str(world["preprocessed"] / "LDSegPlans.json")) | {"continue_training": False}
    trainer = cls(plans, configuration, fold, load_json(str(world["preprocessed"] / "dataset.json")), CPU)
    for name, value in {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1,
                        "seed": 0, **attributes}.items():
        setattr(trainer, name, value)
    return trainer


def test_plans_of_a_newer_version_are_refused(in_small_world):
    plans = json.loads((in_small_world["preprocessed"] / "LDSegPlans.json").read_text())
    with pytest.raises(LDSegError, match="newer ldseg_auto"):
        LDSegTrainer(plans | {FORMAT_KEY: PLANS_FORMAT + 1}, "3d_fullres", 0, {}, torch.device("cpu"))


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.unwrapped_network.parameters()])


def test_a_fold_leaves_what_nnunet_leaves(in_small_world):
    fold = in_small_world["model"] / "fold_0"
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "latent_signs.png",
                 "latent_signs.json", "validation/summary.json"):
        assert (fold / name).is_file(), name
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    cases = [p.name for p in (fold / "validation").glob("*.nii.gz")]
    assert len(cases) == len(summary["metric_per_case"]) == 2
    assert len(list((fold / "validation").glob("*.npz"))) == 2
    signs = json.loads((fold / "latent_signs.json").read_text())
    assert signs["cases"] == 2
    assert set(SERIES) <= set(signs)


def test_the_checkpoint_is_plain_and_complete(in_small_world):
    content = checkpoint.load(str(in_small_world["model"] / "fold_0" / "checkpoint_final.pth"), CPU)
    assert content["trainer_name"] == "LDSegTrainer"
    assert content["init_args"]["configuration"] == "3d_fullres"
    assert content["network_weights"].keys() == content["raw_network_weights"].keys()
    # two updates of weights that move: the average lags
    assert any(not torch.equal(content["network_weights"][k], content["raw_network_weights"][k])
               for k in content["network_weights"])
    assert content["current_epoch"] == 1
    assert len(content["logging"]["coding_dice"]) == 1


def test_loading_restores_raw_and_averaged_weights(in_small_world):
    trainer = make_trainer(in_small_world, fold=0)
    path = str(in_small_world["model"] / "fold_0" / "checkpoint_final.pth")
    trainer.load_checkpoint(path)
    content = checkpoint.load(path, CPU)
    for name, value in trainer.unwrapped_network.state_dict().items():
        assert torch.equal(value, content["raw_network_weights"][name])
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, content["network_weights"][name])
    assert trainer.current_epoch == 1
    assert trainer.average.updates == 2


@pytest.mark.parametrize("bits", ["float32", "bfloat16"])
def test_same_seed_same_weights_other_seed_other_weights(in_small_world, monkeypatch, bits):
    monkeypatch.setenv("LDSEG_CPU_PRECISION", bits)
    trained = []
    for seed in (0, 0, 1):
        trainer = make_trainer(in_small_world, num_epochs=1, seed=seed, disable_checkpointing=True)
        trainer.run_training()
        trained.append(weights(trainer))
    assert not torch.allclose(trained[0], trained[2], atol=1e-5)
    assert torch.equal(trained[0], trained[1])


def test_an_interrupted_training_continues_after_its_last_epoch(in_small_world):
    class Interrupted(LDSegTrainer):
        def on_epoch_start(self):
            if self.current_epoch == 1:
                raise KeyboardInterrupt
            super().on_epoch_start()
    Interrupted.__name__ = "LDSegTrainerInterrupted"  # a folder of its own
    trainer = make_trainer(in_small_world, Interrupted, fold=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    resumed = make_trainer(in_small_world, Interrupted, fold=2)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == 1
    assert torch.equal(weights(resumed), weights(trainer))
    resumed.__class__ = LDSegTrainer  # nothing interrupts it any more
    resumed.run_training()
    assert resumed.current_epoch == 2
    assert all(len(values) == 2 for values in resumed.logger.get_checkpoint().values())


def test_time_budget_ends_training_and_anneals(in_small_world, monkeypatch):
    """By a clock on which an iteration takes half a second, however busy the machine is."""
    now = [0.0]
    monkeypatch.setattr(budget, "monotonic", lambda: now[0])
    trainer = make_trainer(in_small_world, num_epochs=1000, num_iterations_per_epoch=250, max_minutes=0.15,
                           disable_checkpointing=True)
    step = trainer.train_step

    def timed_step(batch):
        now[0] += 0.5
        return step(batch)

    trainer.train_step = timed_step
    trainer.run_training()
    rates = trainer.logger.get_value("lrs", None)
    assert 8 <= trainer.budget.elapsed() <= 9
    assert len(rates) > 1
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))
    assert trainer.optimizer.param_groups[0]["lr"] < 0.5 * trainer.initial_lr


def test_timesteps_hold_the_share_at_the_last(in_small_world):
    trainer = make_trainer(in_small_world)
    trainer.initialize()
    data = torch.zeros(4000, 1, *trainer.configuration_manager.patch_size[:1], 1, 1).expand(
        -1, -1, *[s for s in trainer.configuration_manager.patch_size])
    for share, expected in ((0.25, 0.25 + 0.75 / 1000), (1.0, 1.0), (0.0, 1 / 1000)):
        trainer.share_at_last_timestep = share
        noise, timestep, recycled = trainer.draw_noise(data)
        others = timestep[~recycled]
        assert (others == 1000).float().mean().item() == pytest.approx(expected, abs=0.04)
        assert timestep.min() >= 1
        assert timestep[recycled].min() >= 400 and timestep[recycled].max() <= 600
    assert not torch.equal(noise[0], noise[1]), "each sample has noise of its own"
    assert recycled.float().mean().item() == pytest.approx(trainer.recycled_share, abs=0.03)
    trainer.recycled_share = 0.0
    assert trainer.draw_noise(data)[2] is None


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 1e-4), ("adamw_weight_decay", 10.0),
                                             ("ema_decay", 0.0), ("share_at_last_timestep", 1.0),
                                             ("recycled_share", 0.0), ("recycled_timesteps", (0.8, 0.9))])
def test_every_setting_of_the_recipe_has_an_effect(in_small_world, name, value):
    def train(cls):
        trainer = make_trainer(in_small_world, cls, num_epochs=1, disable_checkpointing=True)
        trainer.initialize()
        trainer.on_train_epoch_start()
        torch.manual_seed(0)
        data = torch.randn(2, 1, *trainer.configuration_manager.patch_size,
                           generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            trainer._iterations_done = 0
            trainer.train_step({"data": data, "target": (data > 0).float()})
        return torch.cat([v.flatten() for v in trainer.average.state_dict().values()])

    def seeded(cls):
        torch.manual_seed(0)
        return train(cls)
    assert not torch.allclose(seeded(LDSegTrainer), seeded(type("Changed", (LDSegTrainer,), {name: value})),
                              atol=1e-5)


def test_the_start_of_the_code_can_be_switched(in_small_world):
    started = {}
    for switch in (True, False):
        trainer = make_trainer(in_small_world, code_from_principal_components=switch)
        trainer.initialize()
        before = trainer.unwrapped_network.label_encoder.linear.weight.clone()
        trainer.on_train_start()
        started[switch] = not torch.equal(before, trainer.unwrapped_network.label_encoder.linear.weight)
    assert started == {True: True, False: False}


@pytest.mark.parametrize(("steps", "calls"), [(1, 1), (3, 3), (None, 2)])
def test_epochs_are_validated_with_these_steps(in_small_world, steps, calls):
    trainer = make_trainer(in_small_world, epoch_validation_steps=steps)
    trainer.initialize()
    trainer._signs = object()  # measured already
    counted = []
    trainer.unwrapped_network.denoiser.register_forward_hook(lambda *_: counted.append(1))
    data = torch.zeros(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        trainer.network.eval()
        trainer.validation_step({"data": data, "target": data})
    assert len(counted) == calls


def test_variants_change_the_length(in_small_world):
    plans = load_json(str(in_small_world["preprocessed"] / "LDSegPlans.json"))
    dataset_json = load_json(str(in_small_world["preprocessed"] / "dataset.json"))
    for cls, length in ((LDSegTrainer_1epoch, (1, 250, 50)), (LDSegTrainer_250epochs, (250, 250, 50)),
                        (LDSegTrainer, (1000, 250, 50)), (LDSegTrainer_5iterations, (1, 5, 1))):
        trainer = cls({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, CPU)
        assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == length


def test_final_validation_uses_the_averaged_weights(in_small_world, monkeypatch):
    trainer = make_trainer(in_small_world, fold=0)
    trainer.load_checkpoint(str(in_small_world["model"] / "fold_0" / "checkpoint_final.pth"))
    raw, seen = weights(trainer), []
    from ldseg_auto.inference.predictor import LDSegPredictor
    original = LDSegPredictor.mean_probabilities

    def spy(self, image, fold):
        seen.append((weights(trainer), fold))
        return original(self, image, fold)
    monkeypatch.setattr(LDSegPredictor, "mean_probabilities", spy)
    trainer.perform_actual_validation()
    averaged = torch.cat([trainer.average.state_dict()[n].flatten()
                          for n, _ in trainer.unwrapped_network.named_parameters()])
    assert len(seen) == 2
    for value, fold in seen:
        assert torch.equal(value, averaged)
        assert fold == 0
    assert torch.equal(weights(trainer), raw)
    assert np.isfinite(json.loads((in_small_world["model"] / "fold_0/validation/summary.json").read_text())
                       ["foreground_mean"]["Dice"])
