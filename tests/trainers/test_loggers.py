"""Where the curves of a training go: nowhere but into the fold's folder, unless an environment variable asks for it."""

import json
import socket
import sys
import types
from pathlib import Path

import pytest
import torch
from nnunetv2.training.logging import nnunet_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldseg_auto.cli import predict, train
from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.latent_signs import SERIES
from ldseg_auto.trainers import checkpoint
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.loggers import TENSORBOARD, WANDB, TensorBoardLogger, require_loggers
from ldseg_auto.trainers.run import train_folds

CURVES = {"train_losses", "val_losses", "lrs", "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region/class_1",
          "dice_per_class_or_region/class_2", *SERIES}
SUMMARY = {"final_val/class_1_dice", "final_val/class_2_dice", "final_val/foreground_dice"}


@pytest.fixture
def world(own_small_world, monkeypatch):
    monkeypatch.setattr(LDSegTrainer, "validation_mirroring", False)
    for variable in (WANDB, TENSORBOARD):
        monkeypatch.delenv(variable, raising=False)
    return own_small_world


def train_fold(**options):
    return train_folds("7", ["2"], "2d", device="cpu", iterations_per_epoch=1, **options)[0]


def logged(fold):
    """What nnU-Net's own logger holds of a finished training."""
    return checkpoint.load(str(fold / "checkpoint_final.pth"), torch.device("cpu"))["logging"]


def events(folder) -> dict[str, dict[int, float]]:
    """The curves as TensorBoard shows them: step -> value."""
    read = EventAccumulator(str(folder))
    read.Reload()
    curves = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert all(len(points) == len(dict(points)) for tag, points in curves.items() if tag not in SUMMARY), "once a step"
    return {tag: dict(points) for tag, points in curves.items()}


def assert_same_curves(found, logs, epochs):
    for name in CURVES:
        key, _, number = name.partition("/class_")
        expected = [value[int(number) - 1] if number else value for value in logs[key]]
        assert found[name] == pytest.approx(dict(enumerate(expected)), rel=1e-5, abs=1e-6, nan_ok=True), name
        assert len(expected) == epochs


# --- TensorBoard


def test_curves_in_tensorboard(world, monkeypatch):
    monkeypatch.setenv(TENSORBOARD, "1")
    fold = train_fold(epochs=1)
    assert set(events(fold)) == CURVES | SUMMARY
    assert_same_curves(events(fold), logged(fold), 1)
    mean = json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
    assert events(fold)["final_val/foreground_dice"] == pytest.approx({0: mean}, rel=1e-5)
    first = events(fold)["train_losses"][0]

    monkeypatch.setattr(LDSegTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    train_fold(epochs=2, continue_training=True)
    assert_same_curves(events(fold), logged(fold), 2)
    assert events(fold)["train_losses"][0] == first


def test_an_epoch_that_is_repeated_counts_once(tmp_path):
    """A killed training repeats its last epoch; what it wrote of it is there, as each epoch is flushed at its end."""
    killed = TensorBoardLogger(str(tmp_path))
    for step in range(3):
        killed.log("train_losses", 10.0 + step, step)
        killed.log("epoch_end_timestamps", 1.7e9, step)
    assert events(tmp_path) == {"train_losses": {0: 10.0, 1: 11.0, 2: 12.0}}
    resumed = TensorBoardLogger(str(tmp_path))
    resumed.log("epoch_start_timestamps", 1.7e9, 2)
    for step in (2, 3):
        resumed.log("train_losses", 20.0 + step, step)
        resumed.log("epoch_end_timestamps", 1.7e9, step)
    assert events(tmp_path) == {"train_losses": {0: 10.0, 1: 11.0, 2: 22.0, 3: 23.0}}
    new = TensorBoardLogger(str(tmp_path))
    new.log("train_losses", 30.0, 0)
    new.log("epoch_end_timestamps", 1.7e9, 0)
    assert events(tmp_path) == {"train_losses": {0: 30.0}}


def test_a_validation_alone_adds_its_result(tmp_path):
    first = TensorBoardLogger(str(tmp_path))
    first.log("train_losses", 1.0, 0)
    first.log_summary("final_val/foreground_dice", 0.5)
    TensorBoardLogger(str(tmp_path)).log_summary("final_val/foreground_dice", 0.75)
    assert events(tmp_path) == {"train_losses": {0: 1.0}, "final_val/foreground_dice": {0: 0.75}}


def test_without_tensorboard(world, monkeypatch, capsys):
    monkeypatch.setenv(TENSORBOARD, "1")
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train.main(["7", "2", "-c", "2d"]) == 1
    said = capsys.readouterr().err
    assert "TensorBoard is not installed" in said and "pip install 'ldseg_auto[tensorboard]'" in said
    monkeypatch.setenv(TENSORBOARD, "0")
    require_loggers()


# --- Weights & Biases: nnU-Net's own logger


class Run:
    """What nnU-Net uses of a run of W&B."""

    def __init__(self, step: int):
        self.step, self.config, self.summary = step, {}, {}
        self.logged: list[tuple[str, float, int]] = []

    def log(self, values, step):
        self.logged += [(name, value, step) for name, value in values.items()]

    def curves(self):
        return {tag: {step: value for name, value, step in self.logged if name == tag}
                for tag in {name for name, _, _ in self.logged}}


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of `wandb`, which keeps its runs."""
    fake = types.ModuleType("wandb")
    fake.runs, fake.calls = [], []

    def init(**options):
        fake.calls.append(options)
        folder = Path(options["dir"]) / "wandb" / "latest-run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run-abc123.wandb").touch()
        fake.runs.append(Run(step=1 if options["id"] else 0))
        return fake.runs[-1]
    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(nnunet_logger, "wandb", fake)
    return fake


def test_curves_in_wandb(world, wandb, monkeypatch):
    monkeypatch.setenv(WANDB, "1")
    monkeypatch.setenv("nnUNet_wandb_project", "ours")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    fold = train_fold(epochs=1)
    run, = wandb.runs
    assert wandb.calls[0] == {"project": "ours", "dir": str(fold), "id": None, "mode": "offline", "resume": "never"}
    assert run.config["configuration"] == "2d" and run.config["plans"]["plans_name"] == "LDSegPlans"
    assert set(run.curves()) == CURVES | {"epoch_start_timestamps", "epoch_end_timestamps"}
    assert_same_curves(run.curves(), logged(fold), 1)
    assert set(run.summary) >= SUMMARY

    train_fold(only_validate=True)
    assert wandb.calls[1]["resume"] == "allow" and wandb.calls[1]["id"] == "abc123", "its result belongs to that run"
    assert set(wandb.runs[1].summary) == SUMMARY and not wandb.runs[1].logged
    monkeypatch.setattr(LDSegTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    train_fold(epochs=2, continue_training=True)
    assert wandb.calls[2]["resume"] == "allow" and wandb.calls[2]["id"] == "abc123"
    assert all(steps.keys() == {1} for steps in wandb.runs[2].curves().values())
    train_fold(epochs=1, restart=True)
    assert wandb.calls[3]["resume"] == "never" and wandb.calls[3]["id"] is None


def test_without_wandb(world, monkeypatch, capsys):
    monkeypatch.setenv(WANDB, "1")
    monkeypatch.setattr(nnunet_logger, "wandb", None)
    assert train.main(["7", "2", "-c", "2d"]) == 1
    assert "Weights & Biases is not installed. pip install wandb" in capsys.readouterr().err


@pytest.mark.parametrize("variable", [WANDB, TENSORBOARD])
def test_neither_yes_nor_no(world, monkeypatch, variable):
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(LDSegError, match=f"{variable} is 'maybe'.*Set it to 1"):
        train_fold()


# --- nothing unless asked


def test_nothing_is_sent_and_nothing_is_logged_elsewhere(world, wandb, tmp_path, monkeypatch):
    """By no training, prediction or validation; wandb is installed."""
    opened = []

    def refuse(name):
        def call(*arguments, **_):
            opened.append((name, arguments))
            raise OSError("no network here")
        return call
    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse(name))
    fold = train_fold(epochs=1)
    assert predict.main(["-i", str(world["images"]), "-o", str(tmp_path / "out"), "-d", "7", "-c", "2d", "-f", "2",
                         "--disable_tta", "--samples", "1", "-npp", "0", "-nps", "0", "-device", "cpu",
                         "--disable_progress_bar"]) == 0
    assert not opened
    assert not wandb.calls and not (fold / "wandb").exists() and not list(fold.rglob("*tfevents*"))
    assert (fold / "progress.png").is_file() and (fold / "validation" / "summary.json").is_file()
