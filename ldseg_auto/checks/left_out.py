"""Bad cases are left out of everything that nnU-Net does with a data set.

nnU-Net reads nnUNet_raw/DATASET/dataset.json anew at every step. It may list the files of each case itself, under
"dataset", and then only those are looked at. For the time of planning and preprocessing nnUNet_raw is therefore a
temporary folder that holds such a dataset.json and nothing else; the user's folder is left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ldseg_auto.checks.training import Checked
from ldseg_auto.folders import PREPROCESSED, RAW, folder_of, read_json, write_text

_SPLITS = "splits_final.json"


@contextmanager
def only_good_cases(name: str, checked: Checked) -> Iterator[None]:
    """Inside the block nnU-Net sees the cases that can be used, and nothing else. Not for several threads at once.

    Afterwards dataset.json in the preprocessed folder lists these cases, and splits_final.json there names no other.
    """
    if checked.counted_rightly:
        yield
        return
    raw, preprocessed = folder_of(RAW) / name, folder_of(PREPROCESSED) / name
    with TemporaryDirectory() as temporary:
        (Path(temporary) / name).mkdir()
        listed = {**checked.description, "dataset": _with_paths(checked.cases, os.path.abspath)}
        write_text(Path(temporary) / name / "dataset.json", json.dumps(listed, indent=4))
        for source, target in ((preprocessed, preprocessed), (raw, Path(temporary) / name)):
            if (source / _SPLITS).is_file():  # nnU-Net compares the two
                splits = _without(read_json(source / _SPLITS), checked.left_out)
                write_text(target / _SPLITS, json.dumps(splits, indent=4))
        before, os.environ[RAW] = os.environ[RAW], temporary
        try:
            yield
        finally:
            os.environ[RAW] = before
            if (preprocessed / "dataset.json").is_file():
                listed["dataset"] = _with_paths(listed["dataset"], partial(_below, raw.absolute()))
                write_text(preprocessed / "dataset.json", json.dumps(listed, indent=4))


def _without(splits: Any, left_out: Sequence[str]) -> list[dict[str, list[str]]]:
    return [{part: [case for case in cases if case not in left_out] for part, cases in fold.items()} for fold in splits]


def _with_paths(cases: dict[str, dict[str, Any]], change: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    return {case: {"images": [change(file) for file in files["images"]], "label": change(files["label"])}
            for case, files in cases.items()}


def _below(folder: Path, file: str) -> str:
    """As nnU-Net takes it from the raw folder, so that the folders may be moved."""
    return str(Path(file).relative_to(folder)) if Path(file).is_relative_to(folder) else file
