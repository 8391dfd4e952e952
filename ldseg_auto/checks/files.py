"""Which files belong to which case, and what their names show to be wrong. Pure: nothing is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldseg_auto.checks.problem import Problem
from ldseg_auto.errors import LDSegError

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".tif", ".tiff", ".jpg",
                 ".jpeg", ".dcm")
_MACOS = "._"  # begins the names of files that macOS writes beside others on foreign drives


class Case(NamedTuple):
    """The files of a case; without a label where none is asked for."""

    name: str
    images: tuple[str, ...]
    label: str | None = None


def require_input_folder(folder: Path) -> None:
    """Raise unless the folder of images exists."""
    if not folder.is_dir():
        raise LDSegError(f"The input folder {folder} does not exist.", "Give a folder of images to -i.")


def cases_in(folder: Path, ending: str) -> dict[str, list[Path]]:
    """The images of a folder by case, in the order of their channels.

    A file that is no CASE_0000.ENDING, or that has another image's ending and whose case is not there otherwise, is
    listed as a case of its own under its full name, so that `name_problem` finds it.
    """
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(IMAGE_ENDINGS + (ending.lower(),)))
    found: dict[str, list[Path]] = {}
    for path in files:
        if path.name.endswith(ending):
            hidden = path.name.startswith(_MACOS)
            found.setdefault(path.name if hidden else _case_of(path.name, ending) or path.name, []).append(path)
    for path in files:
        other = next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), ending)
        name = path.name[:-len(other)] + other
        if not path.name.endswith(ending) and (case := _case_of(name, other)) and case not in found:
            found[path.name] = [path]
    return dict(sorted(found.items()))


def training_cases(folder: Path, description: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The cases of a raw data set as nnU-Net lists them, identifier -> {"images": files, "label": file}, and what their
    names show to be wrong.

    Args:
        folder: nnUNet_raw/DATASET.
        description: its dataset.json; where it lists the files itself (under "dataset"), those are taken.
    """
    ending = description["file_ending"]
    if "dataset" in description:
        cases = {name: {"images": [_absolute(folder, file) for file in files["images"]],
                        "label": _absolute(folder, files["label"])} for name, files in description["dataset"].items()}
        return cases, [*_listed_problems(cases, ending), *_label_problems(cases, {}, ending)]
    images = cases_in(folder / "imagesTr", ending)
    cases = {name: {"images": [str(file) for file in files], "label": str(folder / "labelsTr" / f"{name}{ending}")}
             for name, files in images.items()}
    problems = [problem for name, files in images.items() if (problem := name_problem(name, files, ending))]
    labels = {path.name.removesuffix(ending): path for path in sorted((folder / "labelsTr").iterdir())
              if path.name.endswith(ending) and not path.name.startswith(_MACOS)}
    named_well = {name: files for name, files in cases.items() if not is_stray(name)}
    return cases, problems + _label_problems(named_well, labels, ending)


def name_problem(case: str, files: Sequence[Path], ending: str) -> Problem | None:
    """What is wrong with the names of an image's files: the ending, no channel number, numbers with gaps."""
    for file in files:
        if file.name.startswith(_MACOS):
            return Problem(case, str(file), "is no image: macOS puts such files beside the real ones",
                           "Remove the files whose names begin with '._'.")
        if not file.name.endswith(ending):
            return Problem(case, str(file), f"does not end in {ending} as dataset.json says",
                           f"Rename it: {file.name[:-len(ending)]}{ending}." if file.name.lower().endswith(ending) else
                           f"Convert it to {ending}, as all others; renaming does not convert.")
        if _case_of(file.name, ending) is None:
            return Problem(case, str(file), "has no channel number",
                           f"Rename it to CASE_0000{ending}, the next channel to CASE_0001{ending}, ...")
    numbers = [int(file.name.removesuffix(ending)[-4:]) for file in files]
    if numbers != list(range(len(files))):
        return Problem(case, str(files[0]), f"and its other channels are numbered {_numbered(numbers)}",
                       "Number the channels of each case from _0000 on, without a gap; put there what is missing.")
    return None


def is_stray(case: str) -> bool:
    """Whether `cases_in` has listed a single file, with a wrong name, as a case."""
    return case.lower().endswith(IMAGE_ENDINGS)


def _numbered(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:04d}" for number in numbers)


def _case_of(name: str, ending: str) -> str | None:
    found = re.fullmatch(r"(.+)_\d{4}", name.removesuffix(ending))
    return found[1] if found else None


def _absolute(folder: Path, file: str) -> str:
    return os.path.abspath(folder / os.path.expandvars(file))


def _listed_problems(cases: Mapping[str, Mapping[str, Any]], ending: str) -> list[Problem]:
    """Of files that dataset.json names; that they exist is found when they are opened."""
    return [Problem(name, file, f"does not end in {ending} as dataset.json says", f"List files that end in {ending}.")
            for name, files in cases.items() for file in (*files["images"], files["label"])
            if not file.endswith(ending)]


def _label_problems(cases: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Path], ending: str) -> list[Problem]:
    """Images without a label, and labels without an image, which nnU-Net would leave out without a word."""
    problems = []
    for name, files in cases.items():
        label = Path(files["label"])
        if not label.exists():
            others = [other.name for other in sorted(label.parent.glob(f"{name}.*")) if other.name.endswith(
                IMAGE_ENDINGS)]
            problems.append(Problem(name, str(label), f"is missing{f' (there is {others[0]})' if others else ''}",
                                    f"Put the label of the case there, as a {ending} file, or remove its images."))
    return problems + [Problem(name, str(path), "has no image", "Put its image into imagesTr, or remove the label.")
                       for name, path in labels.items() if name not in cases]
