"""What `ldseg_find_best_configuration` chose, in `ldseg_inference.json`: read by `ldseg_predict`, sent with a model.

Pure: no nnU-Net import. A model's folder holds the choice for that configuration alone; the data set's results folder
names the configuration, or the pair of them, that is best, with what is done to the mean of the pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import read_json, write_text

FILE_NAME = "ldseg_inference.json"
FORMAT_KEY, FORMAT = "ldseg_inference_format", 2  # 1: without expected_dice_lines
CHOSEN = "crossval_chosen"  # CHOSEN_TRAINER__PLANS: what the best choice gives on all cross-validation cases
Structure = int | tuple[int, ...]  # a label, or the labels of a region


@dataclass(frozen=True)
class Sampler:
    """How a model is sampled."""

    samples: int
    steps: int
    eta: float
    mirroring: bool

    def __post_init__(self) -> None:
        if not (_is(int, self.samples) and self.samples >= 1 and _is(int, self.steps) and self.steps >= 1
                and _is((int, float), self.eta) and 0 <= self.eta <= 1 and isinstance(self.mirroring, bool)):
            raise ValueError(f"not a sampler: {asdict(self)}")

    def __str__(self) -> str:
        mirrors = "mirroring" if self.mirroring else "no mirroring"
        return f"{self.samples} x {self.steps} (samples x steps), eta {self.eta:g}, {mirrors}"


@dataclass(frozen=True)
class Finish:
    """What is done to mean probabilities and to their segmentation; see `inference.export.ExportOptions`."""

    temperature: float = 1.0
    largest_component: tuple[Structure, ...] = ()
    interval_scales: tuple[float, ...] = ()
    expected_dice_lines: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        labels = [label for structure in self.largest_component
                  for label in (structure if isinstance(structure, tuple) else (structure,))]
        if not (_is_finite(self.temperature) and self.temperature > 0
                and all(_is_finite(scale) and scale >= 0 for scale in self.interval_scales)
                and all(_is_finite(offset) and _is_finite(slope) and slope >= 0
                        for offset, slope in self.expected_dice_lines)
                and all(_is(int, label) and label > 0 for label in labels) and () not in self.largest_component):
            raise ValueError(f"not a way to finish a prediction: {asdict(self)}")


@dataclass(frozen=True)
class Choice:
    """How one configuration is predicted."""

    sampler: Sampler
    finish: Finish


@dataclass(frozen=True)
class Best:
    """Which configurations are predicted and averaged, and what is done to their mean."""

    configurations: tuple[str, ...]
    finish: Finish


def load_choice(model: Path) -> Choice | None:
    """A model's choice; None where none was made.

    Raises:
        LDSegError: the file is damaged, of a newer version, or of a model with other classes.
    """
    content = _read(model / FILE_NAME)
    if content is None:
        return None
    with _Damaged(model / FILE_NAME):
        choice = Choice(Sampler(**_known(Sampler, content["sampler"])), _finish(content["finish"]))
        _require_classes_of(model, choice.finish)
    return choice


def load_best(results: Path, trainer_name: str, plans_name: str) -> Best | None:
    """The best of a data set's configurations, of this trainer and these plans; None where none was chosen.

    Raises:
        LDSegError: the file is damaged, of a newer version, or of models with other classes.
    """
    content = _read(results / FILE_NAME)
    entry = None if content is None else content.get(f"{trainer_name}__{plans_name}")
    if entry is None:
        return None
    with _Damaged(results / FILE_NAME):
        configurations = entry["configurations"]
        if not isinstance(configurations, list) or not configurations or not all(
                isinstance(name, str) for name in configurations):
            raise ValueError(f"not configurations: {configurations}")
        finish = _finish(entry["finish"])
        for name in configurations:
            _require_classes_of(results / f"{trainer_name}__{plans_name}__{name}", finish)
        return Best(tuple(configurations), finish)


def save_choice(model: Path, choice: Choice, evidence: Mapping[str, Any]) -> None:
    """Write a model's choice with the figures that led to it."""
    content = {FORMAT_KEY: FORMAT, **asdict(choice), "evidence": without_nan(evidence)}
    write_text(model / FILE_NAME, json.dumps(content, indent=2))


def save_best(results: Path, trainer_name: str, plans_name: str, best: Best, evidence: Mapping[str, Any]) -> None:
    """Write the best configurations beside those of other trainers and plans."""
    content = _read(results / FILE_NAME) or {}
    content |= {FORMAT_KEY: FORMAT,
                f"{trainer_name}__{plans_name}": {**asdict(best), "evidence": without_nan(evidence)}}
    write_text(results / FILE_NAME, json.dumps(content, indent=2))


class _Damaged:
    """What goes wrong inside is the file's fault."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, AttributeError)):
            raise LDSegError(f"{self.file} is damaged ({type(error).__name__}: {error}).",
                             "Choose again: ldseg_find_best_configuration DATASET; or remove the file.") from error


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    content = read_json(file)
    number = content.get(FORMAT_KEY) if isinstance(content, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number > FORMAT:
        raise LDSegError(f"{file} has format {number}, this version reads up to {FORMAT}.",
                         "Install a newer ldseg_auto, or remove the file and choose again.")
    return content


def _finish(content: Mapping[str, Any]) -> Finish:
    values = _known(Finish, {"expected_dice_lines": []} | dict(content))
    structures = tuple(tuple(s) if isinstance(s, list) else s for s in values["largest_component"])
    return Finish(values["temperature"], structures, tuple(values["interval_scales"]),
                  tuple((offset, slope) for offset, slope in values["expected_dice_lines"]))


def _require_classes_of(model: Path, finish: Finish) -> None:
    """Raise ValueError where what was fitted is not of the classes of the model, if its dataset.json is there."""
    file = model / "dataset.json"
    for what, fitted in (("intervals", finish.interval_scales), ("lines", finish.expected_dice_lines)):
        if fitted and file.is_file():
            classes = [name for name in read_json(file)["labels"] if name not in ("background", "ignore")]
            if len(classes) != len(fitted):
                raise ValueError(f"{len(fitted)} {what} of {len(classes)} classes")


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names: Sequence[str] = [f.name for f in fields(kind)]
    if set(content) != set(names):
        raise ValueError(f"keys {sorted(content)}, expected {sorted(names)}")
    return dict(content)


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null takes its place."""
    if isinstance(value, Mapping):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def _is_finite(value: Any) -> bool:
    return _is((int, float), value) and isfinite(value)


def _is(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
