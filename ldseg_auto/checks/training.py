"""The data check of `ldseg_plan_and_preprocess`: a whole raw data set, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ldseg_auto.checks import compare
from ldseg_auto.checks.case import Report, Rules
from ldseg_auto.checks.description import read_description
from ldseg_auto.checks.files import Case, is_stray, training_cases
from ldseg_auto.checks.problem import WARNING, Problem, bad_cases, errors, lines
from ldseg_auto.checks.run import check_cases, readers_of
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import RAW, folder_of


class Checked(NamedTuple):
    """A raw data set after its check.

    description: dataset.json, numTraining that of `cases`.
    cases: identifier -> {"images": files, "label": file} of those that can be used.
    left_out: the names of the others, and of stray files.
    problems: warnings, and why cases were left out.
    facts: what predictions are compared with (`compare.facts`).
    counted_rightly: whether dataset.json said the number of `cases`.
    reader: name of the reader that nnU-Net takes for these files.
    """

    description: dict[str, Any]
    cases: dict[str, dict[str, Any]]
    left_out: list[str]
    problems: list[Problem]
    facts: dict[str, Any]
    counted_rightly: bool
    reader: str


def check_training(name: str, processes: int = 0, skip_bad_cases: bool = False, progress_bar: bool = True) -> Checked:
    """Check all files of a data set.

    Args:
        name: in full.
        processes: that read files; 0 reads in this one.
        skip_bad_cases: leave out what cannot be used.

    Raises:
        LDSegError: dataset.json is not valid, or cases cannot be used (all are listed) and are not skipped, or none is
            left.
    """
    folder = folder_of(RAW) / name
    description = read_description(folder)
    names = list(description["channel_names"].values())
    rules = Rules(tuple(map(str, names)), readers_of(description), *_allowed_labels(description, folder))
    listed, problems = _listed(folder, description)
    wrong_names = {p.case for p in problems if p.file != listed.get(p.case, {}).get("label")}  # labels may be read yet
    cases = [Case(case, tuple(files["images"]), files["label"]) for case, files in listed.items()
             if case not in wrong_names]
    reports = check_cases(cases, rules, processes, progress_bar) if cases else {}
    for report in reports.values():
        problems += report.problems
    bad = set(bad_cases(problems))
    problems += compare.duplicates([case for case in cases if case.name not in bad], reports)
    bad = set(bad_cases(problems))
    problems += compare.unlike_spacing([case for case in cases if case.name not in bad], reports)
    bad = set(bad_cases(problems))
    good = [case for case in cases if case.name not in bad]
    number = len([case for case in listed if not is_stray(case)])
    if description["numTraining"] not in (len(good), number):
        problems.insert(0, _wrong_count(folder, description["numTraining"], number))
    if errors(problems) and not (skip_bad_cases and good):
        raise _refusal(name, errors(problems), len(listed), bool(good))
    remaining = {case.name: reports[case.name] for case in good}
    if all(report.only_background for report in remaining.values()):
        raise LDSegError(f"The labels of all {len(remaining)} cases of {name} hold background only.",
                         f"Check the files in {folder / 'labelsTr'}, and the labels in dataset.json.")
    facts = compare.facts(remaining)
    problems += [*_empty_labels(good, remaining), *compare.unlike_order(good, remaining, names, facts["channels"]),
                 *compare.of_the_whole(str(folder), remaining, names)]
    return Checked({**description, "numTraining": len(good)}, {case.name: listed[case.name] for case in good},
                   sorted(bad), problems, facts, description["numTraining"] == len(good) and not bad,
                   reports[good[0].name].reader)


def _listed(folder: Path, description: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """As `training_cases`; some must have the ending that dataset.json names."""
    listed, problems = training_cases(folder, description)
    ending = description["file_ending"]
    if not any(file.endswith(ending) for files in listed.values() for file in files["images"]):
        raise LDSegError(f"{folder / 'imagesTr'} holds no image that ends in {ending}.",
                         f"Images are named CASE_0000{ending}; is file_ending right?")
    return listed, problems


def _allowed_labels(description: Mapping[str, Any], folder: Path) -> tuple[tuple[int, ...], int | None]:
    """The values that labels may have, and the ignore label."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager  # imports torch: after the quick checks

    try:
        manager = LabelManager(description["labels"], description.get("regions_class_order"))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise LDSegError(f"The labels in {folder / 'dataset.json'} are not valid: {error}.",
                         'Write them as in {"background": 0, "liver": 1, "tumour": 2}.') from error
    ignore = manager.ignore_label if manager.has_ignore_label else None
    return tuple(sorted({int(v) for v in manager.all_labels} | ({ignore} if ignore is not None else set()))), ignore


def _wrong_count(folder: Path, said: int, found: int) -> Problem:
    return Problem("", str(folder / "dataset.json"), f"says numTraining {said}, but there are {found} cases",
                   f"Put the missing cases there, or write {found}.")


def _empty_labels(cases: list[Case], reports: Mapping[str, Report]) -> list[Problem]:
    return [Problem(case.name, str(case.label), "holds background only", "Nothing to do if the image shows nothing to "
                    "segment.", WARNING) for case in cases if reports[case.name].only_background]


def _refusal(name: str, found: list[Problem], number: int, some_good: bool) -> LDSegError:
    cases = len([case for case in bad_cases(found) if case])
    what = f"{cases} of {number} training cases of {name} cannot be used" if cases else f"{name} is not as it says"
    cure = "Correct what is listed here" + (", or leave it out with --skip_bad_cases:" if some_good else ":")
    return LDSegError(f"{what}.", cure, lines(found))
