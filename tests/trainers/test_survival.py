"""Trainings that are killed, interrupted, starved and damaged, for real, and what goes on afterwards."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from ldseg_auto.cli import train
from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers import checkpoint
from ldseg_auto.trainers.crossval import FINISHED, TRAINED, fold_state
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.run import train_folds

CPU = torch.device("cpu")
GET_CONTEXT = multiprocessing.get_context
ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["7", "1", "-c", "3d_fullres", "-device", "cpu", "--iterations_per_epoch", "2", "--seed", "0", "--epochs"]


class Command:
    """`ldseg_train` on fold 1 of the small world: a process in a group of its own, as a terminal starts it."""

    def __init__(self, world, epochs, workers=0):
        self.fold = world["model"] / "fold_1"
        self.out = world["nnUNet_raw"].parent / "out.txt"
        call = ("from ldseg_auto.trainers import ldseg_trainer\n"
                "ldseg_trainer.draw_whole = lambda *_, **__: None\n"  # takes longer than the training
                "from ldseg_auto.cli.train import main\n"
                f"raise SystemExit(main({[*TRAIN, str(epochs)]}))")
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", call], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"nnUNet_n_proc_DA": str(workers), "PYTHONPATH": os.pathsep.join(sys.path)})

    def wait_for_epoch(self, number, seconds=120):
        """Until this epoch has begun."""
        end = time.monotonic() + seconds
        while f": Epoch {number}\n" not in self.text():
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.02)

    def text(self):
        return self.out.read_text()

    def children(self):
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def end(self, number, group=False):
        """Send the signal; the exit code."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self.process.wait(60)


def is_running(pid):
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


@pytest.fixture
def world(own_small_world, monkeypatch):
    """A small world of its own, without validations and pictures of the training: they take longer than it."""
    monkeypatch.setattr(LDSegTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    monkeypatch.setattr("ldseg_auto.trainers.ldseg_trainer.draw_whole", lambda *_, **__: None)
    return own_small_world


def train_here(epochs, *flags):
    assert train.main([*TRAIN, str(epochs), *flags]) == 0


def tensors(content, name=""):
    """Every tensor of a checkpoint, by its path."""
    if isinstance(content, torch.Tensor):
        return {name: content}
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {key: value for k, v in items for key, value in tensors(v, f"{name}/{k}").items()}


def require_same(a, b):
    """The same weights, averages, optimiser's moments, random state and curves, to the last bit."""
    for ours, theirs in ((a, b), (b, a)):
        for name, value in tensors(ours).items():
            assert torch.equal(value, tensors(theirs)[name]), name
    for name, values in a["logging"].items():
        if "timestamps" not in name:
            assert np.array_equal(values, b["logging"][name], equal_nan=True), name
    assert a["random_state"]["numpy"] == b["random_state"]["numpy"]
    assert a["random_state"]["python"] == b["random_state"]["python"]
    assert a["current_epoch"] == b["current_epoch"] and a["_best_ema"] == b["_best_ema"]


def test_a_training_that_is_killed_goes_on_to_the_same_bits(world, capsys):
    command = Command(world, epochs=3)
    command.wait_for_epoch(1)
    assert command.end(signal.SIGKILL) == -signal.SIGKILL
    saved = checkpoint.load(str(command.fold / checkpoint.LATEST), CPU)["current_epoch"]
    assert saved >= 1, "no more than the epoch that was under way is lost"
    (command.fold / "checkpoint_final.pth.part").write_bytes(b"half")
    train_here(3)
    final = checkpoint.load(str(command.fold / "checkpoint_final.pth"), CPU)
    assert f": Epoch {saved}\n" in capsys.readouterr().out
    left = {path.name for path in command.fold.glob("*checkpoint*")}
    assert left == {"checkpoint_final.pth", "checkpoint_best.pth"}
    train_here(3, "--restart")
    require_same(final, checkpoint.load(str(command.fold / "checkpoint_final.pth"), CPU))


def interrupted_with_workers(world, name, group):
    command = Command(world, epochs=500, workers=2)
    command.wait_for_epoch(1)
    workers = command.children()
    assert len(workers) >= 3, "two of training, one of validation"
    assert command.end(getattr(signal, name), group) == 128 + getattr(signal, name)
    text = command.text()
    assert "Traceback" not in text and "Exception" not in text, text
    last = text.splitlines()[-1]
    assert last.startswith(f"interrupted by {name}. Run the same command again") and "last finished epoch" in last
    end = time.monotonic() + 20
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    assert checkpoint.load(str(command.fold / checkpoint.LATEST), CPU)["current_epoch"] >= 1


def test_ctrl_c_in_a_terminal(world):
    interrupted_with_workers(world, "SIGINT", group=True)


@pytest.mark.slow
def test_sigterm(world):
    interrupted_with_workers(world, "SIGTERM", group=False)


def make_trainer(world, cls=LDSegTrainer, **attributes):
    plans = load_json(str(world["preprocessed"] / "LDSegPlans.json")) | {"continue_training": False}
    trainer = cls(plans, "3d_fullres", 1, load_json(str(world["preprocessed"] / "dataset.json")), CPU)
    for name, value in {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 0,
                        **attributes}.items():
        setattr(trainer, name, value)
    return trainer


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def test_a_dead_loader_worker_is_replaced(world, monkeypatch):
    class Dying(LDSegTrainer):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            if self.current_epoch == 1:
                worker = self.dataloader_train._processes[0]
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(world, Dying, num_iterations_per_epoch=14)  # more than nnU-Net keeps ready
    trainer.run_training()
    assert trainer.current_epoch == 2 and "was killed (SIGKILL)" in log_of(trainer)
    assert not trainer.dataloader_train._processes, "none is left behind"


def test_steps_that_are_no_numbers_are_left_out_of_weights_average_and_curves(world):
    class Poisoned(LDSegTrainer):
        poison = (1,)
        steps = 0

        def train_step(self, batch):
            if self.steps in self.poison:
                batch["data"][0, 0, 0, 0, 0] = float("nan")
            self.steps += 1
            return super().train_step(batch)
    trainer = make_trainer(world, Poisoned, num_epochs=1, num_iterations_per_epoch=4, disable_checkpointing=True)
    trainer.run_training()
    state = trainer.average.state_dict() | {f"raw.{k}": v for k, v in trainer.unwrapped_network.state_dict().items()}
    assert all(torch.isfinite(value).all() for value in state.values())
    assert trainer.average.updates == 3
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    assert "this iteration is left out" in log_of(trainer)
    trainer = make_trainer(world, Poisoned, poison=range(100), num_iterations_per_epoch=20, disable_checkpointing=True)
    with pytest.raises(LDSegError, match=r"10 iterations in a row.*images of case_\d\d"):
        trainer.run_training()


class Filling(LDSegTrainer):
    """The disk is full when an epoch ends, for files of more than 30 kB: so it looks to the process."""

    full_disk_patience_seconds = 0.05
    full_at_epoch = 0

    def on_epoch_end(self):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.current_epoch == self.full_at_epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        try:
            super().on_epoch_end()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_stops_a_training_after_its_last_saved_epoch(world):
    trainer = make_trainer(world, Filling, num_epochs=5, full_at_epoch=2)
    with pytest.raises(LDSegError, match="could not be written.*MB are free.*run the same command again"):
        trainer.run_training()
    folder = Path(trainer.output_folder)
    assert not list(folder.glob("*.part"))
    resumed = make_trainer(world, num_epochs=3)
    resumed.load_checkpoint(str(folder / checkpoint.LATEST))
    assert resumed.current_epoch == 2, "one epoch is repeated"
    resumed.run_training()
    assert resumed.current_epoch == 3


def test_a_full_disk_costs_a_picture_and_no_training(own_small_world):
    trainer = make_trainer(own_small_world, Filling, num_epochs=1, disable_checkpointing=True)
    trainer.run_training()
    assert trainer.current_epoch == 1 and "WARNING: progress.png was not written" in log_of(trainer)
    assert not (Path(trainer.output_folder) / "progress.png").exists()


def test_a_damaged_checkpoint_costs_one_epoch(world, capsys):
    class Interrupted(LDSegTrainer):
        def on_epoch_start(self):
            if self.current_epoch == 2:
                raise KeyboardInterrupt
            super().on_epoch_start()
    trainer = make_trainer(world, Interrupted, num_epochs=3)
    trainer.output_folder = str(world["model"] / "fold_1")  # not the class's own
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    latest = world["model"] / "fold_1" / checkpoint.LATEST
    latest.write_bytes(latest.read_bytes()[:-100])
    train_here(3)
    out = capsys.readouterr().out
    assert "is damaged (" in out and "goes on from checkpoint_latest_before.pth" in out and ": Epoch 1\n" in out
    content = checkpoint.load(str(world["model"] / "fold_1" / "checkpoint_final.pth"), CPU)
    assert content["current_epoch"] == 3 and len(content["logging"]["train_losses"]) == 3


def test_a_validation_that_is_killed_is_made_again(own_small_world, monkeypatch):
    """Over one that was finished: files of both must not count as one."""
    fold = own_small_world["model"] / "fold_0"
    cases = json.loads((own_small_world["preprocessed"] / "splits_final.json").read_text())[0]["val"]
    assert fold_state(fold, cases, ".nii.gz") == FINISHED
    before = json.loads((fold / "validation" / "summary.json").read_text())["mean"]

    def killed(prediction, properties, configuration, plans, dataset_json, output, save_probabilities):
        Path(f"{output}.nii.gz").write_bytes(b"half")
        raise RuntimeError("killed")
    from ldseg_auto.trainers import ldseg_trainer
    with monkeypatch.context() as patch:
        patch.setattr(ldseg_trainer, "export_prediction", killed)
        patch.setattr(LDSegTrainer, "validation_mirroring", False)
        with pytest.raises(RuntimeError, match="killed"):
            train_folds("7", ["0"], "3d_fullres", device="cpu", only_validate=True)
    assert (fold / "validation" / f"{cases[0]}.nii.gz").read_bytes() == b"half"
    assert fold_state(fold, cases, ".nii.gz") == TRAINED
    train_folds("7", ["0"], "3d_fullres", device="cpu")
    assert fold_state(fold, cases, ".nii.gz") == FINISHED
    assert json.loads((fold / "validation" / "summary.json").read_text())["mean"] == before
    assert (fold / "latent_signs.json").stat().st_mtime_ns < (fold / "validation" / "summary.json").stat().st_mtime_ns


def test_preprocessing_that_was_interrupted_is_not_trained_on(own_small_world):
    """Else the split would be made of the cases that were done."""
    folder = own_small_world["preprocessed"]
    (folder / "splits_final.json").unlink()
    for file in (folder / "LDSegPlans_3d_fullres").glob("case_09*"):
        file.unlink()
    with pytest.raises(LDSegError, match="Only 9 of 10 cases are preprocessed for 3d_fullres"):
        train_folds("7", ["1"], "3d_fullres", device="cpu")
    assert not (folder / "splits_final.json").exists()


def test_a_reference_that_is_cut_off_is_not_validated_with(own_small_world):
    """SimpleITK reads zeros for what is missing: scores that look right."""
    folder = own_small_world["preprocessed"]
    case = json.loads((folder / "splits_final.json").read_text())[0]["val"][0]
    os.truncate(folder / "gt_segmentations" / f"{case}.nii.gz", 100)
    summary = own_small_world["model"] / "fold_0" / "validation" / "summary.json"
    before = summary.read_bytes()
    with pytest.raises(LDSegError, match=f"gt_segmentations are cut off or damaged: {case}.nii.gz"):
        train_folds("7", ["0"], "3d_fullres", device="cpu", only_validate=True)
    assert summary.read_bytes() == before


def test_the_best_checkpoint_is_validated_beside_the_final_one(own_small_world, monkeypatch):
    monkeypatch.setattr(LDSegTrainer, "validation_mirroring", False)
    fold = own_small_world["model"] / "fold_0"
    before = {name: (fold / name).read_bytes() for name in ("latent_signs.json", "validation/summary.json")}
    (fold / "validation_best.part" / "validation").mkdir(parents=True)  # of one that was killed
    train_folds("7", ["0"], "3d_fullres", device="cpu", only_validate=True, validate_best=True)
    best = fold / "validation_best"
    summary = json.loads((best / "summary.json").read_text())
    assert all(Path(case["prediction_file"]).is_file() and "validation_best/" in case["prediction_file"]
               for case in summary["metric_per_case"])
    assert set(json.loads((best / "latent_signs.json").read_text())) == set(json.loads(before["latent_signs.json"]))
    assert {name: (fold / name).read_bytes() for name in before} == before
    assert not list(fold.glob("*.part"))


class Deadly:
    """Stands in for the export of a prediction, in another process."""

    @staticmethod
    def export(*_):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_a_validation_whose_worker_is_killed_says_so(own_small_world, monkeypatch):
    monkeypatch.setattr("ldseg_auto.trainers.ldseg_trainer.export_prediction", Deadly.export)
    monkeypatch.setattr(LDSegTrainer, "validation_mirroring", False)
    # forked: a process that is spawned imports torch first
    monkeypatch.setattr("ldseg_auto.trainers.pools.multiprocessing.get_context",
                        lambda method: GET_CONTEXT("fork"))
    with pytest.raises(LDSegError, match="processes that write and score.*it validates again"):
        train_folds("7", ["0"], "3d_fullres", device="cpu", only_validate=True)
