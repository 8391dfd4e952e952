"""What each of two joined processes does in test_training.py: nnU-Net's real trainer on the small world."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from ldseg_auto.networks.ldseg_net import unwrapped
from ldseg_auto.trainers import budget, ldseg_trainer
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer


class Stopped(Exception):
    pass


class Watched(LDSegTrainer):
    """Remembers what it drew and with which learning rates; ends at the start of an epoch, if it is told to."""

    stop_at_epoch: int | None = None

    def on_epoch_start(self) -> None:
        if self.current_epoch == self.stop_at_epoch:
            raise Stopped
        super().on_epoch_start()

    def draw_noise(self, data: torch.Tensor) -> tuple:
        drawn = super().draw_noise(data)
        self.drawn.append((data.sum().item(), drawn[0].sum().item()))
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return drawn


Watched.__name__ = "LDSegTrainer"  # its folder


def make(world: dict[str, Path], fold: int, **attributes: Any) -> Watched:
    ldseg_trainer.draw_whole = lambda *_, **__: None  # takes longer than the training
    plans = load_json(str(world["preprocessed"] / "LDSegPlans.json")) | {"continue_training": False}
    trainer = Watched(plans, "3d_fullres", fold, load_json(str(world["preprocessed"] / "dataset.json")),
                      torch.device("cpu"))
    trainer.drawn, trainer.rates = [], []
    for name, value in {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 0,
                        **attributes}.items():
        setattr(trainer, name, value)
    return trainer


def train(rank: int, world: dict[str, Path], fold: int, resume: bool = False, stop_at_epoch: int | None = None,
          **attributes: Any) -> dict[str, Any]:
    trainer = make(world, fold, stop_at_epoch=stop_at_epoch, **attributes)
    if resume:
        trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    with suppress(Stopped):
        trainer.run_training()
    network = unwrapped(trainer.network)
    return {"batch_size": trainer.batch_size, "drawn": trainer.drawn, "rates": trainer.rates,
            "losses": trainer.logger.get_value("train_losses", None),
            "dice": np.asarray(trainer.logger.get_value("mean_fg_dice", None)).tolist(),
            "weights": {name: value.clone() for name, value in network.state_dict().items()},
            "average": {name: value.clone() for name, value in trainer.average.state_dict().items()},
            "scaler": trainer.grad_scaler, "device": str(trainer.device)}


def train_by_the_clock(rank: int, world: dict[str, Path], fold: int) -> dict[str, Any]:
    """With a budget of 3 seconds, on clocks by which an iteration takes half a second, or twice that on rank 1."""
    now = [0.0]
    step = Watched.train_step

    def timed_step(self: Watched, batch: dict) -> dict:
        now[0] += 0.5 * (1 + rank)
        return step(self, batch)

    before, budget.monotonic, Watched.train_step = budget.monotonic, lambda: now[0], timed_step
    try:
        return train(rank, world, fold, num_epochs=1000, num_iterations_per_epoch=250, max_minutes=0.05,
                     disable_checkpointing=True)
    finally:
        budget.monotonic, Watched.train_step = before, step
