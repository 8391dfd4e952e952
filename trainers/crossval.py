"""The state of a fold, and the validations of all folds as one: each case by the fold that did not train on it."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import DEFAULT_CHECKPOINT, Fold, read_json, resolved
from ldseg_auto.inference.binding import bound
from ldseg_auto.trainers.splits import Split

NEW, STARTED, TRAINED, FINISHED = "new", "started", "trained", "finished"
_STARTED = ("checkpoint_latest.pth", "checkpoint_best.pth")  # what nnU-Net continues from


def fold_state(fold: Path, cases: Sequence[str], ending: str, with_probabilities: bool = False) -> str:
    """How far a fold has come: "new", "started" (it can be continued), "trained" (but not, or not wholly, validated) or
    "finished".

    Args:
        fold: its folder.
        cases: its validation cases.
        ending: of label files, with the dot.
        with_probabilities: the validation must have saved them too.
    """
    if not (fold / DEFAULT_CHECKPOINT).is_file():
        return STARTED if any((fold / name).is_file() for name in _STARTED) else NEW
    validation = fold / "validation"
    endings = [ending, ".npz"] if with_probabilities else [ending]
    written = all((validation / f"{case}{end}").is_file() for case in cases for end in endings)
    return FINISHED if written and (validation / "summary.json").is_file() else TRAINED


def folds_begun(model: Path) -> list[Fold]:
    """The folds of a model that have a checkpoint."""
    names = {path.parent.name.removeprefix("fold_") for path in model.glob("fold_*/checkpoint_*.pth")}
    return [int(name) if name.isdecimal() else name for name in sorted(names)]


def is_merged(model: Path, number: int) -> bool:
    """Whether the validations of folds 0 to `number` - 1 are merged as they are now."""
    merged = merged_folder(model, range(number)) / "summary.json"
    summaries = [model / f"fold_{fold}" / "validation" / "summary.json" for fold in range(number)]
    return merged.is_file() and all(merged.stat().st_mtime_ns > summary.stat().st_mtime_ns for summary in summaries)


def require_same_plans(model: Path, plans: dict, configuration: str, folds: Sequence[Fold]) -> None:
    """Raise where folds that are to stay were trained by other plans than these."""
    file = model / "plans.json"
    if folds and file.is_file():
        before = read_json(file)
        trained = resolved(before, configuration) if configuration in before["configurations"] else None
        if trained != json.loads(json.dumps(resolved(plans, configuration))):
            raise LDSegError(f"Fold {', '.join(map(str, folds))} of {model.name} was trained by other plans than those "
                             "of now.", "Train these too with --restart, move them away, or give the new plans a "
                             "name of their own (-p).")


def require_same_split(fold: Path, cases: Sequence[str], ending: str) -> None:
    """Raise where a fold was validated on other cases than these: the split has changed since, and what it would be
    validated on now it may have been trained on."""
    strangers = {path.name.removesuffix(ending) for path in (fold / "validation").glob(f"*{ending}")} - set(cases)
    if strangers:
        raise LDSegError(f"{fold / 'validation'} holds cases of another split: {named(sorted(strangers))}.",
                         "Put that split back into splits_final.json, or train the fold anew: --restart.")


def merged_folder(model: Path, folds: Sequence[int]) -> Path:
    """Where nnU-Net has the validations of these folds as one."""
    return model / f"crossval_results_folds_{'_'.join(map(str, folds))}"


def merge_folds(model: Path, splits: Sequence[Split], cases: Sequence[str], ending: str, num_processes: int = 2,
                allow_unused_cases: bool = False) -> Path:
    """Put the validations of all folds into one folder and score them together, as nnU-Net does.

    Args:
        model: the folder that holds the folds.
        splits: all folds of the data set.
        cases: all its cases.
        ending: of label files, with the dot.

    Returns:
        crossval_results_folds_0_1_... with each case's segmentation, plans.json, dataset.json and summary.json.

    Raises:
        LDSegError: a case is validated by no fold or by several, or a fold is not finished.
    """
    from nnunetv2.evaluation import accumulate_cv_results

    require_each_case_once(splits, cases, allow_unused_cases)
    for number, split in enumerate(splits):
        fold = model / f"fold_{number}"
        state = fold_state(fold, split["val"], ending)
        require_same_split(fold, split["val"], ending)
        if state != FINISHED:
            raise LDSegError(f"Fold {number} of {model.name} is not finished ({state}).",
                             f"Run: ldseg_train {model.parent.name} {number} -c {model.name.split('__')[-1]}")
    target = merged_folder(model, range(len(splits)))
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    # nnU-Net looks for the truth in nnUNet_raw first, which need not be set, and then among the preprocessed cases
    raw = accumulate_cv_results.nnUNet_raw or ""
    try:
        with bound(accumulate_cv_results, nnUNet_raw=raw):
            accumulate_cv_results.accumulate_cv_results(str(model), str(temporary), range(len(splits)), num_processes)
        summary = temporary / "summary.json"  # names the files it scored
        summary.write_text(summary.read_text().replace(str(temporary), str(target)))
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def require_each_case_once(splits: Sequence[Split], cases: Sequence[str], allow_unused_cases: bool) -> None:
    """Raise where several of these folds validate a case, or none does and `allow_unused_cases` does not say so."""
    validated = Counter(case for split in splits for case in split["val"])
    several = sorted(case for case, count in validated.items() if count > 1)
    never = [] if allow_unused_cases else sorted(set(cases) - set(validated))
    wrong = [f"{named(names)} {what}" for what, names in
             (("would be validated by several folds", several), ("would be validated by no fold", never)) if names]
    if wrong:
        raise LDSegError(f"The folds are no cross-validation: {'; '.join(wrong)}.",
                         "Each fold can be used by itself; for results of all folds correct splits_final.json.")
