"""What is fitted to predictions of cross-validation cases: temperature, components, intervals, expected Dice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldseg_auto.evaluation.calibration import (
    BINS,
    adaptive_calibration_error,
    area_under_risk_coverage,
    confidence_and_correct,
    error_detection_auroc,
    expected_calibration_error,
    fit_line,
    fit_temperature,
    foreground_box,
    interval_scale,
    reliability_bins,
)
from ldseg_auto.evaluation.metrics import overlap
from ldseg_auto.folders import PREPROCESSED, folder_of
from ldseg_auto.inference.choice import Finish, Structure
from ldseg_auto.inference.export import at_temperature, keep_largest_components
from ldseg_auto.inference.uncertainty import FOLDER, class_names, expected_dice, voxel_size_of
from ldseg_auto.sharing.opening import read_model

_VOXELS_PER_CASE = 20_000  # drawn for the temperature and for the quality of confidences
_HALVES = 20  # random halves, one to fit and one to measure coverage


@dataclass(frozen=True)
class Case:
    """A prediction with its truth, in the image's geometry; its probabilities are read when they are asked for.

    Args:
        file: of the probabilities.
        segmentation, truth: (z, y, x).
        voxel_size: see `uncertainty.voxel_size_of`.
        figures: what `uncertainty.case_figures` found, by class; empty where it was not written.
    """

    file: Path
    segmentation: np.ndarray
    truth: np.ndarray
    voxel_size: float
    figures: dict[str, Any]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(K, z, y, x), float32."""
        with np.load(self.file) as stored:
            return stored["probabilities"].astype(np.float32)


class Cases:
    """Predictions of cross-validation cases, read one by one.

    Args:
        folder: with CASE.npz, CASE.ENDING and uncertainty/CASE.json of each.
        names: of the cases.
        model: a folder with the plans.json and dataset.json they were predicted with.
    """

    def __init__(self, folder: Path, names: Sequence[str], model: Path):
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        content, description = read_model(model)
        plans = PlansManager(content)
        self.labels = plans.get_label_manager(description)
        self._reader, self._ending = plans.image_reader_writer_class(), description["file_ending"]
        self._truth = folder_of(PREPROCESSED) / plans.dataset_name / "gt_segmentations"
        self._folder, self.names, self.classes = folder, names, class_names(description)
        self.structures = structures_of(self.labels)

    def __iter__(self) -> Iterator[Case]:
        return (self.read(self._folder / name) for name in self.names)

    def read(self, prediction: Path) -> Case:
        """One case; its files are `prediction` with their endings."""
        segmentation, _ = self._reader.read_seg(f"{prediction}{self._ending}")
        truth, properties = self._reader.read_seg(str(self._truth / f"{prediction.name}{self._ending}"))
        file = prediction.parent / FOLDER / f"{prediction.name}.json"
        figures = json.loads(file.read_text())["classes"] if file.is_file() else {}
        return Case(Path(f"{prediction}.npz"), segmentation[0], truth[0], voxel_size_of(properties)[0], figures)

    def dice(self, segmentation: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Of each class or region; NaN where neither holds it."""
        return np.array([self.dice_of(structure, segmentation, truth) for structure in self.structures])

    def dice_of(self, structure: Structure, segmentation: np.ndarray, truth: np.ndarray) -> float:
        """Of one class or region."""
        known = truth != self.labels.ignore_label
        predicted, true = np.isin(segmentation, structure) & known, np.isin(truth, structure) & known
        return overlap(predicted, true) if predicted.any() or true.any() else float("nan")

    def mean_dice(self, parts: Sequence[Case]) -> float:
        """Over the classes that occur, of the mean of several predictions of one case."""
        mean = np.mean([part.probabilities for part in parts], axis=0)
        dice = self.dice(np.asarray(self.labels.convert_probabilities_to_segmentation(mean)), parts[0].truth)
        return float(np.nanmean(dice)) if not np.isnan(dice).all() else float("nan")


def structures_of(labels: Any) -> list[Structure]:
    """Foreground classes or regions of nnU-Net's label manager, whose labels are numpy's integers, in Python's own."""
    found = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return [tuple(map(int, each)) if isinstance(each, tuple) else int(each) for each in found]


def fit(folder: Path, names: Sequence[str], model: Path) -> tuple[Finish, dict[str, Any]]:
    """Fit temperature, removal of components, intervals and the line of expected Dice to predictions of cases that the
    models did not see.

    Components of a class are removed where that raises its mean Dice over all cases.

    Args:
        folder, names, model: see Cases.

    Returns:
        what to do to predictions; and how good they are: Dice as predicted and with components removed, calibration
        before and after the temperature and lines, coverage of the intervals on cases they were not fitted to.
    """
    cases = Cases(folder, names, model)
    dice, cleaned = [], []
    for case in cases:
        dice.append(cases.dice(case.segmentation, case.truth))
        cleaned.append([cases.dice_of(structure, keep_largest_components(case.segmentation, (structure,)), case.truth)
                        for structure in cases.structures])
    temperature = temperature_of(cases)
    gain = np.nanmean(np.nan_to_num(cleaned) - np.nan_to_num(dice), axis=0)
    largest = tuple(s for s, g in zip(cases.structures, gain, strict=True) if g > 0)
    volume, unit, true = volumes_of(cases)
    whole = ~np.isnan(true).any(1)
    errors, unit = (volume - true)[whole], unit[whole]
    scales = [interval_scale(errors[:, k], unit[:, k]) for k in range(volume.shape[1])]
    known_scales = tuple(scale for scale in scales if scale is not None)
    lines = lines_of(cases, temperature)
    finish = Finish(temperature, largest, known_scales if len(known_scales) == len(scales) else (), lines)
    return finish, {
        "cases": len(names), "dice": float(np.nanmean(dice)),
        "dice_per_class": dict(zip(cases.classes, np.nanmean(dice, axis=0).tolist(), strict=True)),
        "gain_of_largest_component": dict(zip(cases.classes, gain.tolist(), strict=True)),
        "calibration": {"as predicted": quality(cases, 1.0), "recalibrated": quality(cases, temperature, lines)},
        "coverage_of_90": dict(zip(cases.classes, [coverage_on_others(errors[:, k], unit[:, k])
                                                   for k in range(volume.shape[1])], strict=True))}


def temperature_of(cases: Cases) -> float:
    """The temperature that fits the probabilities of these cases, at voxels around their foreground."""
    regions = _regions(cases)
    logs, labels = zip(*(_classes_of(case, _draw(case, cases.labels.ignore_label), regions) for case in cases),
                       strict=True)
    return fit_temperature(np.concatenate(logs), np.concatenate(labels)) if sum(map(len, logs)) else 1.0


def lines_of(cases: Cases, temperature: float) -> tuple[tuple[float, float], ...]:
    """For each class the line from expected to true Dice (see `uncertainty.expected_dice`); none of any where a class
    has too few cases."""
    per_case = [_expected_and_true(cases, case, at_temperature(case.probabilities, temperature,
                                                               cases.labels.has_regions)) for case in cases]
    lines = []
    for pairs in zip(*per_case, strict=True):
        expected, true = np.array([pair for pair in pairs if pair is not None]).reshape(-1, 2).T
        lines.append(fit_line(expected, true))
    return tuple(line for line in lines if line is not None) if None not in lines else ()


def _expected_and_true(cases: Cases, case: Case, probabilities: np.ndarray) -> list[tuple[float, float] | None]:
    """Dice of each class as its probabilities promise it and as it is; None where there is nothing of it, or where
    ignored voxels may hold some."""
    partly = bool((case.truth == cases.labels.ignore_label).any())
    first = 0 if cases.labels.has_regions else 1
    return [None if partly or np.isnan(true) else (expected_dice(np.isin(case.segmentation, structure), p), float(true))
            for p, structure, true in zip(probabilities[first:], cases.structures,
                                          cases.dice(case.segmentation, case.truth), strict=True)]


def volumes_of(cases: Cases) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cases, classes) each, in the unit of `voxel_size_of`: predicted volume, the unit of its interval
    (`uncertainty.volume_deviation`), true volume; NaN where voxels are ignored, which may be of any class."""
    rows = [[[case.figures[name]["volume"], case.figures[name]["deviation"],
              float("nan") if (case.truth == cases.labels.ignore_label).any() else
              float(np.isin(case.truth, structure).sum()) * case.voxel_size]
             for name, structure in zip(cases.classes, cases.structures, strict=True)] for case in cases]
    volume, unit, true = np.moveaxis(np.array(rows), -1, 0)
    return volume, unit, true


def quality(cases: Cases, temperature: float, lines: Sequence[tuple[float, float]] = ()) -> dict[str, float]:
    """How far the probabilities of these cases can be trusted, at a temperature, and their Dice by these lines.

    Returns:
        expected and adaptive calibration error and AUROC of entropy for wrong voxels, over the boxes around the
        foreground; mean absolute error of expected Dice, its correlation with the true one and the area under the
        risk-coverage curve, over the cases.
    """
    regions, lines = _regions(cases), lines or [(0.0, 1.0)] * len(cases.structures)
    bins, sure, right = np.zeros((3, BINS)), [], []
    pairs: list[tuple[float, float]] = []
    for case in cases:
        probabilities = at_temperature(case.probabilities, temperature, cases.labels.has_regions)
        confidence, correct = confidence_and_correct(probabilities, case.truth, case.segmentation, regions,
                                                     cases.labels.ignore_label)
        bins += reliability_bins(confidence, correct, BINS)
        chosen = np.random.default_rng(0).permutation(len(confidence))[:_VOXELS_PER_CASE]
        sure.append(confidence[chosen])
        right.append(correct[chosen])
        pairs += [(float(np.clip(offset + slope * pair[0], 0, 1)), pair[1]) for pair, (offset, slope) in zip(
            _expected_and_true(cases, case, probabilities), lines, strict=True) if pair is not None]
    confidence, correct = np.concatenate(sure), np.concatenate(right)
    expected, true = np.array(pairs).reshape(-1, 2).T
    varied = len(expected) > 1 and expected.std() > 0 and true.std() > 0
    return {"expected_calibration_error": expected_calibration_error(bins),
            "adaptive_calibration_error": adaptive_calibration_error(confidence, correct),
            "error_detection_auroc": error_detection_auroc(-confidence, ~correct),
            "error_of_expected_dice": float(np.abs(expected - true).mean()) if len(true) else float("nan"),
            "correlation_of_expected_dice": float(np.corrcoef(expected, true)[0, 1]) if varied else float("nan"),
            "area_under_risk_coverage": area_under_risk_coverage(expected, 1 - true) if len(true) else float("nan")}


def coverage_on_others(errors: np.ndarray, units: np.ndarray) -> float | None:
    """Share of cases whose interval holds the truth, where it is fitted to one random half and counted on the other;
    mean over twenty splits. None where half of the cases is too few to fit."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(_HALVES):
        order = rng.permutation(len(errors))
        fitted, others = np.array_split(order, 2)
        scale = interval_scale(errors[fitted], units[fitted])
        if scale is not None and len(others):
            shares.append((np.abs(errors[others]) <= scale * units[others]).mean())
    return float(np.mean(shares)) if shares else None


def _regions(cases: Cases) -> list[tuple[int, ...]] | None:
    return [tuple(np.atleast_1d(s)) for s in cases.structures] if cases.labels.has_regions else None


def _draw(case: Case, ignore_label: int | None) -> np.ndarray:
    """Flat indices of voxels around the foreground, at most _VOXELS_PER_CASE, at random."""
    known = case.truth != ignore_label
    box = foreground_box(((case.truth > 0) & known) | (case.segmentation > 0))
    if box is None:
        return np.zeros(0, np.intp)
    inside = np.zeros(case.truth.shape, bool)
    inside[box] = known[box]
    places = np.flatnonzero(inside)
    return np.random.default_rng(0).permutation(places)[:_VOXELS_PER_CASE]


def _classes_of(case: Case, drawn: np.ndarray,
                regions: Sequence[tuple[int, ...]] | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, K) log probabilities and (n,) the true index; of regions each voxel counts once for each, K = 2."""
    probabilities = np.clip(case.probabilities.reshape(len(case.probabilities), -1)[:, drawn], 1e-6, 1)
    truth = case.truth.ravel()[drawn]
    if regions is None:
        return np.log(probabilities).T, truth
    pairs = np.clip(np.stack([1 - probabilities, probabilities], axis=-1), 1e-6, 1).reshape(-1, 2)
    return np.log(pairs), np.concatenate([np.isin(truth, region) for region in regions])
