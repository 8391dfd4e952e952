"""Whether what `ldseg_train` is asked for fits together, and with what is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import Fold
from ldseg_auto.trainers.weight_transfer import ENCODER, PRETRAINED


def require_consistent(restart: bool, continue_training: bool, only_validate: bool, validate_best: bool,
                       disable_checkpointing: bool, pretrained_weights: str | None,
                       encoder_weights: str | None) -> None:
    """Raise where options exclude each other."""
    for given, other, names in ((continue_training, only_validate, "--c and --val"),
                                (restart, continue_training, "--restart and --c"),
                                (restart, only_validate, "--restart and --val"),
                                (pretrained_weights, encoder_weights, f"{PRETRAINED} and {ENCODER}"),
                                (continue_training, pretrained_weights, f"--c and {PRETRAINED}"),
                                (continue_training, encoder_weights, f"--c and {ENCODER}"),
                                (only_validate, pretrained_weights, f"--val and {PRETRAINED}"),
                                (only_validate, encoder_weights, f"--val and {ENCODER}"),
                                (validate_best, disable_checkpointing, "--val_best and --disable_checkpointing")):
        if given and other:
            raise LDSegError(f"{names} exclude each other.", "Give only one of them.")


def require_checkpoints(model: Path, folds: Iterable[Fold], only_validate: bool, validate_best: bool) -> None:
    """Validation alone needs a finished training; of the best checkpoint, that checkpoint too."""
    needed = ["checkpoint_final.pth"] * only_validate + ["checkpoint_best.pth"] * (only_validate and validate_best)
    for fold in folds:
        for name in needed:
            if not (model / f"fold_{fold}" / name).is_file():
                raise LDSegError(f"There is no checkpoint {model / f'fold_{fold}' / name} to validate.",
                                 "Finish the training first: the same command with --c in place of --val.")
