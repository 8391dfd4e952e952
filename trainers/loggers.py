"""Where a training's curves go beside nnU-Net's own files: to Weights & Biases by nnU-Net's logger, to TensorBoard by
ours. Neither unless an environment variable asks for it."""

from __future__ import annotations

import os
from typing import Any

from ldseg_auto.errors import LDSegError, reason_of

WANDB, TENSORBOARD = "nnUNet_wandb_enabled", "nnUNet_tensorboard_enabled"  # the first is nnU-Net's
_YES, _NO = ("1", "True", "true"), ("0", "False", "false")  # as nnU-Net takes them
_TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")


def is_asked_for(variable: str) -> bool:
    """Whether the environment asks for a logger.

    Raises:
        LDSegError: the variable is neither 0 nor 1.
    """
    value = os.environ.get(variable, _NO[0])
    if value not in (*_YES, *_NO):
        raise LDSegError(f"The environment variable {variable} is {value!r}.", "Set it to 1, to 0, or not at all.")
    return value in _YES


def require_loggers() -> None:
    """Raise unless the loggers that are asked for can be made."""
    if is_asked_for(TENSORBOARD):
        _summary_writer()
    if is_asked_for(WANDB):
        from nnunetv2.training.logging import nnunet_logger

        if nnunet_logger.wandb is None:
            raise LDSegError(f"{WANDB} is set, but Weights & Biases is not installed.",
                             f"pip install wandb, or unset {WANDB}.")


def add_loggers(logger: Any, output_folder: str) -> None:
    """To nnU-Net's MetaLogger, which hands on to each what the trainer logs.

    Args:
        output_folder: of the fold.
    """
    if is_asked_for(TENSORBOARD):
        logger.loggers.append(TensorBoardLogger(output_folder))


class TensorBoardLogger:
    """Scalars of each epoch, in event files in the fold's folder.

    A training that goes on hides what was written of the epochs that it repeats, and a new one all that was.

    Raises:
        LDSegError: TensorBoard is not installed.
    """

    def __init__(self, output_folder: str):
        self._make = _summary_writer()
        self._folder = output_folder
        self._writer: Any = None

    def update_config(self, config: dict[str, Any]) -> None:
        """nnU-Net's: the plans and the log, which hold it, lie beside the events."""

    def log(self, key: str, value: Any, step: int) -> None:
        """One value of an epoch, counted from 0."""
        if key in _TIMES:  # float32 cannot hold them
            if self._writer is not None:
                self._writer.flush()  # an epoch is over; a killed process would take its values along
            return
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=step)
        self._writer.add_scalar(key, float(value), step)

    def log_summary(self, key: str, value: Any) -> None:
        """What there is once, such as the final validation's Dice: at step 0."""
        if self._writer is None:
            self._writer = self._make(self._folder)
        self._writer.add_scalar(key, float(value), 0)
        self._writer.flush()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LDSegError(f"{TENSORBOARD} is set, but TensorBoard is not installed ({reason_of(error)}).",
                         f"pip install 'ldseg_auto[tensorboard]', or unset {TENSORBOARD}.") from error
    return SummaryWriter
