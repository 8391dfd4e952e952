"""Which locks the run of each command needs, see `ldseg_auto.locks`: functions that take the command's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldseg_auto.folders import (
    PREPROCESSED,
    RAW,
    RESULTS,
    choose_configuration,
    find_dataset,
    folder_of,
    load_plans,
    model_folder,
    parse_folds,
    preprocessed_folder,
    require_environment,
)
from ldseg_auto.locks import Lock, require_unused

_TRAINING = ".ldseg_train_fold_{}.lock"


def planning(dataset_ids: Sequence[int | str], **_: Any) -> list[Lock]:
    """Of `planners.api.plan_and_preprocess`: each of the data sets."""
    require_environment(RAW, PREPROCESSED)
    names = dict.fromkeys(find_dataset(each, (RAW,)) for each in dataset_ids)
    return [Lock(folder_of(PREPROCESSED) / name / ".ldseg_plan_and_preprocess.lock",
                 f"planning and preprocessing {name}") for name in names]


def cases(dataset: str, plans: dict[str, Any], configurations: Sequence[str], shared: bool = False) -> list[Lock]:
    """Preprocessed cases: written by one, with nobody reading; or read by several (`shared`). The lock lies beside
    their folder, which nnU-Net removes, and in which it takes one file ending only."""
    folders = dict.fromkeys(preprocessed_folder(dataset, plans, name) for name in configurations)
    doing = "training with" if shared else "preprocessing"
    return [Lock(folder.with_name(f".ldseg_{folder.name}.lock"), f"{doing} the cases in {folder}",
                 "Wait until it has ended. (Other configurations, and plans of other names, have cases of their own.)",
                 shared=shared) for folder in folders]


def training(dataset: str, folds: Sequence[str | int], configuration: str | None, trainer_name: str, plans_name: str,
             **_: Any) -> list[Lock]:
    """Of `trainers.run.train_folds`: each of the folds, and the cases to read."""
    require_environment(PREPROCESSED, RESULTS)
    dataset = find_dataset(dataset, [PREPROCESSED])
    plans = load_plans(dataset, plans_name)
    configuration = choose_configuration(plans, configuration)
    model = model_folder(dataset, trainer_name, plans_name, configuration)
    cure = "Wait until it has ended. Other folds can be trained at the same time."
    return [*(Lock(model / _TRAINING.format(fold), f"training fold {fold} of {model.name}", cure)
              for fold in parse_folds(map(str, folds))), *cases(dataset, plans, [configuration], shared=True)]


def merging(model: Path) -> Lock:
    """The validations of all folds as one: whoever comes second finds them done."""
    return Lock(model / ".ldseg_crossval.lock", f"merging the validations of {model.name}", wait=True)


def prediction(output_folder: str, num_parts: int, part_id: int, **_: Any) -> list[Lock]:
    """Of `inference.run.predict_folder`: one part of the output; other parts of as many go on beside it."""
    folder, parts = Path(output_folder), f".ldseg_predict_{num_parts}_"
    part = f", part {part_id} of {num_parts}" if num_parts > 1 else ""
    return [Lock(folder / f"{parts}{part_id}.lock", f"predicting into {folder}{part}",
                 "Wait until it has ended, or give another folder to -o. (To share the work start every command with "
                 "the same -num_parts and a -part_id of its own.)", rivals=".ldseg_predict_*.lock",
                 allies=f"{parts}*.lock")]


def choosing(dataset: str, **_: Any) -> list[Lock]:
    """Of `inference.find_best.find_best_configuration`: the data set's results, which hold one choice and its files."""
    require_environment(PREPROCESSED, RESULTS)
    name = find_dataset(dataset, [PREPROCESSED])
    return [Lock(folder_of(RESULTS) / name / ".ldseg_find_best_configuration.lock",
                 f"choosing how {name} is predicted")]


def exporting(output_file: str, **_: Any) -> list[Lock]:
    """Of `sharing.export.export_model`: the zip."""
    file = Path(output_file)
    return [Lock(file.parent / f".{file.name}.ldseg_export.lock", f"exporting to {file}",
                 "Wait until it has ended, or give another name to -o.")]


def importing(dataset: str) -> Lock:
    """Of `sharing.install.import_model`: the data set's models, of which the next one may be another."""
    return Lock(folder_of(RESULTS) / f".ldseg_import_{dataset}.lock", f"importing a model of {dataset}", wait=True)


def require_not_training(model: Path) -> None:
    """Raise if a fold of the model is being trained."""
    require_unused(model, _TRAINING.format("*"), "Wait until it has ended: the import would take its folder away.")
