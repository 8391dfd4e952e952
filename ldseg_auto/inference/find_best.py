"""Choosing sampler, configurations and the finish of predictions by cross-validation, for `ldseg_predict`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from ldseg_auto.devices import select_device
from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PLANS,
    DEFAULT_TRAINER,
    PREPROCESSED,
    RESULTS,
    Fold,
    find_dataset,
    find_model,
    find_models,
    folder_of,
    load_plans,
    parse_folds,
    preprocessed_cases,
    preprocessed_folder,
    require_environment,
    require_preprocessed,
    trained_folds,
    write_text,
)
from ldseg_auto.inference import finish
from ldseg_auto.inference.choice import (
    CHOSEN,
    Best,
    Choice,
    Finish,
    Sampler,
    save_best,
    save_choice,
    without_nan,
)
from ldseg_auto.inference.ensemble import average_members
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.previous_stage import handed_on
from ldseg_auto.inference.search import (
    MAX_CASES,
    Measured,
    PartPredictor,
    choose,
    load_case,
    search,
    select_cases,
    sizes,
)
from ldseg_auto.locks import one_at_a_time
from ldseg_auto.report.choice_page import write_page
from ldseg_auto.run_locks import choosing
from ldseg_auto.sharing.opening import read_model
from ldseg_auto.trainers.cascade import require_handed_on
from ldseg_auto.trainers.crossval import require_each_case_once
from ldseg_auto.trainers.splits import read_splits


@dataclass(frozen=True)
class _Model:
    """A trained configuration with what its validation cases are preprocessed to."""

    name: str
    folder: Path
    cases: Mapping[Fold, Sequence[str]]
    preprocessed: Path
    first_stage: Path | None = None  # of a cascade, with the first stage's segmentation of each case


@dataclass(frozen=True)
class _Finalist:
    """A configuration or a pair on the cases of the search, in the images' own geometry."""

    models: tuple[_Model, ...]
    seconds: np.ndarray
    dice: np.ndarray


@one_at_a_time(choosing)
def find_best_configuration(dataset: str, configurations: Sequence[str] | None = None, *,
                            trainer_name: str = DEFAULT_TRAINER, plans_name: str = DEFAULT_PLANS,
                            folds: Sequence[str | int] | None = None, max_cases: int = MAX_CASES,
                            device: str | None = None, progress_bar: bool = True) -> Best:
    """Search each configuration's sampler on some cross-validation cases, choose among configurations and their pairs,
    and fit what is done to the winner's predictions on all cross-validation cases.

    Args:
        dataset: name or ID.
        configurations: those to choose among; None takes all that are trained.
        folds: None takes the trained ones that have a validation part.
        max_cases: of the search.

    Returns:
        what was chosen; it is written to ldseg_inference.json and ldseg_inference.html beside it.

    Raises:
        LDSegError: nothing is trained, or models have no fold in common.
    """
    require_environment(PREPROCESSED, RESULTS)
    dataset = find_dataset(dataset, [PREPROCESSED])
    models = _find_models(dataset, configurations, trainer_name, plans_name, folds)
    torch_device = select_device(device)
    samplers: dict[str, Sampler] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    folds_cases = models[0].cases  # of every model
    every = [case for cases in folds_cases.values() for case in cases]
    selected = select_cases(folds_cases, sizes(models[0].preprocessed, every), max_cases)
    for model in models:
        predictor = _load(PartPredictor, model, torch_device)
        measured = search(predictor, selected, _dataset(model), progress_bar)
        samplers[model.name] = choose(measured).sampler
        tables[model.name] = _table(measured, samplers[model.name])
        save_choice(model.folder, Choice(samplers[model.name], Finish()), {"search": tables[model.name]})
        print(f"{model.name}: {samplers[model.name]}")

    results = folder_of(RESULTS) / dataset
    finalists = _compare(models, samplers, selected, results, torch_device, progress_bar) if len(models) > 1 else []
    chosen = choose(finalists).models if finalists else (models[0],)
    out = results / f"{CHOSEN}_{trainer_name}__{plans_name}"
    fitted, confirmed = _confirm(chosen, samplers, out, torch_device, progress_bar)
    if len(chosen) == 1:
        model, = chosen
        save_choice(model.folder, Choice(samplers[model.name], fitted), {"search": tables[model.name],
                                                                         "confirmed": confirmed})
    best = Best(tuple(model.name for model in chosen), fitted)
    evidence = {"finalists": [_row(finalist, finalist.models == chosen) for finalist in finalists],
                "confirmed": confirmed,
                "samplers": {name: str(sampler) for name, sampler in samplers.items()}}
    save_best(results, trainer_name, plans_name, best, evidence)
    write_page(results / "ldseg_inference.html", dataset, tables, evidence, best)
    return best


def _find_models(dataset: str, configurations: Sequence[str] | None, trainer_name: str, plans_name: str,
                 folds: Sequence[str | int] | None) -> list[_Model]:
    plans = load_plans(dataset, plans_name)
    splits_file = folder_of(PREPROCESSED) / dataset / "splits_final.json"
    splits = read_splits(splits_file) if splits_file.is_file() else []
    there = [name for name, path in find_models(dataset, trainer_name, plans_name).items()
             if trained_folds(path) != ["all"]]
    models = []
    names: Sequence[str | None] = configurations or there or [None]
    for name in names:
        folder = find_model(dataset, trainer_name, plans_name, name)
        wanted = parse_folds(map(str, folds)) if folds else [f for f in trained_folds(folder) if f != "all"]
        missing = [str(f) for f in wanted if f == "all" or int(f) >= len(splits)
                   or not (folder / f"fold_{f}" / DEFAULT_CHECKPOINT).is_file()]
        if missing or not wanted:
            raise LDSegError(f"{folder.name} has no trained fold {' '.join(missing) or 'with a validation part'}.",
                             f"Train folds first: ldseg_train {dataset} 0 1 2 3 4 -c {folder.name.split('__')[-1]}")
        configuration = folder.name.split("__")[-1]
        models.append(_Model(configuration, folder, {fold: splits[int(fold)]["val"] for fold in wanted},
                             preprocessed_folder(dataset, plans, configuration),
                             handed_on(folder, plans, configuration)))
    if any(set(model.cases) != set(models[0].cases) for model in models):
        trained = "; ".join(f"{model.name}: {' '.join(map(str, model.cases))}" for model in models)
        raise LDSegError(f"The configurations have different folds ({trained}).",
                         "Train the missing ones, or name folds that all have: -f 0 1 ...")
    require_each_case_once([splits[int(fold)] for fold in models[0].cases], (), allow_unused_cases=True)
    for model in models:
        _require_cases(model, dataset, plans)
        require_handed_on(model.folder, dataset, plans, model.name,
                          [case for cases in model.cases.values() for case in cases], splits)
    return models


def _require_cases(model: _Model, dataset: str, plans: dict[str, Any]) -> None:
    """Raise before hours of work where a validation case is not preprocessed, or not any more, or lacks its truth."""
    require_preprocessed(dataset, plans, model.name)
    truth = folder_of(PREPROCESSED) / dataset / "gt_segmentations"
    ending = read_model(model.folder)[1]["file_ending"]
    there = {case for case in preprocessed_cases(dataset, plans, model.name) if (truth / f"{case}{ending}").is_file()}
    missing = {case for cases in model.cases.values() for case in cases} - there
    if missing:
        raise LDSegError(f"Validation cases in splits_final.json that are not preprocessed for {model.name} or not in "
                         f"{truth}: {named(sorted(missing))}.", "Preprocess again, or correct splits_final.json.")


def _load(kind: type, model: _Model, device: Any, **options: Any) -> Any:
    predictor = kind(device=device, allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(model.folder), list(model.cases))
    return predictor


def _dataset(model: _Model) -> Any:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    first_stage = None if model.first_stage is None else str(model.first_stage)
    return infer_dataset_class(str(model.preprocessed))(str(model.preprocessed),
                                                        folder_with_segs_from_previous_stage=first_stage)


def _table(measured: Sequence[Measured], sampler: Sampler) -> list[dict[str, Any]]:
    rows = [m.row() | {"chosen": m.sampler == sampler} for m in measured]
    return sorted(rows, key=lambda row: row["seconds"])


def _predict(model: _Model, sampler: Sampler, cases: Mapping[Fold, Sequence[str]], out: Path, options: ExportOptions,
             device: Any, progress_bar: bool) -> dict[str, float]:
    """Each case by the fold that did not see it, with its probabilities; seconds of each."""
    from ldseg_auto.inference.predictor import LDSegPredictor

    predictor = _load(LDSegPredictor, model, device, samples=sampler.samples, steps=sampler.steps, eta=sampler.eta,
                      use_mirroring=sampler.mirroring, export=options)
    parameters = dict(zip(predictor.folds, predictor.list_of_parameters, strict=True))
    dataset, seconds = _dataset(model), {}
    out.mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(model.folder / name, out / name)
    with tqdm(total=sum(map(len, cases.values())), desc=f"{model.name}, {sampler}",
              disable=None if progress_bar else True) as bar:
        for fold, names in cases.items():
            predictor.folds, predictor.list_of_parameters = [fold], [parameters[fold]]
            for name in names:
                started = perf_counter()
                data, _, properties = load_case(dataset, name, predictor.label_manager.foreground_labels)
                predictor.predict_case(data, properties, str(out / name), save_probabilities=True)
                seconds[name] = perf_counter() - started
                bar.update()
    return seconds


def _compare(models: Sequence[_Model], samplers: Mapping[str, Sampler], cases: Mapping[Fold, Sequence[str]],
             results: Path, device: Any, progress_bar: bool) -> list[_Finalist]:
    """Configurations and their pairs, each with its own sampler, on the cases of the search."""
    folder = results / "search"
    shutil.rmtree(folder, ignore_errors=True)
    names = [name for part in cases.values() for name in part]
    seconds = {model.name: _predict(model, samplers[model.name], cases, folder / model.name, ExportOptions(), device,
                                    progress_bar) for model in models}
    groups = [*((model,) for model in models), *combinations(models, 2)]
    read = {model.name: finish.Cases(folder / model.name, names, models[0].folder) for model in models}
    dice: list[list[float]] = [[] for _ in groups]
    for parts in zip(*read.values(), strict=True):  # a case, by each model
        by_model = dict(zip(read, parts, strict=True))
        for found, group in zip(dice, groups, strict=True):
            found.append(read[models[0].name].mean_dice([by_model[model.name] for model in group]))
    shutil.rmtree(folder)
    spent = [[sum(seconds[model.name][name] for model in group) for name in names] for group in groups]
    return [_Finalist(group, np.array(s), np.array(d)) for group, s, d in zip(groups, spent, dice, strict=True)]


def _confirm(models: Sequence[_Model], samplers: Mapping[str, Sampler], out: Path, device: Any,
             progress_bar: bool) -> tuple[Finish, dict[str, Any]]:
    """The winner on all cross-validation cases: what is fitted there, and how good it is with it."""
    shutil.rmtree(out, ignore_errors=True)
    names = [name for part in models[0].cases.values() for name in part]
    if len(models) == 1:
        seconds = _predict(models[0], samplers[models[0].name], models[0].cases, out, ExportOptions(maps=True), device,
                           progress_bar)
    else:
        parts = [out / "members" / model.name for model in models]
        spent = [_predict(model, samplers[model.name], model.cases, part, ExportOptions(spread=True), device,
                          progress_bar) for model, part in zip(models, parts, strict=True)]
        seconds = {name: sum(part[name] for part in spent) for name in names}
        average_members(parts, names, out, True, ExportOptions(maps=True), progress_bar)
    fitted, evidence = finish.fit(out, names, models[0].folder)
    for name in names:  # probabilities are large, and needed no more
        (out / f"{name}.npz").unlink()
    evidence["seconds"] = float(np.mean(list(seconds.values())))
    write_text(out / "fitted.json", json.dumps(without_nan(evidence), indent=2))
    return fitted, evidence


def _row(finalist: _Finalist, chosen: bool) -> dict[str, Any]:
    return {"configurations": [model.name for model in finalist.models], "cases": len(finalist.dice),
            "seconds": float(np.median(finalist.seconds)), "dice": float(np.nanmean(finalist.dice)), "chosen": chosen}
