"""Predicting a folder of images, as nnUNetv2_predict does it, with the checks that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from ldseg_auto.checks.prediction import check_inputs, find_inputs, record_of, report_inputs, require_all
from ldseg_auto.checks.problem import errors, lines
from ldseg_auto.devices import select_device
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PLANS,
    DEFAULT_TRAINER,
    RESULTS,
    Fold,
    find_dataset,
    find_model,
    folder_of,
    model_folder,
    parse_folds,
    require_environment,
    require_trained_folds,
    trained_folds,
)
from ldseg_auto.inference.choice import Best, Finish, load_best, load_choice
from ldseg_auto.inference.ensemble import average_members, is_member, open_parts
from ldseg_auto.inference.failures import CasesFailed, Failure
from ldseg_auto.inference.outputs import files_of, is_whole, require_output_folder, require_written
from ldseg_auto.inference.previous_stage import FirstStage, find_first_stages, require_segmentations
from ldseg_auto.locks import one_at_a_time
from ldseg_auto.run_locks import prediction
from ldseg_auto.sharing.opening import read_model


@one_at_a_time(prediction)
def predict_folder(input_folder: str, output_folder: str, dataset: str, *, configurations: Sequence[str] | None = None,
                   trainer_name: str = DEFAULT_TRAINER, plans_name: str = DEFAULT_PLANS,
                   folds: Sequence[str | int] | None = None, checkpoint_name: str = DEFAULT_CHECKPOINT,
                   device: str | None = None, tile_step_size: float = 0.5, mirroring: bool | None = None,
                   continue_prediction: bool = False, save_probabilities: bool = False,
                   num_processes_preprocessing: int = 3, num_processes_export: int = 3, num_parts: int = 1,
                   part_id: int = 0, steps: int | None = None, samples: int | None = None, eta: float | None = None,
                   seed: int = 0, uncertainty: bool = False, use_choice: bool = True, skip_bad_cases: bool = False,
                   progress_bar: bool = True, verbose: bool = False, whole_volume: bool = False,
                   previous_stage_folder: str | None = None) -> list[Path]:
    """Segment every case of a folder (or one part of them) with the trained folds of a model, or of several.

    Args:
        input_folder: holds CASE_0000.ENDING, ... with the ending of the training data.
        output_folder: gets CASE.ENDING; with `uncertainty` also uncertainty/CASE_entropy.
        dataset: name or ID of the data set the model was trained on.
        configurations: of several the probabilities are averaged; None takes those that were chosen by
            ldseg_find_best_configuration, or else the one that is trained, 3d_fullres if there are several.
        folds: of each model; None takes those that are trained.
        device: "cuda", "cpu" or "mps"; None takes the GPU if there is one.
        tile_step_size: distance of tiles as a share of the patch, above 0 up to 1.
        steps, samples, eta, mirroring: of the sampler; None takes what was chosen, or else the plans' default with
            mirroring.
        num_processes_preprocessing, num_processes_export: 0 for both works in this process alone.
        seed: of the samples' noise.
        uncertainty: write maps and figures below uncertainty/.
        use_choice: use what ldseg_find_best_configuration chose.
        whole_volume: denoise the latent of each image at once, see `inference.whole_volume`.
        previous_stage_folder: of a cascade, the segmentations of its first stage, CASE.ENDING; None predicts them.
        skip_bad_cases: cases that cannot be used are recorded in data_check.json in the output folder, and no error.

    Returns:
        The segmentation of every case of this part that can be used.

    Raises:
        LDSegError: anything asked for does not exist, or cases cannot be used; all bad ones are listed.
        CasesFailed: some cases were not predicted; all others are written.
    """
    from ldseg_auto.inference.export import ExportOptions
    _require_part(num_parts, part_id)
    require_in_range(tile_step_size, samples, steps, eta, seed)
    _require_processes(num_processes_preprocessing, num_processes_export)
    require_environment(RESULTS)
    torch_device = select_device(device)
    asked = {"use_mirroring": mirroring, "samples": samples, "steps": steps, "eta": eta}
    chosen = choose_models(dataset, configurations, trainer_name, plans_name, folds, checkpoint_name, asked, use_choice)
    models, samplers = chosen.folds, chosen.samplers
    first = next(iter(models))
    tables = {model: read_model(model) for model in models}
    plans, description = tables[first]
    second_stages = find_first_stages({model: table[0] for model, table in tables.items()}, folds, checkpoint_name,
                                      previous_stage_folder)
    for stage in filter(None, second_stages.values()):
        _require_steps(steps, read_model(stage.model)[0], stage.model.name.split("__")[-1])
    cases = find_inputs(Path(input_folder), description)
    require_output_folder(Path(input_folder), Path(output_folder))

    mine = list(cases)[part_id::num_parts]
    out = Path(output_folder)
    files = {case: files_of(out / case, description, save_probabilities, uncertainty) for case in mine}
    to_do = {case: cases[case] for case in mine
             if not (continue_prediction and all(map(is_whole, files[case])))}
    record = record_of(out, num_parts, part_id)
    good, problems = check_inputs(to_do, description, plans, num_processes_preprocessing, progress_bar)
    mine, to_do = [case for case in mine if case in good or case not in to_do], good
    report_inputs(problems, bool(mine), record)
    options = {"checkpoint_name": checkpoint_name, "tile_step_size": tile_step_size, "device": torch_device,
               "verbose": verbose, "verbose_preprocessing": verbose, "allow_tqdm": progress_bar, "seed": seed,
               "whole_volume": whole_volume}
    export = ExportOptions(maps=uncertainty, **vars(chosen.finish))
    processes = (num_processes_preprocessing, num_processes_export)
    first_stages, failures = _predict_first_stages(
        to_do, out / f"prev_stage_{part_id}", second_stages, previous_stage_folder, asked, use_choice,
        continue_prediction, processes, {**options, "export": ExportOptions()}) if to_do else ({}, [])
    to_do = {case: to_do[case] for case in to_do if case not in {failure.case for failure in failures}}
    if to_do and len(models) == 1:
        failures += _predict_cases(to_do, out, first, models[first], save_probabilities, processes,
                                   {**options, **samplers[first], "export": export}, first_stages.get(first))
    elif to_do:
        members, failed = _predict_members(to_do, out / f"members_{part_id}", models, samplers, continue_prediction,
                                           processes, {**options, "export": ExportOptions(spread=uncertainty)},
                                           first_stages)
        failures += failed
        whole = [case for case in to_do if case not in {failure.case for failure in failures}]
        try:
            average_members(members, whole, out, save_probabilities, export, progress_bar)
        except CasesFailed as error:
            failures += error.failures
    if not failures:
        rmtree(out / f"prev_stage_{part_id}", ignore_errors=True)
    if failures:
        raise CasesFailed(failures, len(mine), [] if skip_bad_cases else lines(errors(problems)))
    require_written([file for case in mine for file in files[case]])
    if not skip_bad_cases:
        require_all(problems, record)
    return [files[case][0] for case in mine]


@dataclass(frozen=True)
class Models:
    """Which models predict, and how.

    Args:
        folds: of each model, by its folder.
        samplers: of each model: samples, steps, eta and use_mirroring of `LDSegPredictor`.
        finish: of their mean.
    """

    folds: dict[Path, list[Fold]]
    samplers: dict[Path, dict[str, Any]]
    finish: Finish


def choose_models(dataset: str, configurations: Sequence[str] | None, trainer_name: str, plans_name: str,
                  folds: Sequence[str | int] | None, checkpoint_name: str, asked: dict[str, Any],
                  use_choice: bool) -> Models:
    """The models of a data set as `predict_folder` (see there) takes them.

    Args:
        asked: use_mirroring, samples, steps and eta; None where nothing is asked for.

    Raises:
        LDSegError: something asked for does not exist, or is not possible with a model.
    """
    dataset = find_dataset(dataset)
    best = _chosen(dataset, trainer_name, plans_name) if use_choice else None
    if configurations is None and best is not None:
        configurations = best.configurations
        print(f"Configurations chosen by ldseg_find_best_configuration: {' and '.join(configurations)}")
    models = _find_models(dataset, trainer_name, plans_name, configurations, folds, checkpoint_name)
    return _with_samplers(models, best, asked, use_choice)


def choose_model(model: Path, folds: Sequence[str | int] | None, checkpoint_name: str, asked: dict[str, Any],
                 use_choice: bool) -> Models:
    """The same of one model's folder, wherever it lies."""
    there = parse_folds(map(str, folds)) if folds else trained_folds(model, checkpoint_name)
    require_trained_folds(model, there or [0], checkpoint_name)
    return _with_samplers({model: there}, None, asked, use_choice)


def _with_samplers(models: dict[Path, list[Fold]], best: Best | None, asked: dict[str, Any],
                   use_choice: bool) -> Models:
    for model in models:
        _require_steps(asked["steps"], read_model(model)[0], model.name.split("__")[-1])
    samplers = {model: _sampler(model, asked, use_choice) for model in models}
    return Models(models, samplers, _finish(models, best, use_choice))


def _find_models(dataset: str, trainer_name: str, plans_name: str, configurations: Sequence[str] | None,
                 folds: Sequence[str | int] | None, checkpoint_name: str) -> dict[Path, list[Fold]]:
    """The folder of each model and its folds."""
    models = {}
    wanted: Sequence[str | None] = configurations or [None]
    for configuration in wanted:
        model = find_model(dataset, trainer_name, plans_name, configuration, checkpoint_name)
        models[model] = parse_folds(map(str, folds)) if folds else trained_folds(model, checkpoint_name)
        require_trained_folds(model, models[model], checkpoint_name)
    return models


def _chosen(dataset: str, trainer_name: str, plans_name: str) -> Best | None:
    """The best configurations, if all of them are there (an imported model may lack one)."""
    best = load_best(folder_of(RESULTS) / dataset, trainer_name, plans_name)
    missing = [name for name in (best.configurations if best else ())
               if not model_folder(dataset, trainer_name, plans_name, name).is_dir()]
    if missing:
        print(f"ldseg_find_best_configuration chose {' and '.join(missing)}, which is not trained here: not used.")
    return None if missing else best


def _sampler(model: Path, asked: dict[str, Any], use_choice: bool) -> dict[str, Any]:
    """How a model is sampled: as asked, where nothing is asked as it was chosen, or else by default."""
    choice = load_choice(model) if use_choice else None
    chosen: dict[str, Any] = {"use_mirroring": True}
    if choice is not None:
        chosen = {"use_mirroring": choice.sampler.mirroring, "samples": choice.sampler.samples,
                  "steps": choice.sampler.steps, "eta": choice.sampler.eta}
        print(f"Sampler chosen by ldseg_find_best_configuration for {model.name}: {choice.sampler}")
    return {name: chosen.get(name) if value is None else value for name, value in asked.items()}


def _finish(models: dict[Path, list[Fold]], best: Best | None, use_choice: bool) -> Finish:
    """What was fitted to the predictions of just these configurations."""
    if best is not None and {model.name.split("__")[-1] for model in models} == set(best.configurations):
        return best.finish
    model, *others = models
    choice = load_choice(model) if use_choice and not others else None
    return Finish() if choice is None else choice.finish


def _predict_first_stages(cases: dict[str, list[Path]], folder: Path, stages: dict[Path, FirstStage | None],
                          given: str | None, asked: dict[str, Any], use_choice: bool, keep: bool,
                          processes: tuple[int, int],
                          options: dict[str, Any]) -> tuple[dict[Path, Path], list[Failure]]:
    """For each second stage the folder of the first one's segmentations: the one that is given, or one below `folder`,
    in which those that are there stay if `keep`, and if they were made in the same way by the same weights."""
    source = next(iter(cases.values()))[0].resolve().parent
    predicted = {model: stage for model, stage in stages.items() if stage is not None}
    samplers = {model: _sampler(stage.model, asked, use_choice) for model, stage in predicted.items()}
    if predicted:
        open_parts(folder, keep, {**_same(options), "images": source, "stages": {
            str(model): (stage.options(options["checkpoint_name"]), samplers[model])
            for model, stage in predicted.items()}})
    failures: list[Failure] = []
    out: dict[Path, Path] = {}
    for model, stage in stages.items():
        ending = read_model(model)[1]["file_ending"]
        out[model] = Path(given or "") if stage is None else folder / stage.model.name
        failed = {failure.case for failure in failures}
        missing = {case: files for case, files in cases.items()
                   if case not in failed and not is_whole(out[model] / f"{case}{ending}")}
        if stage is None:
            require_segmentations(out[model], cases, ending)
        elif missing:
            failures += _predict_cases(missing, out[model], stage.model, stage.folds, False, processes,
                                       {**options, **samplers[model]})
    return out, failures


def _same(options: dict[str, Any]) -> dict[str, Any]:
    """What parts of a prediction must have in common with those of an earlier run that are kept."""
    return {name: options[name] for name in ("checkpoint_name", "tile_step_size", "seed", "whole_volume")}


def _predict_members(cases: dict[str, list[Path]], folder: Path, models: dict[Path, list[Fold]],
                     samplers: dict[Path, dict[str, Any]], keep: bool, processes: tuple[int, int],
                     options: dict[str, Any], first_stages: dict[Path, Path]) -> tuple[list[Path], list[Failure]]:
    """Each model's probabilities of these cases, in a folder each below `folder`; those there are stay if `keep`. A
    case that fails with one model is not tried with the next."""
    source = next(iter(cases.values()))[0].resolve().parent
    spread = options["export"].spread
    open_parts(folder, keep, {**_same(options), "spread": spread, "images": source,
                              "models": {str(model): (folds, samplers[model], first_stages.get(model))
                                         for model, folds in models.items()}})
    failures: list[Failure] = []
    for model, folds in models.items():
        failed = {failure.case for failure in failures}
        missing = {case: files for case, files in cases.items()
                   if case not in failed and not is_member(folder / model.name / case, spread)}
        if missing:
            failures += _predict_cases(missing, folder / model.name, model, folds, True, processes,
                                       {**options, **samplers[model]}, first_stages.get(model))
    return [folder / model.name for model in models], failures


def _predict_cases(cases: dict[str, list[Path]], out: Path, model: Path, folds: list[Fold], save_probabilities: bool,
                   processes: tuple[int, int], options: dict[str, Any],
                   first_stage: Path | None = None) -> list[Failure]:
    """Segment these cases with one model, a cascade's second stage by the first one's segmentations in a folder;
    returns those that failed."""
    predictor = _load_predictor(model, folds, **options)
    print(f"Predicting with {model.name}, fold {' '.join(map(str, folds))}")
    images = [[str(file) for file in files] for files in cases.values()]
    truncated = [str(out / case) for case in cases]
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {"save_probabilities": save_probabilities, "overwrite": True}
    try:
        predictor.predict_from_files(images, truncated, **written, num_processes_preprocessing=processes[0],
                                     num_processes_segmentation_export=processes[1],
                                     folder_with_segs_from_prev_stage=str(first_stage) if first_stage else None)
    except CasesFailed as error:
        return error.failures
    return []


def _load_predictor(model: Path, folds: Sequence[Fold], checkpoint_name: str, **options: Any) -> Any:
    from ldseg_auto.inference.predictor import LDSegPredictor

    predictor = LDSegPredictor(**options)
    predictor.initialize_from_trained_model_folder(str(model), tuple(folds), checkpoint_name)
    return predictor


def _require_part(num_parts: int, part_id: int) -> None:
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise LDSegError(f"part_id {part_id} is not one of {num_parts} parts.",
                         f"Count from 0: -part_id must lie between 0 and num_parts - 1 = {num_parts - 1}.")


def require_in_range(tile_step_size: float, samples: int | None, steps: int | None, eta: float | None,
                     seed: int) -> None:
    """Raise unless a predictor can be made of these."""
    for name, number in (("samples", samples), ("steps", steps)):
        if number is not None and number < 1:
            raise LDSegError(f"{name} is {number}.", "Give 1 or more, or leave it out for the default.")
    if not 0 < tile_step_size <= 1:
        raise LDSegError(f"step_size is {tile_step_size}.", "Give a share of the patch, above 0 up to 1, such as 0.5.")
    if eta is not None and not 0 <= eta <= 1:
        raise LDSegError(f"eta is {eta}.", "Give 0 (no noise added) to 1 (ancestral sampling).")
    if not 0 <= seed < 2 ** 64:
        raise LDSegError(f"The seed is {seed}.", "Give a number from 0 on.")


def _require_processes(preprocessing: int, export: int) -> None:
    if min(preprocessing, export) < 0 or (preprocessing == 0) != (export == 0):
        raise LDSegError(f"{preprocessing} processes for preprocessing and {export} for writing do not fit together.",
                         "Give at least 1 to -npp and to -nps, or 0 to both to work in one process alone.")


def _require_steps(steps: int | None, plans: dict[str, Any], configuration: str) -> None:
    network = plans["configurations"][configuration].get("architecture", {}).get("arch_kwargs", {})
    timesteps = network.get("timesteps")
    if steps is not None and timesteps is not None and steps > timesteps:
        raise LDSegError(f"{steps} steps are more than the model's {timesteps} timesteps.",
                         f"Give 1 to {timesteps}; a few are enough.")
