"""The split into folds: nnU-Net's splits_final.json, checked, and made so that no patient is torn apart."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import read_json, write_text

FILE_NAME = "splits_final.json"
GROUPS_NAME = "case_groups.json"
_FOLDS = 5  # nnU-Net's number and seed
_SEED = 12345

Split = Mapping[str, Sequence[str]]


def prepare_splits(folder: Path, cases: Sequence[str], group_by: str | None = None,
                   allow_unused_cases: bool = False) -> list[Split]:
    """The folds of a preprocessed data set: those in splits_final.json, or new ones, written there.

    Args:
        folder: nnUNet_preprocessed/DATASET; gets splits_final.json and, with `group_by`, case_groups.json, which later
            calls check the split against.
        cases: names of all preprocessed cases.
        group_by: a CSV file with the columns case and patient; the cases of one patient stay in one part of each fold.
        allow_unused_cases: a fold may leave cases out.

    Raises:
        LDSegError: the split holds unknown cases, a case twice or in both parts of a fold, tears a patient apart or
            leaves cases out; or the groups do not fit the cases.
    """
    groups = read_groups(Path(group_by), cases) if group_by is not None else _groups_of(folder, cases)
    file = folder / FILE_NAME
    if file.is_file():
        splits = read_splits(file)
        found = problems(splits, cases, groups, allow_unused_cases)
        if found:
            raise LDSegError(f"The split in {file} cannot be used: {'; '.join(found)}.",
                             "Correct the file; or, where no fold has been trained, move it away: a new split is made.")
    elif len(cases) < _FOLDS or len(set(groups.values()) if groups else cases) < _FOLDS:
        return []  # only fold all can be trained
    else:
        splits = make_splits(cases, groups)
        write_text(file, json.dumps(splits, indent=4))
    if group_by is not None:
        write_text(folder / GROUPS_NAME, json.dumps(groups, indent=4))
    return splits


def make_splits(cases: Sequence[str], groups: Mapping[str, str] | None = None) -> list[Split]:
    """Five folds: nnU-Net's own where there are no groups, or else folds of whole groups and of similar size."""
    import numpy as np
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from sklearn.model_selection import GroupKFold

    ordered = sorted(cases)
    if not groups:
        return [{"train": list(map(str, fold["train"])), "val": list(map(str, fold["val"]))}
                for fold in generate_crossval_split(ordered, seed=_SEED, n_splits=_FOLDS)]
    parts = GroupKFold(_FOLDS).split(ordered, groups=[groups[case] for case in ordered])
    return [{"train": list(map(str, np.array(ordered)[train])), "val": list(map(str, np.array(ordered)[val]))}
            for train, val in parts]


def read_groups(file: Path, cases: Iterable[str]) -> dict[str, str]:
    """case -> patient, from a CSV file with these two columns.

    Raises:
        LDSegError: no such file or columns, cases without a patient or with two.
    """
    if not file.is_file():
        raise LDSegError(f"There is no file {file}.", "Give a CSV file with the columns case,patient to --group_by.")
    pairs = _pairs(file)
    groups = {case: patient for case, patient in pairs if case and patient}
    wrong = {"have no patient": sorted(set(cases) - set(groups)),
             "have two patients": sorted({case for case, patient in pairs if groups.get(case, patient) != patient})}
    found = [f"{named(names)} {what}" for what, names in wrong.items() if names]
    if found:
        raise LDSegError(f"{file}: {'; '.join(found)}.", "Give every training case one line: case,patient")
    return {case: groups[case] for case in sorted(cases)}


def _pairs(file: Path) -> list[tuple[str, str]]:
    """The two columns, row by row."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a byte order mark
            read = csv.reader(lines, skipinitialspace=True)
            head, *rows = [[cell.strip() for cell in row] for row in read] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LDSegError(f"{file} is no CSV file in UTF-8 ({error}).", "Save it as CSV UTF-8.") from error
    if not {"case", "patient"} <= set(head):
        raise LDSegError(f"{file} has the columns {', '.join(head) or '(none)'}.",
                         "Its first line must name the columns case and patient, separated by a comma: case,patient")
    places = head.index("case"), head.index("patient")
    case, patient = ([row[place] if place < len(row) else "" for row in rows] for place in places)
    return list(zip(case, patient, strict=True))


def problems(splits: Sequence[Split], cases: Iterable[str], groups: Mapping[str, str] | None = None,
             allow_unused_cases: bool = False) -> list[str]:
    """What is wrong with a split, a phrase each; nothing where it can be used."""
    known, found = set(cases), []
    for number, fold in enumerate(splits):
        train, val = fold["train"], fold["val"]
        twice = sorted(case for part in (train, val) for case, count in Counter(part).items() if count > 1)
        torn = {groups[case] for case in train if case in groups} & {groups[case] for case in val if case in groups} \
            if groups else set()
        wrong = {"is in both parts": set(train) & set(val), "is not preprocessed": (set(train) | set(val)) - known,
                 "is named twice": twice, "(patient) is in both parts": torn,
                 "is in neither part (--allow_unused_cases accepts that)":
                     set() if allow_unused_cases else known - set(train) - set(val)}
        found += [f"fold {number}: {named(sorted(names))} {what}" for what, names in wrong.items() if names]
        found += [f"fold {number}: {part} is empty" for part in ("train", "val") if not fold[part]]
    return found


def read_splits(file: Path) -> list[Split]:
    """The folds of a splits_final.json.

    Raises:
        LDSegError: it is none.
    """
    splits = read_json(file)
    well_formed = isinstance(splits, list) and splits and all(
        isinstance(fold, dict) and all(isinstance(fold.get(part), list) for part in ("train", "val"))
        and all(isinstance(case, str) for part in ("train", "val") for case in fold[part]) for fold in splits)
    if not well_formed:
        raise LDSegError(f"{file} is not a split.",
                         'It must hold a list of folds, each {"train": [CASE, ...], "val": [CASE, ...]}.')
    return splits


def _groups_of(folder: Path, cases: Iterable[str]) -> dict[str, str] | None:
    """The groups of an earlier call, which must know every case: of one added since the patient could be torn apart."""
    file = folder / GROUPS_NAME
    if not file.is_file():
        return None
    groups = read_json(file)
    unknown = sorted(set(cases) - set(groups)) if isinstance(groups, dict) else ["every case"]
    if unknown:
        raise LDSegError(f"{file} names no patient of {named(unknown)}.",
                         "Give the patients of all cases again: --group_by CSV (case,patient); or remove the file.")
    return groups
