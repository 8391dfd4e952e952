"""Shorter trainings, named as nnU-Net names its own."""

from __future__ import annotations

import torch

from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer


class LDSegTrainer_1epoch(LDSegTrainer):  # noqa: N801, nnU-Net's way of naming
    """One epoch: to see that a data set runs through."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008, nnU-Net inspects this signature
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1


class LDSegTrainer_250epochs(LDSegTrainer):  # noqa: N801, nnU-Net's way of naming
    """A quarter of the default length."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008, nnU-Net inspects this signature
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 250


class LDSegTrainer_5iterations(LDSegTrainer):  # noqa: N801, nnU-Net's way of naming
    """One epoch of five iterations: to see on a CPU, in a minute, that a data set runs through every command."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008, nnU-Net inspects this signature
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1
        self.num_iterations_per_epoch = 5
        self.num_val_iterations_per_epoch = 1
