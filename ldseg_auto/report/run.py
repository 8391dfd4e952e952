"""Writing the report of a trained model: what is asked for is checked first, what is not there is left out and said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ldseg_auto.devices import select_device
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PLANS,
    DEFAULT_TRAINER,
    RESULTS,
    find_dataset,
    find_model,
    parse_folds,
    require_environment,
    require_trained_folds,
    trained_folds,
)
from ldseg_auto.report.model import Model
from ldseg_auto.sharing.opening import read_model

FILE_NAME = "report.html"
DEFAULT_CASES = 3


def write_report(dataset: str, configuration: str | None = None, *, trainer_name: str = DEFAULT_TRAINER,
                 plans_name: str = DEFAULT_PLANS, folds: Sequence[str | int] | None = None,
                 checkpoint_name: str = DEFAULT_CHECKPOINT, output: str | None = None, cases: int = DEFAULT_CASES,
                 device: str | None = None) -> Path:
    """Write one self-contained HTML page on a trained model and its validation.

    Args:
        dataset: name or ID.
        configuration: None takes the trained one, 3d_fullres if there are several.
        folds: None takes those that are trained.
        checkpoint_name: of checkpoint_best.pth the validation is validation_best/.
        output: the file; None takes report.html in the model's folder. It is replaced when the report is complete.
        cases: how many of the worst and how many of the best are shown.
        device: of the reverse diffusion: "cuda", "cpu" or "mps"; None takes the GPU if there is one.

    Returns:
        The file.

    Raises:
        LDSegError: anything asked for does not exist, or a file of the model is damaged.
    """
    require_environment(RESULTS)
    model = _find(find_dataset(dataset), trainer_name, plans_name, configuration, folds, checkpoint_name)
    file = model.folder / FILE_NAME if output is None else Path(output)
    _require_writable(file)
    torch_device = select_device(device)

    from ldseg_auto.report.build import build

    build(model, file, cases, torch_device, [] if folds else _unfinished(model))
    return file


def _find(dataset: str, trainer_name: str, plans_name: str, configuration: str | None,
          folds: Sequence[str | int] | None, checkpoint_name: str) -> Model:
    folder = find_model(dataset, trainer_name, plans_name, configuration, checkpoint_name)
    chosen = parse_folds(map(str, folds)) if folds else trained_folds(folder, checkpoint_name)
    require_trained_folds(folder, chosen, checkpoint_name)
    plans, description = read_model(folder)
    return Model(folder, tuple(chosen), checkpoint_name, plans, description)


def _require_writable(file: Path) -> None:
    if file.is_dir():
        raise LDSegError(f"The output {file} is a folder.", "Give a file to -o, such as report.html.")
    existing = next(parent for parent in file.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise LDSegError(f"{existing} is a file, so nothing can be written below it.", "Give another file to -o.")
    if not os.access(existing, os.W_OK):
        raise LDSegError(f"You may not write to {existing}.", "Give a file in another folder to -o.")


def _unfinished(model: Model) -> list[str]:
    """A sentence for each fold that was begun."""
    begun = sorted(path.name[len("fold_"):] for path in model.folder.glob("fold_*") if path.is_dir())
    chosen = set(map(str, model.folds))
    return [f"Fold {fold} has no {model.checkpoint_name} (still in training?) and is left out."
            if not (model.folder / f"fold_{fold}" / model.checkpoint_name).is_file() else
            f"Fold {fold} is left out: it is trained on every case. Ask for it with -f {fold}."
            for fold in begun if fold not in chosen]
