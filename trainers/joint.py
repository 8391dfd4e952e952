"""One of several processes that train together: what nnU-Net's trainer does for GPUs alone, also on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ldseg_auto.collectives import wait_for_all
from ldseg_auto.inference.binding import bound


class JointTrainingMixin:
    """For an nnUNetTrainer, which takes every joint training for one on the GPUs of a single machine."""

    device: torch.device

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device):
        scaler = nnunet_trainer_module.GradScaler if device.type == "cuda" else lambda _: None
        with bound(nnunet_trainer_module, GradScaler=scaler):
            super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        if self.is_ddp:  # type: ignore[attr-defined]
            # nnU-Net takes the rank for the GPU's number, which it is on the first machine only
            self.device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device

    def initialize(self) -> None:
        with bound(nnunet_trainer_module, DDP=self._wrapped):
            super().initialize()  # type: ignore[misc]

    def _wrapped(self, network: nn.Module, **_: Any) -> DistributedDataParallel:
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def on_train_end(self) -> None:
        super().on_train_end()  # type: ignore[misc]
        wait_for_all()  # the first has written the final checkpoint, which the others may read
