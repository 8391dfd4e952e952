"""Which sampler serves a model best: measured on cross-validation cases, each by the fold that did not see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ldseg_auto.evaluation.calibration import confidence_bins, expected_calibration_error
from ldseg_auto.evaluation.policy import Presence
from ldseg_auto.evaluation.scores import score_structures
from ldseg_auto.folders import Fold
from ldseg_auto.inference.choice import Sampler
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.previous_stage import as_channels
from ldseg_auto.networks.ldseg_net import LDSegNet

STEPS, SAMPLES, ETAS = (1, 2, 4, 10), (1, 5, 10, 20), (0.0, 1.0)
_FIRST_SAMPLES = (1, 5)  # of the first stage
MAX_CASES = 40
NEGLIGIBLE_DICE = 0.002  # no user would wait several times as long for it
SAME_SECONDS = 1.1  # times that differ less were not told apart by the clock
RULE = (f"As good as the best is whatever loses at most {NEGLIGIBLE_DICE:g} of its mean Dice, or at most one standard "
        "error of the paired difference over the cases; of those the cheapest in median seconds a case is chosen, and "
        f"of several within {SAME_SECONDS - 1:.0%} of its time the one with the highest Dice.")


@dataclass(frozen=True)
class Measured:
    """A sampler on the cases of the search; one value a case, NaN where neither truth nor prediction holds anything.

    `seconds` are those of the network on this machine, without preprocessing and export; a sampler that draws on
    another's samples counts their time and its own. Medians of them are compared: the first case also pays for what is
    done once, such as finding the quickest convolution.
    """

    sampler: Sampler
    seconds: np.ndarray
    dice: np.ndarray
    nsd: np.ndarray
    calibration_error: np.ndarray

    def row(self) -> dict[str, Any]:
        """For JSON and tables."""
        return {"samples": self.sampler.samples, "steps": self.sampler.steps, "eta": self.sampler.eta,
                "mirroring": self.sampler.mirroring, "cases": len(self.dice), "seconds": float(np.median(self.seconds)),
                **{name: float(np.nanmean(getattr(self, name))) for name in ("dice", "nsd", "calibration_error")}}


class PartPredictor(LDSegPredictor):
    """Draws some of the samples, of the upright view or of the mirrored ones, so that parts add up to any sampler."""

    first_sample = 0
    mirrored = False

    def _sample_numbers(self, network: LDSegNet) -> range:
        assert self.samples is not None
        return range(self.first_sample, self.samples)

    def _mirrors(self) -> list[tuple[int, ...]]:
        views = super()._mirrors()
        return views[1:] if self.mirrored else views[:1]


def select_cases(folds: Mapping[Fold, Sequence[str]], size_of: Mapping[str, int],
                 most: int = MAX_CASES) -> dict[Fold, list[str]]:
    """About as many cases of every fold, evenly spread from small to large structures.

    Args:
        folds: the validation cases of each.
        size_of: of each case's structures, in any unit.
        most: cases in all.
    """
    chosen: dict[Fold, list[str]] = {}
    for number, (fold, cases) in enumerate(folds.items()):
        left = most - sum(len(names) for names in chosen.values())
        share = ceil(left / (len(folds) - number))
        ordered = sorted(cases, key=lambda case: (size_of[case], case))
        places = np.linspace(0, len(ordered) - 1, min(share, len(ordered))).round().astype(int)
        chosen[fold] = [ordered[place] for place in places]
    return chosen


class Timed(Protocol):
    """What was measured on cases: seconds and Dice of each."""

    @property
    def seconds(self) -> np.ndarray: ...
    @property
    def dice(self) -> np.ndarray: ...


Candidate = TypeVar("Candidate", bound=Timed)


def choose(measured: Sequence[Candidate]) -> Candidate:
    """The cheapest of those that are as good as the best, see `RULE`.

    The noise of a difference is that of the paired differences over the cases: cases differ far more from each other
    than samplers do, and one standard error of the best's own mean (Breiman et al., Classification and Regression
    Trees, 1984, section 3.4.3) would give away losses that every case shows. Few cases, on the other hand, may agree by
    chance, and many show differences that no user would wait for: hence NEGLIGIBLE_DICE.

    A case without Dice counts as 1, rightly empty, where another candidate has one, and nowhere else (`policy`).
    """
    dice = np.stack([candidate.dice for candidate in measured])
    dice = dice[:, ~np.isnan(dice).all(0)]
    dice = np.where(np.isnan(dice), 1.0, dice)
    seconds = np.array([np.median(candidate.seconds) for candidate in measured])
    means = dice.mean(1) if dice.size else np.zeros(len(dice))
    losses = dice[means.argmax()] - dice
    noise = losses.std(1, ddof=1) / losses.shape[1] ** 0.5 if losses.shape[1] > 1 else np.zeros(len(losses))
    good = means.max() - means <= np.maximum(NEGLIGIBLE_DICE, noise)
    as_quick = good & (seconds <= SAME_SECONDS * seconds[good].min())
    places = range(len(measured))
    return measured[max((i for i in places if as_quick[i]), key=lambda i: (means[i], -seconds[i]))]


def search(predictor: PartPredictor, cases: Mapping[Fold, Sequence[str]], dataset: Any,
           progress_bar: bool = True) -> list[Measured]:
    """Measure samplers in two stages: steps and eta with few samples and without mirroring, then, for the best of them,
    more samples and mirroring.

    Args:
        predictor: with the weights of all folds of `cases`, in its order of folds.
        cases: of each fold.
        dataset: nnU-Net's, of preprocessed cases.

    Returns:
        every sampler that was measured.
    """
    pairs = [(steps, eta) for steps in STEPS for eta in ETAS if steps > 1 or eta == 0]  # one step adds no noise
    passes = (len(pairs) + 1) * sum(map(len, cases.values()))
    with tqdm(total=passes, desc=f"samplers of {predictor.configuration_manager.data_identifier}",
              disable=None if progress_bar else True) as progress:
        found = _measure(predictor, cases, dataset, pairs, _FIRST_SAMPLES, False, progress)
        first = choose(found).sampler
        more = _measure(predictor, cases, dataset, [(first.steps, first.eta)], SAMPLES, True, progress)
    return found + [m for m in more if m.sampler not in {f.sampler for f in found}]


def _measure(predictor: PartPredictor, cases: Mapping[Fold, Sequence[str]], dataset: Any,
             pairs: Sequence[tuple[int, float]], samples: Sequence[int], with_mirrors: bool,
             progress: Any) -> list[Measured]:
    rows: dict[Sampler, list[tuple[float, ...]]] = {}
    for fold, names in cases.items():
        predictor.network.load_state_dict(predictor.list_of_parameters[predictor.folds.index(fold)])
        for name in names:
            data, truth, _ = load_case(dataset, name, predictor.label_manager.foreground_labels)
            for steps, eta in pairs:
                for sampler, seconds, mean in _nested(predictor, data, fold, steps, eta, samples, with_mirrors):
                    rows.setdefault(sampler, []).append((seconds, *_score(predictor, mean, truth)))
                progress.update()
    return [Measured(sampler, *np.array(values).T) for sampler, values in rows.items()]


def _nested(predictor: PartPredictor, data: torch.Tensor, fold: Fold, steps: int, eta: float, samples: Sequence[int],
            with_mirrors: bool) -> Iterator[tuple[Sampler, float, torch.Tensor]]:
    """Samplers that share their draws: sampler, seconds, mean probabilities."""
    predictor.steps, predictor.eta = steps, eta
    can_mirror = with_mirrors and bool(predictor.allowed_mirroring_axes)
    totals = {mirrored: (0.0, torch.zeros(())) for mirrored in ((False, True) if can_mirror else (False,))}
    views = {False: 1, True: 2 ** len(predictor.allowed_mirroring_axes or ()) - 1}
    before = 0
    for number in samples:
        predictor.first_sample, predictor.samples = before, number
        for mirrored, (seconds, total) in totals.items():
            predictor.mirrored = mirrored
            started = perf_counter()
            part = predictor.mean_probabilities(data, fold) * (number - before) * views[mirrored]
            totals[mirrored] = (seconds + perf_counter() - started, total + part)
        before = number
        seconds, total = totals[False]
        yield Sampler(number, steps, eta, False), seconds, total / number
        if can_mirror:
            more_seconds, more = totals[True]
            yield Sampler(number, steps, eta, True), seconds + more_seconds, (total + more) / (
                number * (views[True] + 1))


def _score(predictor: LDSegPredictor, probabilities: torch.Tensor, truth: np.ndarray) -> tuple[float, float, float]:
    """Dice, normalised surface Dice (within one voxel) and calibration error, on the network's grid."""
    labels = predictor.label_manager
    known = truth != labels.ignore_label
    segmentation = np.asarray(labels.convert_probabilities_to_segmentation(probabilities)) * known
    spacing = grid_spacing(predictor)
    structures = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    groups = {str(structure): np.atleast_1d(structure).tolist() for structure in structures}
    scores = score_structures(segmentation.astype(np.int32), (truth * known).astype(np.int32), groups, spacing,
                              dict.fromkeys(groups, max(spacing)))
    there = [score for score in scores.values() if score.presence is not Presence.ABSENT]
    regions = labels.foreground_regions if labels.has_regions else None
    bins = confidence_bins(probabilities.numpy(), truth, segmentation, regions, labels.ignore_label)
    dice, nsd = (float(np.mean([getattr(score, name) for score in there])) if there else float("nan")
                 for name in ("dice", "nsd"))
    return dice, nsd, expected_calibration_error(bins)


def grid_spacing(predictor: LDSegPredictor) -> tuple[float, ...]:
    """Millimetres per voxel of a preprocessed case; the distance of slices of a 2D model is that of the data set."""
    spacing = tuple(predictor.configuration_manager.spacing)
    return spacing if len(spacing) == 3 else (
        predictor.plans_manager.original_median_spacing_after_transp[0], *spacing)


def load_case(dataset: Any, name: str, foreground_labels: Sequence[int] = ()) -> tuple[torch.Tensor, np.ndarray, dict]:
    """Image (C, z, y, x), of a cascade with a channel for each foreground label of the first stage; labels (z, y, x)
    and properties; nnU-Net marks what lies outside of the cropped image's mask by -1."""
    data, labels, first_stage, properties = dataset.load_case(name)
    image = np.asarray(data[:])
    if first_stage is not None:
        image = np.concatenate([image, as_channels(first_stage[:], foreground_labels)])
    return torch.from_numpy(image), np.maximum(np.asarray(labels[:])[0], 0), properties


def sizes(folder: Path, cases: Sequence[str]) -> dict[str, int]:
    """Bytes of each case's compressed labels, which grow with the surface of its structures."""
    return {case: max((path.stat().st_size for path in (folder / f"{case}_seg.b2nd", folder / f"{case}.npz")
                       if path.is_file()), default=0) for case in cases}
