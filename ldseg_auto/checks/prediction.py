"""The data check of `ldseg_predict`: each case against what the model was trained on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldseg_auto.checks import compare
from ldseg_auto.checks.case import Rules
from ldseg_auto.checks.files import Case, cases_in, name_problem, require_input_folder
from ldseg_auto.checks.problem import (
    FILE_NAME,
    PLANS_KEY,
    Problem,
    bad_cases,
    errors,
    lines,
    print_warnings,
    write_record,
)
from ldseg_auto.checks.run import check_cases
from ldseg_auto.errors import LDSegError, reason_of


def find_inputs(folder: Path, description: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The cases of a folder and the files of each, in the order of the channels; files with wrong names are listed as
    cases of their own, which `check_inputs` refuses.

    Args:
        folder: images in nnU-Net's naming, CASE_0000.ENDING.
        description: the training data's dataset.json.

    Raises:
        LDSegError: there is no such folder, or no image in it.
    """
    require_input_folder(folder)
    ending = description["file_ending"]
    cases = cases_in(folder, ending)
    if not any(file.name.endswith(ending) for files in cases.values() for file in files):
        raise LDSegError(f"The input folder {folder} holds no {ending} files.",
                         f"Images must have the ending of the training data: CASE_0000{ending}.")
    return cases


def check_inputs(cases: Mapping[str, Sequence[Path]], description: Mapping[str, Any], plans: Mapping[str, Any],
                 processes: int = 0, progress_bar: bool = True) -> tuple[dict[str, list[Path]], list[Problem]]:
    """The cases that can be predicted, and what is wrong with the others; warnings too.

    Args:
        cases: of `find_inputs`, those to be predicted.
        description, plans: of the model; plans of earlier versions do not tell what the training images looked like,
            and orientation and order of the channels are not compared then.
        processes: that read files; 0 reads in this one.
    """
    problems = [problem for case, files in cases.items()
                if (problem := name_problem(case, files, description["file_ending"]))]
    bad = set(bad_cases(problems))
    items = [Case(case, tuple(map(str, files))) for case, files in cases.items() if case not in bad]
    names = [str(name) for name in description["channel_names"].values()]
    reports = check_cases(items, Rules(tuple(names), (plans["image_reader_writer"],)), processes,
                          progress_bar) if items else {}
    for report in reports.values():
        problems += report.problems
    bad = set(bad_cases(problems))
    good = [case for case in items if case.name not in bad]
    known = plans.get(PLANS_KEY, {})
    try:
        problems += [*compare.unlike_orientation(good, reports, known.get("orientations", {})),
                     *compare.unlike_order(good, reports, names, known.get("channels", []))]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise LDSegError(f"{PLANS_KEY} in the model's plans.json is not what planning writes ({reason_of(error)}).",
                         "The model is damaged: get it from its source again.") from error
    problems += compare.duplicates(good, reports)
    return {case.name: list(cases[case.name]) for case in good}, problems


def record_of(output_folder: Path, num_parts: int, part_id: int) -> Path:
    """Where the problems are recorded; commands that share the work have a file each."""
    return output_folder / (FILE_NAME if num_parts == 1 else f"data_check_{part_id}.json")


def report_inputs(problems: Sequence[Problem], some_good: bool, record: Path) -> None:
    """Say what is wrong before the others are predicted, and record it.

    Args:
        problems: of `check_inputs`.
        some_good: whether there are others.
        record: a JSON file; one from an earlier call is removed where nothing is wrong.

    Raises:
        LDSegError: no case can be predicted.
    """
    if not problems:
        record.unlink(missing_ok=True)
        return
    write_record(record, problems, bad_cases(problems))
    print_warnings(problems, record)
    if errors(problems) and not some_good:
        raise LDSegError("None of the cases can be predicted.", "Correct what is listed here:", lines(errors(problems)))
    for line in lines(errors(problems)):
        print("not predicted:", line, file=sys.stderr)


def require_all(problems: Sequence[Problem], record: Path) -> None:
    """Raise if cases were left out, and list them: the last thing a command does."""
    found = errors(problems)
    if found:
        raise LDSegError(f"{len(bad_cases(found))} cases were not predicted (recorded in {record}); the others were.",
                         "Correct what is listed here and use --continue_prediction, or leave them out with "
                         "--skip_bad_cases:", lines(found))
