"""Predictions and references of the same names: found, read by nnU-Net's readers, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.setting import Setting, is_flat
from ldseg_auto.headers import header_problem
from ldseg_auto.integrity import scan

_NAMED = 5  # files or values that a message names
_SPACING, _DIRECTION = 1e-3, 1e-3  # relative; of each cosine
_ORIGIN = 0.1  # of a voxel's shortest edge


@dataclass(frozen=True)
class Pair:
    """The files of one case."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class LabelMaps:
    """One case: integers of the same shape, 3D or of 2D images 2D; what is ignored is background in both."""

    prediction: np.ndarray
    reference: np.ndarray
    spacing_mm: tuple[float, ...]
    ignored_voxels: int


class UnusableError(Exception):
    """Why a case cannot be scored."""


def require_folders(predictions: Path, references: Path) -> None:
    """Raise unless these are two folders."""
    for folder, flag in ((predictions, "-i"), (references, "-r")):
        if not folder.is_dir():
            raise LDSegError(f"The folder {folder} does not exist.", f"Give a folder of label maps to {flag}.")
    if predictions.resolve() == references.resolve():
        raise LDSegError(f"Predictions and references are the same folder, {predictions}.",
                         "Give the predictions to -i and the true label maps to -r.")


def find_pairs(predictions: Path, references: Path, ending: str,
               chill: bool = False) -> tuple[list[Pair], dict[str, list[str]]]:
    """The cases of two folders.

    Args:
        ending: of the files; others are not looked at.
        chill: score what both folders have, and say what was left out.

    Returns:
        Pairs in the order of their names, and under `without_prediction` and `without_reference` the other cases.

    Raises:
        LDSegError: a folder has no such files, no name is in both, or without `chill` not all are.
    """
    predicted, true = _cases_in(predictions, ending), _cases_in(references, ending)
    common = sorted(predicted & true)
    left_out = {"without_prediction": sorted(true - predicted), "without_reference": sorted(predicted - true)}
    if not common:
        raise LDSegError(f"No file of {predictions} ({_named(sorted(predicted))}, ...) has the name of one of "
                         f"{references} ({_named(sorted(true))}, ...).",
                         f"A case's prediction and reference are both named CASE{ending}.")
    if any(left_out.values()) and not chill:
        lacking = [f"{text.replace('_', ' ')} ({len(cases)}): {', '.join(cases)}"
                   for text, cases in left_out.items() if cases]
        raise LDSegError(f"There are cases {'; '.join(lacking)}.",
                         "Add the files, or score the others alone with --chill.")
    return [Pair(case, predictions / f"{case}{ending}", references / f"{case}{ending}") for case in common], left_out


def problem_of(pair: Pair, setting: Setting) -> str | None:
    """What keeps a case from being scored."""
    try:
        read_pair(pair, setting)
    except UnusableError as problem:
        return f"{pair.case}: {problem}"
    return None


def read_pair(pair: Pair, setting: Setting) -> LabelMaps:
    """Read both files of a case.

    Raises:
        UnusableError: one cannot be read or holds what is no label, or the two differ in geometry.
    """
    prediction, described = _read(pair.prediction, setting)
    reference, described_reference = _read(pair.reference, setting)
    different = _difference(prediction.shape, described, reference.shape, described_reference)
    if different is not None:
        raise UnusableError(f"{pair.prediction} has another {different}")
    labels = {0, *(value for values in setting.groups.values() for value in values)}
    ignored = np.zeros(0, bool)
    allowed = labels if setting.ignore_label is None else {*labels, setting.ignore_label}
    maps = _as_labels(prediction, labels, pair.prediction), _as_labels(reference, allowed, pair.reference)
    if setting.ignore_label is not None:
        ignored = maps[1] == setting.ignore_label
        for labels_of_map in maps:
            labels_of_map[ignored] = 0
    spacing = tuple(float(s) for s in described_reference["spacing"])
    if is_flat(reference.shape, spacing):
        return LabelMaps(maps[0][0], maps[1][0], spacing[1:], int(ignored.sum()))
    return LabelMaps(maps[0], maps[1], spacing, int(ignored.sum()))


def _cases_in(folder: Path, ending: str) -> set[str]:
    cases = {path.name[:-len(ending)] for path in folder.iterdir() if path.name.endswith(ending) and path.is_file()}
    if not cases:
        raise LDSegError(f"The folder {folder} holds no {ending} files.",
                         f"Give a folder of label maps; {ending} is the file_ending in dataset.json.")
    return cases


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED])


def _read(file: Path, setting: Setting) -> tuple[np.ndarray, dict[str, Any]]:
    """The volume (z, y, x), 2D images with z of 1, and the reader's properties."""
    if not scan(file).whole:  # SimpleITK takes the missing end for background
        raise UnusableError(f"{file} is cut off or damaged")
    wrong = header_problem(file, setting.reader_class.__name__)
    if wrong is not None:
        raise UnusableError(f"{file} {wrong[0]}")
    try:
        volume, properties = setting.reader_class().read_seg(str(file))
    except Exception as error:  # noqa: BLE001, whatever a reader raises on a damaged file belongs in the list
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableError(f"{file} cannot be read ({reason})") from error
    if len(volume) != 1:
        raise UnusableError(f"{file} has {len(volume)} channels, a label map has one")
    return volume[0], properties


def _as_labels(volume: np.ndarray, allowed: set[int], file: Path) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        labels = volume.astype(np.uint16)
    known = np.zeros(2 ** 16, bool)
    known[list(allowed)] = True
    wrong = (labels != volume) | ~known[labels]
    if wrong.any():
        values = np.unique(volume[wrong])
        raise UnusableError(f"{file} holds {', '.join(f'{v:g}' for v in values[:_NAMED])}"
                            f"{', ...' * (len(values) > _NAMED)}; its labels are {sorted(allowed)}")
    return labels


def _difference(shape: tuple[int, ...], described: dict[str, Any], shape_wanted: tuple[int, ...],
                described_wanted: dict[str, Any]) -> str | None:
    """What is different in the geometry of a prediction and of its reference."""
    if shape != shape_wanted:
        return f"size, {shape}, than its reference, {shape_wanted}"
    (spacing, origin, direction), wanted = _geometry(described), _geometry(described_wanted)
    for name, value, other, tolerance in (("spacing", spacing, wanted[0], _SPACING * wanted[0]),
                                          ("origin", origin, wanted[1], _ORIGIN * wanted[0].min()),
                                          ("direction", direction, wanted[2], _DIRECTION)):
        if value.shape != other.shape or (abs(value - other) > tolerance).any():
            return f"{name}, {_shown(value)}, than its reference, {_shown(other)}"
    return None


def _geometry(properties: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spacing and origin in mm, direction cosines; the latter two are empty in formats that have none."""
    spacing, nothing = np.asarray(properties["spacing"], float), np.zeros(0)
    if "sitk_stuff" in properties:
        image = properties["sitk_stuff"]
        return spacing, np.asarray(image["origin"]), np.asarray(image["direction"])
    if "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        affine = np.asarray(affines.get("reoriented_affine", affines["original_affine"]))
        axes = affine[:3, :3]
        return spacing, affine[:3, 3], (axes / np.linalg.norm(axes, axis=0)).ravel()
    return spacing, nothing, nothing


def _shown(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
