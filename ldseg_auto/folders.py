"""nnU-Net's folders, found without importing nnU-Net: data sets, plans, folds, trained models.

Every function raises `LDSegError` with what exists where something asked for does not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldseg_auto.config import require_known_format
from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing.trusted import require_trusted_description, require_trusted_plans

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
DEFAULT_TRAINER = "LDSegTrainer"
DEFAULT_PLANS = "LDSegPlans"
DEFAULT_CHECKPOINT = "checkpoint_final.pth"
Fold = int | str  # 0, 1, ... or "all"
_NEW_SPLITS = 5  # folds that nnU-Net makes where no splits_final.json lies


def require_environment(*variables: str) -> None:
    """Raise unless each of nnU-Net's environment variables names a folder that can be used."""
    missing = [v for v in variables if not os.environ.get(v)]
    if missing:
        raise LDSegError(f"The environment variable {', '.join(missing)} is not set.",
                         f"Set it to a folder, for example: export {missing[0]}=/path/to/{missing[0]}")
    if RAW in variables and not Path(os.environ[RAW]).is_dir():
        raise LDSegError(f"{RAW} is {os.environ[RAW]}, which is not a folder.",
                         f"Set {RAW} to the folder that holds your DatasetXXX_NAME folders.")


def folder_of(variable: str) -> Path:
    """The folder that an environment variable names."""
    require_environment(variable)
    return Path(os.environ[variable])


def find_dataset(name_or_id: str | int, variables: Sequence[str] = (RAW, PREPROCESSED, RESULTS)) -> str:
    """The data set's full name, DatasetXXX_NAME, from its name or its ID.

    Args:
        name_or_id: "Dataset004_Hippocampus", "4" or 4.
        variables: the environment variables whose folders are searched.
    """
    known = _datasets(variables)
    text = str(name_or_id)
    if text in known:
        return text
    if text.isdecimal():
        found = [name for name in known if int(name[7:10]) == int(text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise LDSegError(f"Dataset ID {text} is ambiguous: {', '.join(found)}.",
                             "Give the full name, or rename one of them.")
    raise LDSegError(f"There is no data set {text} in {_described(variables)}.",
                     f"Choose one of: {', '.join(known)}." if known else
                     "Put your data there as DatasetXXX_NAME (XXX: three digits) in nnU-Net's format.")


def others_with_the_id_of(dataset: str) -> list[str]:
    """Data sets of another name under the same ID, which is ambiguous then (nnU-Net's commands refuse it)."""
    return [name for name in _datasets((RAW, PREPROCESSED, RESULTS))
            if name != dataset and dataset_id(name) == dataset_id(dataset)]


def dataset_id(name: str) -> int:
    """4 for Dataset004_Hippocampus."""
    return int(name[7:10])


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    if not path.is_file():
        raise LDSegError(f"{path} is missing.", "Run the command again that writes it.")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nested too deep
        raise LDSegError(f"{path} is not valid JSON: {error}.", "Correct the file or have it written anew.") from error


def write_text(file: Path, text: str) -> None:
    """Write to a temporary name beside `file`, then rename: an interruption leaves the old file, or none. Ends of lines
    stay as they are."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_plans(dataset: str, plans_name: str = DEFAULT_PLANS) -> dict[str, Any]:
    """The plans of a data set, as written by the planner; the code that they and its dataset.json name is trusted."""
    folder = folder_of(PREPROCESSED) / dataset
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        others = [p.stem for p in sorted(folder.glob("*Plans*.json"))]
        existing = f" (there are: {', '.join(others)})" if others else ""
        raise LDSegError(f"{dataset} has no plans named {plans_name}{existing}.",
                         f"Plan first: ldseg_plan_and_preprocess -d {dataset_id(dataset)}{_as_planned(plans_name)}")
    plans, description = read_json(path), folder / "dataset.json"
    require_trusted_plans(plans)
    if description.is_file():
        require_trusted_description(read_json(description))
    require_known_format(plans)
    return plans


def _as_planned(plans_name: str, origin: Mapping[str, str] | None = None) -> str:
    """How to get plans of that name, which were taken over from others, if the name or they themselves say so."""
    if plans_name == DEFAULT_PLANS:
        return ""
    if origin is None and (taken_over := re.fullmatch(r"(.+)From(\d{3,})", plans_name)):
        origin = {"plans_name": taken_over[1], "dataset_name": taken_over[2]}
    if origin is not None:
        return f" -s {origin['dataset_name']} -sp {origin['plans_name']} -overwrite_plans_name {plans_name}"
    return f" with -overwrite_plans_name {plans_name} or the -pl that says so"


def choose_configuration(plans: dict[str, Any], requested: str | None = None) -> str:
    """The requested configuration, or else 3d_fullres where it is planned, or else 2d."""
    planned = list(plans["configurations"])
    if requested is None:
        return next((name for name in ("3d_fullres", "2d") if name in planned), planned[0])
    if requested not in planned:
        raise LDSegError(f"The plans have no configuration {requested}.", f"Choose one of: {', '.join(planned)}.")
    return requested


def resolved(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What the plans say of a configuration, with all that it inherits."""
    own = plans["configurations"][configuration]
    parent = own.get("inherits_from")
    return {**own} if parent is None else {**resolved(plans, parent), **own}


def previous_stage(plans: Mapping[str, Any], configuration: str) -> str | None:
    """The configuration whose segmentation this one, a cascade's second stage, takes; None for all others."""
    return resolved(plans, configuration).get("previous_stage")


def preprocessed_folder(dataset: str, plans: dict[str, Any], configuration: str) -> Path:
    """Where the configuration's preprocessed cases lie."""
    return folder_of(PREPROCESSED) / dataset / resolved(plans, configuration)["data_identifier"]


def preprocessed_cases(dataset: str, plans: dict[str, Any], configuration: str) -> list[str]:
    """The names of the configuration's preprocessed cases; each has one .pkl beside its arrays."""
    return sorted(path.stem for path in preprocessed_folder(dataset, plans, configuration).glob("*.pkl"))


def require_preprocessed(dataset: str, plans: dict[str, Any], configuration: str) -> None:
    """Raise unless the configuration's preprocessed cases exist."""
    folder = preprocessed_folder(dataset, plans, configuration)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise LDSegError(f"{dataset} is not preprocessed for {configuration}: {folder} is missing or empty.",
                         f"Run: ldseg_plan_and_preprocess -d {dataset_id(dataset)} -c {configuration}"
                         f"{_as_planned(plans.get('plans_name', DEFAULT_PLANS), plans.get('taken_over_from'))}")


def parse_folds(values: Iterable[str]) -> list[Fold]:
    """Folds from the command line: numbers or "all", each once, in the order given."""
    folds: list[Fold] = []
    for value in map(str, values):
        if value != "all" and not value.isdecimal():
            raise LDSegError(f"Fold {value!r} is neither a number nor 'all'.", "Give for example: 0 1 2 3 4, or all.")
        folds.append("all" if value == "all" else int(value))
    return list(dict.fromkeys(folds))


def require_folds_to_train(dataset: str, folds: Iterable[Fold]) -> None:
    """Raise unless the split holds these folds (nnU-Net would draw a random split instead)."""
    folder = folder_of(PREPROCESSED) / dataset
    splits = folder / "splits_final.json"
    listed = read_json(splits) if splits.is_file() else None
    number = len(listed) if isinstance(listed, list) and listed else _NEW_SPLITS  # what is no split: `trainers.splits`
    wrong = [str(fold) for fold in folds if fold != "all" and int(fold) >= number]
    if wrong:
        raise LDSegError(f"Fold {', '.join(wrong)} does not exist: the split of {dataset} has {number} folds.",
                         f"Choose from 0 to {number - 1}, or all.")
    description = folder / "dataset.json"
    cases = read_json(description)["numTraining"] if description.is_file() else number
    if not splits.is_file() and cases < number and any(fold != "all" for fold in folds):
        raise LDSegError(f"{dataset} has {cases} training cases, too few for {number} folds.",
                         f"Train fold all, or write your own split into {splits}.")


def model_folder(dataset: str, trainer_name: str, plans_name: str, configuration: str) -> Path:
    """Where nnU-Net puts the folds of a model."""
    return folder_of(RESULTS) / dataset / f"{trainer_name}__{plans_name}__{configuration}"


def find_model(dataset: str, trainer_name: str = DEFAULT_TRAINER, plans_name: str = DEFAULT_PLANS,
               configuration: str | None = None, checkpoint_name: str = DEFAULT_CHECKPOINT) -> Path:
    """The folder of a trained model; without a configuration the trained one, 3d_fullres if there are several."""
    trained = find_models(dataset, trainer_name, plans_name, checkpoint_name)
    if configuration in trained:
        return trained[configuration]
    if configuration is None and trained:
        return trained.get("3d_fullres", next(iter(trained.values())))
    results = folder_of(RESULTS) / dataset
    there = _checkpoints_in(results)
    cure = f"There are: {'; '.join(there)}. Choose with -tr, -p, -c and -chk" if there else "Nothing is trained there"
    name = f"{trainer_name}__{plans_name}__{configuration or '*'}"
    raise LDSegError(f"There is no {checkpoint_name} of {name} in {results}.",
                     f"{cure}, or train: ldseg_train {dataset_id(dataset)} 0"
                     + (f" -c {configuration}" if configuration else ""))


def find_models(dataset: str, trainer_name: str = DEFAULT_TRAINER, plans_name: str = DEFAULT_PLANS,
                checkpoint_name: str = DEFAULT_CHECKPOINT) -> dict[str, Path]:
    """The folder of each configuration of which a fold is trained."""
    name = f"{trainer_name}__{plans_name}__"
    return {path.name[len(name):]: path for path in sorted((folder_of(RESULTS) / dataset).glob(f"{name}*"))
            if trained_folds(path, checkpoint_name)}


def trained_folds(model: Path, checkpoint_name: str = DEFAULT_CHECKPOINT) -> list[Fold]:
    """Folds of a model that have the checkpoint; numbered ones, or else all."""
    names = [path.parent.name[len("fold_"):] for path in model.glob(f"fold_*/{checkpoint_name}")]
    numbered: list[Fold] = [*sorted(int(name) for name in names if name.isdecimal())]
    return numbered or ["all" for name in names if name == "all"]


def require_trained_folds(model: Path, folds: Iterable[Fold], checkpoint_name: str = DEFAULT_CHECKPOINT) -> None:
    """Raise unless each of the folds has the checkpoint."""
    missing = [str(fold) for fold in folds if not (model / f"fold_{fold}" / checkpoint_name).is_file()]
    if missing:
        there = trained_folds(model, checkpoint_name)
        raise LDSegError(f"Fold {', '.join(missing)} of {model} has no {checkpoint_name}.",
                         f"Trained folds are: {' '.join(map(str, there)) or 'none'}; train the others with "
                         f"ldseg_train {dataset_id(model.parent.name)} {' '.join(missing)}")


def _datasets(variables: Iterable[str]) -> list[str]:
    names: set[str] = set()
    for variable in variables:
        folder = os.environ.get(variable)
        if folder and Path(folder).is_dir():
            names |= {p.name for p in Path(folder).iterdir() if re.match(r"Dataset\d{3}_.+", p.name) and p.is_dir()}
    return sorted(names)


def _described(variables: Iterable[str]) -> str:
    return " or ".join(f"{v} ({os.environ[v]})" for v in variables if os.environ.get(v)) or "nnU-Net's folders"


def _checkpoints_in(results: Path) -> list[str]:
    return [str(path.relative_to(results)) for path in sorted(results.glob("*/fold_*/checkpoint_*.pth"))]
