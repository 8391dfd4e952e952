"""The validation cases of a trained model: what was measured and where their files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import DEFAULT_CHECKPOINT, Fold, read_json
from ldseg_auto.headers import voxel_ml
from ldseg_auto.inference.choice import CHOSEN, load_best
from ldseg_auto.inference.uncertainty import FOLDER as MAPS
from ldseg_auto.report.model import Model


@dataclass(frozen=True)
class Case:
    """One validation case of one fold; of each class, in the order of `class_names`:"""

    name: str
    fold: Fold
    dice: tuple[float | None, ...]  # None where neither truth nor prediction holds the class
    voxels: tuple[tuple[int, int], ...]  # of truth and prediction
    voxel_ml: float | None  # None where the file tells no size
    prediction: Path
    probabilities: Path | None
    images: tuple[Path, ...]  # one or several channels; none where the raw data is not there
    truth: Path | None
    mutual_information: Path | None = None  # map of mutual information

    @property
    def mean_dice(self) -> float | None:
        """Over the classes that truth or prediction holds."""
        known = [value for value in self.dice if value is not None]
        return float(np.mean(known)) if known else None


def class_names(labels: Mapping[str, Any]) -> dict[str, str]:
    """Names of the foreground labels or regions by their key in nnU-Net's summary.json, from dataset.json's labels."""
    foreground = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
    regions = any(isinstance(value, list) and len(value) > 1 for value in foreground.values())
    return {_summary_key(value, regions): name for name, value in foreground.items()}


def _summary_key(value: int | list[int], regions: bool) -> str:
    if isinstance(value, list):
        return str(tuple(value)) if regions else str(value[0])
    return str(value)


def find_cases(model: Model, raw: Mapping[str, Mapping[str, Any]]) -> tuple[list[Case], list[str]]:
    """The cases in the folds' summary.json.

    Args:
        raw: {case: {"images": files, "label": file}} of the raw data, as far as it is there.

    Returns:
        The cases, fold by fold, and a sentence for each fold that has no validation. Mutual information lies beside
        a validation where that wrote it, or in what ldseg_find_best_configuration chose, if that is this model alone.

    Raises:
        LDSegError: a summary is damaged.
    """
    cases: list[Case] = []
    left_out = []
    for fold in model.folds:
        folder = model.validation_folder(fold)
        if (folder / "summary.json").is_file():
            places = _places_of_maps(model, fold)
            try:
                cases += [_case(measured, folder, fold, model, raw, places)
                          for measured in read_json(folder / "summary.json")["metric_per_case"]]
            except (KeyError, TypeError) as error:
                raise LDSegError(f"{folder / 'summary.json'} is damaged or of other classes ({error!r}).",
                                 f"Validate again: {model.validation_command([fold])}") from error
        else:
            left_out.append(f"Fold {fold} has no {folder.name}/summary.json, so its cases are left out: "
                            f"{model.validation_command([fold])} writes it.")
    return cases, left_out


def _places_of_maps(model: Model, fold: Fold) -> list[Path]:
    """Folders that may hold maps of uncertainty of the fold's validation cases, made by that fold."""
    places = [model.validation_folder(fold) / MAPS]
    trainer, plans, configuration = model.folder.name.split("__")
    if model.checkpoint_name == DEFAULT_CHECKPOINT and fold != "all":
        best = load_best(model.folder.parent, trainer, plans)
        if best is not None and best.configurations == (configuration,):
            places.append(model.folder.parent / f"{CHOSEN}_{trainer}__{plans}" / MAPS)
    return places


def _case(measured: Mapping[str, Any], folder: Path, fold: Fold, model: Model,
          raw: Mapping[str, Mapping[str, Any]], places_of_maps: Sequence[Path]) -> Case:
    prediction = folder / Path(measured["prediction_file"]).name  # results may have been moved since
    name = prediction.name.removesuffix(model.description["file_ending"])
    metrics = [measured["metrics"][key] for key in class_names(model.description["labels"])]
    probabilities = folder / f"{name}.npz"
    files = raw.get(name)
    maps = [place / f"{name}_mutual_information.nii.gz" for place in places_of_maps]
    return Case(
        name, fold, tuple(None if np.isnan(each["Dice"]) else each["Dice"] for each in metrics),
        tuple((each["n_ref"], each["n_pred"]) for each in metrics),
        voxel_ml(prediction, model.plans["image_reader_writer"]), prediction,
        probabilities if probabilities.is_file() else None, tuple(map(Path, files["images"])) if files else (),
        Path(files["label"]) if files else None, next(filter(Path.is_file, maps), None))


def worst_and_best(cases: Sequence[Case], number: int) -> tuple[list[int], list[int]]:
    """Indices of the `number` cases with the lowest mean Dice, lowest first, and of those with the highest, highest
    first; no case is in both."""
    known = sorted((i for i, case in enumerate(cases) if case.mean_dice is not None),
                   key=lambda i: (cases[i].mean_dice, cases[i].name))
    worst = known[:min(number, -(-len(known) // 2))]
    return worst, known[len(worst):][::-1][:number]
