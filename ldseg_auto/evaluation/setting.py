"""How label maps are to be read and compared: from dataset.json, and from the plans where there are any."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import DEFAULT_PLANS, PREPROCESSED, RAW, find_dataset, read_json
from ldseg_auto.sharing.trusted import require_trusted_description, require_trusted_reader

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

DEFAULT_TOLERANCE_MM = 1.0
_FLAT = 999  # nnU-Net's spacing for the axis that 2D images do not have, or this many times the largest of the others
_SPACING_KEY = "original_median_spacing_after_transp"
Tolerance = float | Mapping[str | None, float] | None


@dataclass(frozen=True)
class Setting:
    """What all cases have in common.

    `groups` are the classes or regions and their label values, from the file `dataset_json`; `tolerance_mm` is the
    NSD's of each, `tolerance_from` says where it comes from.
    """

    dataset_json: Path
    groups: dict[str, tuple[int, ...]]
    ignore_label: int | None
    file_ending: str
    reader_class: type[BaseReaderWriter]
    tolerance_mm: dict[str, float]
    tolerance_from: str


def find_setting(predictions: Path, references: Path, dataset: str | None = None, dataset_json: str | None = None,
                 plans_json: str | None = None, tolerance_mm: Tolerance = None) -> Setting:
    """The setting of a folder of predictions.

    Args:
        predictions: the folder in or above which nnU-Net wrote dataset.json and plans.json.
        references: holds the file with which the reader is tried where no plans name it.
        dataset: name or ID of the data set, instead.
        dataset_json, plans_json: files, instead.
        tolerance_mm: of the NSD, for all or by the name of a class (None: all others). By default the largest median
            spacing of the data set, which its plans know: a surface is no better known than to a voxel, whichever
            way it faces. 1 mm without plans.

    Raises:
        LDSegError: no dataset.json was found, or it or the tolerance does not fit.
    """
    beside = [predictions, *list(predictions.resolve().parents)[:2]]  # or MODEL/fold_X/validation
    description_file, plans_file = _find_files(beside, dataset, dataset_json, plans_json)
    description = read_json(description_file)
    _require_keys(description, ("labels", "file_ending"), description_file)
    plans = None if plans_file is None else read_json(plans_file)
    if plans is not None:
        _require_keys(plans, ("image_reader_writer",), plans_file)
    groups, ignore_label = _labels(description, description_file)
    tolerances, source = _tolerances(groups, tolerance_mm, plans, plans_file)
    ending = description["file_ending"]
    reader_class = _reader(plans, description, references, ending)
    return Setting(description_file, groups, ignore_label, ending, reader_class, tolerances, source)


def is_flat(shape: Sequence[int], spacing_mm: Sequence[float]) -> bool:
    """Whether nnU-Net's reader gave a 2D image a first axis, and a spacing that means nothing."""
    return len(shape) == 3 and shape[0] == 1 and is_placeholder(spacing_mm)


def is_placeholder(spacing_mm: Sequence[float]) -> bool:
    """Whether this is what nnU-Net writes for pictures, which have no mm."""
    first, *others = spacing_mm
    return bool(np.isclose(first, _FLAT) or np.isclose(first, _FLAT * max(others)))


def _find_files(beside: Sequence[Path], dataset: str | None, dataset_json: str | None,
                plans_json: str | None) -> tuple[Path, Path | None]:
    descriptions = [folder / "dataset.json" for folder in beside]
    plans = [folder / "plans.json" for folder in beside]
    if dataset is not None:
        name = find_dataset(dataset, [RAW, PREPROCESSED])
        folders = [Path(os.environ[variable]) / name for variable in (RAW, PREPROCESSED) if os.environ.get(variable)]
        descriptions = [folder / "dataset.json" for folder in folders]
        plans = [*(folder / f"{DEFAULT_PLANS}.json" for folder in folders), *plans]
    if dataset_json is not None:
        descriptions = [_required(dataset_json, "-djfile")]
    description = next((file for file in descriptions if file.is_file()), None)
    if description is None:
        raise LDSegError(f"There is no dataset.json in {descriptions[0].parent}.",
                         "Name the data set with -d, or its dataset.json with -djfile.")
    if plans_json is not None:
        return description, _required(plans_json, "-pfile")
    return description, next((file for file in plans if file.is_file()), None)


def _required(file: str, flag: str) -> Path:
    if not Path(file).is_file():
        raise LDSegError(f"There is no file {file}.", f"Give a JSON file to {flag}.")
    return Path(file)


def _require_keys(content: Any, keys: Sequence[str], file: Path | None) -> None:
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise LDSegError(f"{file} lacks {', '.join(missing)}.", "Give a file of nnU-Net's format.")


def _labels(description: dict[str, Any], file: Path) -> tuple[dict[str, tuple[int, ...]], int | None]:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from ldseg_auto.fingerprint import label_groups

    try:
        manager = LabelManager(description["labels"], description.get("regions_class_order"))
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError) as error:
        raise LDSegError(f"nnU-Net refuses the labels of {file}: {error}.", "Correct them.") from error
    return label_groups(manager.ignore_label, description["labels"]), manager.ignore_label


def _reader(plans: dict[str, Any] | None, description: dict[str, Any], references: Path,
            ending: str) -> type[BaseReaderWriter]:
    from nnunetv2.imageio import reader_writer_registry as registry

    require_trusted_description(description)
    if plans is not None:
        require_trusted_reader(plans["image_reader_writer"], "image_reader_writer in plans.json")
    try:
        if plans is not None:
            return registry.recursive_find_reader_writer_by_name(plans["image_reader_writer"])
        example = next((str(file) for file in sorted(references.glob(f"*{ending}"))), None)
        return registry.determine_reader_writer_from_dataset_json(description, example, verbose=False)
    except RuntimeError as error:
        raise LDSegError(f"nnU-Net has no reader for these label maps: {error}",
                         "Look at file_ending in dataset.json, and whether the first reference can be read.") from error


def _tolerances(groups: Mapping[str, Any], given: Tolerance, plans: dict[str, Any] | None,
                plans_file: Path | None) -> tuple[dict[str, float], str]:
    """The tolerance of each class, and where it comes from."""
    by_name: dict[str | None, float] = {}
    if given is not None:
        by_name = {**given} if isinstance(given, Mapping) else {None: given}
    unknown = [name for name in by_name if name is not None and name not in groups]
    if unknown:
        raise LDSegError(f"The data set has no class {', '.join(map(str, unknown))}.",
                         f"Give --tolerance one number for all, or CLASS=MM with one of: {', '.join(groups)}.")
    if None in by_name or not set(groups) - set(by_name):
        rest, source = by_name.get(None, 0.0), "as given"
    else:
        rest, source = _default_tolerance(plans, plans_file)
        source = f"as given; of the others: {source}" if by_name else source
    return {name: float(by_name.get(name, rest)) for name in groups}, source


def _default_tolerance(plans: dict[str, Any] | None, plans_file: Path | None) -> tuple[float, str]:
    spacing = (plans or {}).get(_SPACING_KEY)
    if spacing is None:
        return DEFAULT_TOLERANCE_MM, "no plans tell the data set's spacing"
    real = spacing[1:] if is_placeholder(spacing) else spacing
    return float(max(real)), f"largest median spacing of the data set, from {plans_file}"
