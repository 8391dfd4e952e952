"""Training for a given wall time: the learning rate is annealed to the budget and the last epoch ends with it."""

from __future__ import annotations

from time import monotonic
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from ldseg_auto.collectives import from_first

_MIN_EPOCHS, _MAX_EPOCHS = 4, 20  # per budget; about a minute each: validation and checkpoints take seconds
_FIRST_EPOCH_ITERATIONS = 5
VALIDATION_SHARE = 5  # nnU-Net: 250 training iterations to 50 of validation


class BudgetSpent(Exception):
    """The wall-time budget leaves no room for another iteration."""


class BudgetPolyLR(LRScheduler):
    """nnU-Net's polynomial decay, over whatever ends training first: the epochs or the wall time.

    lr = initial_lr * (1 - progress) ** 0.9, progress = max(epoch / num_epochs, elapsed / budget). Of several processes
    that train together it is the first one's: their clocks differ.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, num_epochs: int, budget: WallTimeBudget):
        self.initial_lr = initial_lr
        self.num_epochs = num_epochs
        self.budget = budget
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        progress = max((epoch or 0) / self.num_epochs, self.budget.progress())
        learning_rate = self.initial_lr * (1 - min(progress, 1.0)) ** 0.9
        if self.budget.seconds is not None:
            learning_rate = from_first(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._last_lr = [learning_rate] * len(self.optimizer.param_groups)


class WallTimeBudget:
    """Seconds granted and seconds spent; without a grant nothing is ever spent.

    `spent_before` counts those of an earlier, interrupted run of the same training.
    """

    def __init__(self, minutes: float | None):
        if minutes is not None and minutes <= 0:
            raise ValueError(f"max_minutes is {minutes}; a positive number of minutes is needed.")
        self.seconds = None if minutes is None else 60 * minutes
        self.spent_before = 0.0
        self._start: float | None = None

    def start(self) -> None:
        self._start = monotonic()

    def since_start(self) -> float:
        return 0.0 if self._start is None else monotonic() - self._start

    def elapsed(self) -> float:
        return self.spent_before + self.since_start()

    def progress(self) -> float:
        """Share of the budget that is spent, from 0 to 1 (0 where there is no limit)."""
        return 0.0 if self.seconds is None else min(1.0, self.elapsed() / self.seconds)


class WallTimeBudgetMixin:
    """For an nnUNetTrainer: set `max_minutes` before `initialize`, and training ends within them.

    Epochs are shortened to about a minute, so that validation and checkpoints happen as often as in a long training.
    """

    max_minutes: float | None = None

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        return self.with_budget(super().configure_optimizers()[0])  # type: ignore[misc]

    def with_budget(self, optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, BudgetPolyLR]:
        """The optimizer and nnU-Net's learning rate decay, annealed to the budget if there is one."""
        self.budget = WallTimeBudget(self.max_minutes)
        return optimizer, BudgetPolyLR(optimizer, self.initial_lr, self.num_epochs, self.budget)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        super().on_train_start()  # type: ignore[misc]
        self._requested_iterations = self.num_iterations_per_epoch
        self._iterations_done = 0
        self.budget.start()

    def on_epoch_start(self) -> None:
        if self.max_minutes is not None:
            self.num_iterations_per_epoch = from_first(self._iterations_that_fit())
            if not self.num_iterations_per_epoch:
                raise BudgetSpent
            self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // VALIDATION_SHARE)
        super().on_epoch_start()  # type: ignore[misc]

    def _iterations_that_fit(self) -> int:
        """0 where the budget is spent."""
        assert self.budget.seconds is not None
        if self.budget.progress() == 1:
            return 0
        if self._iterations_done == 0:
            return min(self._requested_iterations, _FIRST_EPOCH_ITERATIONS)
        seconds_per_iteration = self.budget.since_start() / self._iterations_done  # validation, checkpoints included
        fitting = int((self.budget.seconds - self.budget.elapsed()) / seconds_per_iteration)
        if fitting < 1:
            return 0
        epochs = min(max(self.budget.seconds / 60, _MIN_EPOCHS), _MAX_EPOCHS)
        share = max(1, round(self.budget.seconds / seconds_per_iteration / epochs))
        # a remainder of less than half an epoch is not worth a validation of its own
        epoch = fitting if fitting < 1.5 * share else share
        return min(self._requested_iterations, epoch)

    def train_step(self, batch: dict) -> dict:
        self.anneal()
        return super().train_step(batch)  # type: ignore[misc]

    def anneal(self) -> None:
        """Call before each iteration: the learning rate follows the clock, not only the epochs."""
        if self.max_minutes is not None:
            self.lr_scheduler.step(self.current_epoch)  # type: ignore[attr-defined]
        self._iterations_done += 1

    def run_training(self) -> None:
        try:
            super().run_training()  # type: ignore[misc]
        except BudgetSpent:
            self.print_to_log_file(  # type: ignore[attr-defined]
                f"The budget of {self.max_minutes} min is spent after {self._iterations_done} iterations.")
            self.on_train_end()  # type: ignore[attr-defined]
