"""`plan_and_preprocess`: check a raw data set, fingerprint it, plan, preprocess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity as verify
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from ldseg_auto import fingerprint, folders, run_locks
from ldseg_auto.checks.description import read_description
from ldseg_auto.checks.left_out import only_good_cases
from ldseg_auto.checks.problem import FILE_NAME as DATA_CHECK
from ldseg_auto.checks.problem import print_warnings, write_record
from ldseg_auto.checks.training import Checked, check_training
from ldseg_auto.errors import LDSegError, named
from ldseg_auto.locks import held, one_at_a_time
from ldseg_auto.planners.ldseg_planner import PLANNERS, LatentPlanning, LDSegPlanner
from ldseg_auto.planners.plans_of_another import ORIGIN_KEY, name_of_taken_over, read_source, take_over
from ldseg_auto.planners.report import FILE_NAME as REPORT
from ldseg_auto.planners.report import write_report

# which of them a data set gets, the planner decides
STOCK_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
_PREPROCESSING_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}  # nnU-Net's: volumes at full resolution are large


@one_at_a_time(run_locks.planning)
def plan_and_preprocess(dataset_ids: Sequence[int | str], *, configurations: Sequence[str] | None = None,
                        gpu_memory_target_in_gb: float | None = None,
                        overwrite_target_spacing: Sequence[float] | None = None, plans_name: str | None = None,
                        planner: str = LDSegPlanner.__name__, plans_of: int | str | None = None,
                        plans_of_name: str | None = None,
                        num_processes: int | Sequence[int] | None = None,
                        num_processes_fingerprint: int | None = None, verify_dataset_integrity: bool = False,
                        clean: bool = False, no_preprocessing: bool = False, skip_bad_cases: bool = False,
                        verbose: bool = False) -> dict[str, dict[str, Any]]:
    """From raw data sets to `LDSegPlans.json` and preprocessed cases.

    All data sets are checked before the first is worked on; what was found is recorded in `data_check.json` in the
    preprocessed folder.

    Args:
        dataset_ids: IDs or full names.
        configurations: to preprocess; None: all that are planned.
        gpu_memory_target_in_gb: memory of the GPU to train on; None: the planner's, 8 for LDSegPlanner.
        overwrite_target_spacing: in mm, of 3d_fullres, in the files' order of axes.
        plans_name: None: the planner's, LDSegPlans for LDSegPlanner; of plans taken over LDSegPlansFrom004.
        planner: one of `PLANNERS`.
        plans_of: ID or name of another data set, whose plans are taken over; nothing is planned then.
        plans_of_name: the name of those plans; None: LDSegPlans.
        num_processes: for preprocessing, one number or one per configuration.
        num_processes_fingerprint: for the data check and both fingerprints.
        verify_dataset_integrity: nnU-Net's own check, too.
        clean: fingerprint again even where there is one.
        no_preprocessing: stop after planning.
        skip_bad_cases: go on without the cases that cannot be used.
        verbose: show what nnU-Net prints.

    Returns:
        name of the data set -> its plans.

    Raises:
        LDSegError: a folder, file, case or option is not as it must be; all bad cases are listed.
    """
    folders.require_environment(folders.RAW, folders.PREPROCESSED)
    _check_options(gpu_memory_target_in_gb, overwrite_target_spacing, plans_name)
    planner_class = _find_planner(planner)
    names = list(dict.fromkeys(folders.find_dataset(i, (folders.RAW,)) for i in dataset_ids))
    planned_anew = planner_class is not LDSegPlanner or gpu_memory_target_in_gb or overwrite_target_spacing
    sources = _sources(names, plans_of, plans_of_name, bool(planned_anew))
    for name in names:
        identifier = plans_name or (name_of_taken_over(sources[name]) if sources else planner_class.default_plans_name)
        _refuse_foreign_plans(name, identifier, planner, sources.get(name))
    processes = num_processes_fingerprint or default_num_processes
    checked = {name: check_training(name, processes, skip_bad_cases) for name in names}
    result = {}
    for name in names:
        _record(name, checked[name])
        with only_good_cases(name, checked[name]):
            number = folders.dataset_id(name)
            if verify_dataset_integrity:
                _verify(name, processes)
            _fingerprint(name, checked[name], processes, clean, verbose)
            if sources:
                plans = take_over(name, sources[name], plans_name or name_of_taken_over(sources[name]))
            else:
                plans, _ = plan_experiment_dataset(
                    number, planner_class, gpu_memory_target_in_gb,
                    overwrite_target_spacing=_as_tuple(overwrite_target_spacing), overwrite_plans_name=plans_name)
            _report(name, plans)
            chosen = _planned(plans, configurations)
            if not no_preprocessing:
                with held(*run_locks.cases(name, plans, chosen)), _quiet(verbose):
                    preprocess_dataset(number, plans["plans_name"], chosen, _processes(num_processes, chosen), verbose)
            result[name] = plans
    return result


def _check_options(memory_gb: float | None, spacing: Sequence[float] | None, plans_name: str | None) -> None:
    if memory_gb is not None and memory_gb <= 0:
        raise LDSegError(f"The memory target is {memory_gb} GB.", "Give the GPU's memory, for example 8.")
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise LDSegError(f"The target spacing is {list(spacing)}.", "Give three positive numbers, in mm.")
    if plans_name is not None and ("__" in plans_name or not re.fullmatch(r"[\w.-]+", plans_name)):
        raise LDSegError(f"The plans cannot be named {plans_name!r}.",
                         "Use letters and digits, without '__': nnU-Net splits the names of its folders there.")


def _find_planner(name: str) -> type[LatentPlanning]:
    if name not in PLANNERS:
        raise LDSegError(f"There is no planner {name}.", f"Choose one of: {', '.join(PLANNERS)}.")
    return PLANNERS[name]


def _sources(names: Sequence[str], plans_of: int | str | None, plans_of_name: str | None,
             planned_anew: bool) -> dict[str, dict[str, Any]]:
    """The plans that each data set takes over; empty where each gets its own."""
    if plans_of is None:
        if plans_of_name is not None:
            raise LDSegError("-sp is given without -s.", "Name the data set of those plans: -s DATASET.")
        return {}
    if planned_anew:
        raise LDSegError("-s takes plans over as they are, without -pl, -gpu_memory_target and "
                         "-overwrite_target_spacing.", "Leave these out, or plan without -s.")
    return {name: read_source(plans_of, plans_of_name or folders.DEFAULT_PLANS, name,
                              read_description(folders.folder_of(folders.RAW) / name)) for name in names}


def _refuse_foreign_plans(name: str, plans_name: str, planner: str, source: Mapping[str, Any] | None) -> None:
    """Raise where plans of that name are there and were not made in this way."""
    file = folders.folder_of(folders.PREPROCESSED) / name / f"{plans_name}.json"
    if not file.is_file():
        return
    there = folders.read_json(file)
    used, origin = there.get("experiment_planner_used"), there.get(ORIGIN_KEY)
    if origin != (None if source is None else {key: source[key] for key in ("dataset_name", "plans_name")}):
        made = "was planned" if origin is None else f"was taken over from {origin['dataset_name']}"
        raise LDSegError(f"{file} {made}: it would be overwritten.", "Choose another name with -overwrite_plans_name.")
    if source is None and used != planner:
        raise LDSegError(f"{file} was written by {used}: planning would overwrite it.",
                         "Choose another name with -overwrite_plans_name.")


def _verify(name: str, processes: int) -> None:
    try:
        verify(str(folders.folder_of(folders.RAW) / name), processes)
    except (AssertionError, RuntimeError) as error:
        raise LDSegError(f"The integrity check of {name} failed: {error}", "Correct the files named above.") from error


def _record(name: str, checked: Checked) -> None:
    file = folders.folder_of(folders.PREPROCESSED) / name / DATA_CHECK
    write_record(file, checked.problems, checked.left_out, {"cases": sorted(checked.cases), **checked.facts})
    print_warnings(checked.problems, file)
    if checked.left_out:
        print(f"{name}: {len(checked.left_out)} cases are left out ({named(checked.left_out)}), {len(checked.cases)} "
              f"remain; the reasons are in {file}")


def _fingerprint(name: str, checked: Checked, processes: int, clean: bool, verbose: bool) -> None:
    """nnU-Net's fingerprint and ours; what is there is kept unless the cases have changed."""
    folder = folders.folder_of(folders.PREPROCESSED) / name
    existing, ours = folder / "dataset_fingerprint.json", folder / fingerprint.FILE_NAME
    stale = existing.is_file() and len(folders.read_json(existing)["spacings"]) != len(checked.cases) or (
        ours.is_file() and folders.read_json(ours).get("cases") not in (None, sorted(checked.cases)))
    fingerprint.extract_label_fingerprint(checked.cases, checked.description,
                                          recursive_find_reader_writer_by_name(checked.reader), ours, processes, clean)
    with _quiet(verbose):
        extract_fingerprint_dataset(folders.dataset_id(name), num_processes=processes, clean=clean or stale,
                                    verbose=verbose)


def _report(name: str, plans: dict[str, Any]) -> None:
    folder = folders.folder_of(folders.PREPROCESSED) / name
    other = "" if plans["plans_name"] == folders.DEFAULT_PLANS else f"{plans['plans_name']}_"
    write_report(plans, folders.read_json(folder / "dataset_fingerprint.json"),
                 folders.read_json(folder / fingerprint.FILE_NAME), folder / f"{other}{REPORT}")


def _planned(plans: dict[str, Any], requested: Sequence[str] | None) -> list[str]:
    """Requested configurations that are planned; nnU-Net's standard ones are skipped where the data need none."""
    planned = [name for name, plan in plans["configurations"].items() if "inherits_from" not in plan]
    if requested is None:
        return planned
    unknown = [name for name in requested if name not in plans["configurations"] and name not in STOCK_CONFIGURATIONS]
    chosen = [name for name in requested if name in plans["configurations"]]
    if unknown or not chosen:
        raise LDSegError(f"There is no configuration {', '.join(unknown or requested)} for {plans['dataset_name']}.",
                         f"Choose from: {', '.join(planned)}.")
    skipped = [name for name in requested if name not in chosen]
    if skipped:
        print(f"{plans['dataset_name']} needs no {', '.join(skipped)}: skipped.")
    return list(dict.fromkeys(_whose_cases(plans, name) for name in chosen))


def _whose_cases(plans: dict[str, Any], name: str) -> str:
    """The configuration whose preprocessed cases this one uses."""
    own = plans["configurations"][name]
    return name if "data_identifier" in own else _whose_cases(plans, own["inherits_from"])


def _processes(num_processes: int | Sequence[int] | None, configurations: Sequence[str]) -> list[int]:
    if num_processes is None:
        return [min(_PREPROCESSING_PROCESSES.get(name, 4), default_num_processes) for name in configurations]
    given = [num_processes] if isinstance(num_processes, int) else list(num_processes)
    if len(given) not in (1, len(configurations)):
        raise LDSegError(f"{len(given)} numbers of processes came for {len(configurations)} configurations "
                         f"({', '.join(configurations)}).", "Give one number, or one per configuration.")
    return given * len(configurations) if len(given) == 1 else given


def _quiet(verbose: bool) -> Any:
    return nullcontext() if verbose else redirect_stdout(StringIO())


def _as_tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)
