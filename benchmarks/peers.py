"""The peers of the benchmarks: nnU-Net's own trainer, made to end within a wall time and nothing else."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ldseg_auto.trainers.budget import BudgetPolyLR, WallTimeBudgetMixin


class nnUNetTrainerWithinBudget(WallTimeBudgetMixin, nnUNetTrainer):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net as it is: SGD with momentum .99, deep supervision; the learning rate is annealed to the budget."""


class nnUNetTrainerAdamWWithinBudget(nnUNetTrainerWithinBudget):  # noqa: N801, nnU-Net's way of naming
    """nnU-Net's network with LDSegTrainer's optimiser: what the optimiser alone does in a short training."""

    learning_rate = 1e-3

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, BudgetPolyLR]:
        self.initial_lr = self.learning_rate
        return self.with_budget(torch.optim.AdamW(self.network.parameters(), self.initial_lr, betas=(0.9, 0.99),
                                                  weight_decay=1e-2))


PEERS = {"nnunet": nnUNetTrainerWithinBudget, "nnunet-adamw": nnUNetTrainerAdamWWithinBudget}
