"""Many cases in parallel, each in a process that may die without harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

from ldseg_auto.checks import apart
from ldseg_auto.checks.case import Report, Rules, check_case
from ldseg_auto.checks.files import Case
from ldseg_auto.checks.problem import Problem
from ldseg_auto.errors import LDSegError


def check_cases(cases: Sequence[Case], rules: Rules, processes: int, progress_bar: bool = True) -> dict[str, Report]:
    """A report on each case. Where several readers could read the files, all are read by the one that nnU-Net will
    choose: the first that can read the first case."""
    reports = _run(cases, rules, processes, progress_bar)
    chosen = next((report.reader for report in reports.values() if report.reader), rules.readers[0])
    others = [case for case in cases if reports[case.name].reader not in ("", chosen)]
    if others:
        reports |= _run(others, rules._replace(readers=(chosen,)), processes, progress_bar)
    return reports


def _run(cases: Sequence[Case], rules: Rules, processes: int, progress_bar: bool) -> dict[str, Report]:
    results = apart.run_apart(partial(check_case, rules=rules), cases, min(processes, len(cases)), "Checking files",
                              progress_bar)
    return {case.name: result if isinstance(result, Report) else Report([Problem(
        case.name, case.images[0], result.how, "Look at the files of this case; if they are good, there was too little "
        "memory: use fewer processes.")]) for case, result in zip(cases, results, strict=True)}


def readers_of(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of nnU-Net's readers that may read the files of a data set, in the order in which it tries them.

    Raises:
        LDSegError: dataset.json names a reader that does not exist, or an ending that none of them reads.
    """
    wanted = description.get("overwrite_image_reader_writer", "None")
    if wanted != "None":
        try:
            return (recursive_find_reader_writer_by_name(wanted).__name__,)
        except (RuntimeError, TypeError, AttributeError):
            raise LDSegError(f"nnU-Net has no reader {wanted!r}, which dataset.json asks for "
                             "(overwrite_image_reader_writer).", f"Take it out, or choose from: {_names()}.") from None
    ending = description["file_ending"]
    readers = tuple(r.__name__ for r in LIST_OF_IO_CLASSES if ending.lower() in r.supported_file_endings)
    if not readers:
        known = dict.fromkeys(e for reader in LIST_OF_IO_CLASSES for e in reader.supported_file_endings)
        raise LDSegError(f"nnU-Net reads no {ending} files.", f"Convert them to one of: {' '.join(known)}.")
    return readers


def _names() -> str:
    return ", ".join(reader.__name__ for reader in LIST_OF_IO_CLASSES)
