"""Folders of predictions and references as nnU-Net leaves them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

SPACING = (1.0, 1.0, 2.0)  # x, y, z
DESCRIPTION = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "lesion": 2}, "numTraining": 3,
               "file_ending": ".nii.gz"}
PLANS = {"image_reader_writer": "SimpleITKIO", "original_median_spacing_after_transp": [2.0, 1.0, 1.0]}


def _write_map(file: Path, labels: np.ndarray, spacing=SPACING, origin=None, direction=None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing[:labels.ndim])
    if origin is not None:
        image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(file))


def _write_json(file: Path, content: Mapping) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _cubes(organ=(2, 8), lesion=None, shape=(8, 12, 12)) -> np.ndarray:
    """z, y, x; `organ` and in it `lesion`, from and to along y and x."""
    labels = np.zeros(shape, np.uint8)
    for value, edges in ((1, organ), (2, lesion)):
        if edges is not None:
            labels[2:6, slice(*edges), slice(*edges)] = value
    return labels


@pytest.fixture
def cubes() -> Callable:
    return _cubes


@pytest.fixture
def write_map() -> Callable:
    return _write_map


@pytest.fixture
def write_json() -> Callable:
    return _write_json


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Three cases: in `a` all is right, in `b` the lesion is missed, in `c` neither has one; `other` predicts one
    there, and finds that of `b`."""
    maps = {"a": _cubes(lesion=(4, 6)), "b": _cubes(lesion=(4, 6)), "c": _cubes()}
    predicted = {"a": maps["a"], "b": _cubes(), "c": _cubes(organ=(2, 9))}
    others = {"a": maps["a"], "b": maps["b"], "c": _cubes(organ=(2, 9), lesion=(3, 5))}
    for name, content in (("references", maps), ("predictions", predicted), ("other", others)):
        for case, labels in content.items():
            _write_map(tmp_path / name / f"{case}.nii.gz", labels)
    for name in ("predictions", "other"):
        _write_json(tmp_path / name / "dataset.json", DESCRIPTION)
        _write_json(tmp_path / name / "plans.json", PLANS)
    return {name: tmp_path / name for name in ("references", "predictions", "other", "out")}
