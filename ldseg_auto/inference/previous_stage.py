"""What a cascade's second stage gets of its first: a segmentation, as one more channel for each foreground label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import (
    Fold,
    find_model,
    parse_folds,
    previous_stage,
    require_trained_folds,
    trained_folds,
)
from ldseg_auto.inference.outputs import is_whole

FOLDER = "predicted_next_stage"  # nnU-Net's, of a model: validation cases on the next stage's grid, for its training


def as_channels(segmentation: np.ndarray, foreground_labels: Sequence[int]) -> np.ndarray:
    """(z, y, x) labels -> one-hot (foreground labels, z, y, x), float32; of regions too the labels count."""
    return np.stack([segmentation == label for label in foreground_labels]).astype(np.float32)


def handed_on(model: Path, plans: dict[str, Any], configuration: str) -> Path | None:
    """Where the first stage puts the segmentations that this configuration's cases come with; None where it has none.

    Args:
        model: the configuration's own folder, TRAINER__PLANS__CONFIGURATION.
    """
    first = previous_stage(plans, configuration)
    return None if first is None else first_stage_of(model, first) / FOLDER / configuration


def read_handed_on(folder: Path, case: str) -> np.ndarray | None:
    """The first stage's segmentation of a validation case on the second stage's grid, (z, y, x); None where there is
    none."""
    if (folder / f"{case}.b2nd").is_file():
        import blosc2

        return np.asarray(blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:])
    file = folder / f"{case}.npz"
    return np.load(file)["seg"] if file.is_file() else None


def first_stage_of(model: Path, first: str) -> Path:
    """The folder of the same trainer's and plans' model of another configuration."""
    return model.with_name("__".join([*model.name.split("__")[:-1], first]))


@dataclass(frozen=True)
class FirstStage:
    """The model whose segmentation another one takes."""

    model: Path
    folds: list[Fold]

    def options(self, checkpoint_name: str) -> dict[str, Any]:
        """Which weights these are, for a note beside what they predicted."""
        files = [self.model / f"fold_{fold}" / checkpoint_name for fold in self.folds]
        return {"model": self.model, "folds": self.folds, "written": [file.stat().st_mtime_ns for file in files]}


def find_first_stages(models: Mapping[Path, dict[str, Any]], folds: Sequence[str | int] | None, checkpoint_name: str,
                      given: str | None) -> dict[Path, FirstStage | None]:
    """Of each model that is a cascade's second stage the trained first stage; None where its segmentations are given.

    Args:
        models: their folders, and the plans of each.
        folds: None takes those that are trained.
        given: folder of segmentations, of the user's.

    Raises:
        LDSegError: a first stage is not trained, or none of the models needs what is given.
    """
    found: dict[Path, FirstStage | None] = {}
    for model, plans in models.items():
        first = previous_stage(plans, model.name.split("__")[-1])
        if first is None or given is not None:
            found |= {} if first is None else {model: None}
            continue
        trainer, plans_name, _ = model.name.split("__")
        try:
            folder = find_model(model.parent.name, trainer, plans_name, first, checkpoint_name)
        except LDSegError as error:
            raise LDSegError(f"{model.name} needs the segmentation by {first}. {error.cause}",
                             f"Train {first}, or give its segmentations to -prev_stage_predictions.") from error
        numbers = parse_folds(map(str, folds)) if folds else trained_folds(folder, checkpoint_name)
        require_trained_folds(folder, numbers, checkpoint_name)
        found[model] = FirstStage(folder, numbers)
    if given is not None and not found:
        raise LDSegError(f"-prev_stage_predictions was given, but {' and '.join(model.name for model in models)} is no "
                         "cascade's second stage.", "Leave it out, or choose the cascade with -c.")
    return found


def require_segmentations(folder: Path, cases: Iterable[str], ending: str) -> None:
    """Raise unless the first stage's segmentation of every case is there to its end.

    Args:
        folder: holds CASE.ENDING.
    """
    if not folder.is_dir():
        raise LDSegError(f"There is no folder {folder} of the first stage's segmentations.",
                         "Correct -prev_stage_predictions, or leave it out: the first stage is then predicted too.")
    bad = [case for case in cases if not is_whole(folder / f"{case}{ending}")]
    if bad:
        raise LDSegError(f"The first stage's segmentations in {folder} are missing or cut off: {named(bad)}.",
                         "Predict these cases with the first stage again, or leave -prev_stage_predictions out: then "
                         "it is done here.")
