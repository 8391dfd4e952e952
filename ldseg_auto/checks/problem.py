"""What is wrong with a case: the file, the cause and the cure; and how lists of them are said and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldseg_auto.folders import read_json, write_text

ERROR, WARNING = "error", "warning"
FILE_NAME = "data_check.json"
PLANS_KEY = "training_images"  # of the plans: what predictions are compared with; with them it gets into the model
_FACTS = ("orientations", "channels")
_PRINTED_WARNINGS = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        case: its name; "" where it concerns all of them.
        file: whose name begins the sentence that `cause` ends.
        cause: "holds NaN".
        cure: a sentence.
        severity: ERROR: the case cannot be used; WARNING: it can, and should be looked at.
    """

    case: str
    file: str
    cause: str
    cure: str
    severity: str = ERROR

    def __str__(self) -> str:
        return f"{self.file} {self.cause}. {self.cure}"


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Those that cannot be worked with."""
    return [problem for problem in problems if problem.severity == ERROR]


def bad_cases(problems: Iterable[Problem]) -> list[str]:
    """The cases that cannot be used, each once, in the order of the problems."""
    return list(dict.fromkeys(problem.case for problem in errors(problems)))


def lines(problems: Iterable[Problem]) -> list[str]:
    """A line each."""
    return [" ".join(str(problem).split()) for problem in problems]


def print_warnings(problems: Sequence[Problem], record: Path) -> None:
    """The first warnings; the others are in the record."""
    found = [problem for problem in problems if problem.severity == WARNING]
    for line in lines(found[:_PRINTED_WARNINGS]):
        print("warning:", line)
    if len(found) > _PRINTED_WARNINGS:
        print(f"warning: {len(found) - _PRINTED_WARNINGS} more are in {record}")


def write_record(file: Path, problems: Sequence[Problem], left_out: Sequence[str],
                 facts: dict[str, Any] | None = None) -> None:
    """Warnings, and the cases left out with the reason, as JSON; beside them what else was found out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"left_out": sorted(left_out), "problems": [asdict(p) for p in problems],
                                 **(facts or {})}, indent=2))


def read_facts(folder: Path) -> dict[str, Any]:
    """What the check of a training set found out about its images (`compare.facts`); empty where it was not checked.

    Args:
        folder: nnUNet_preprocessed/DATASET.
    """
    file = folder / FILE_NAME
    content = read_json(file) if file.is_file() else {}
    return {name: content[name] for name in _FACTS if name in content}
