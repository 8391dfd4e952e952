"""Scores of many cases in figures: means with intervals, and the paired comparison of two predictions (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from ldseg_auto.evaluation.policy import Presence
from ldseg_auto.evaluation.scores import METRICS, StructureScores
from ldseg_auto.evaluation.statistics import bootstrap_interval, holm, mean_over_classes, paired_wilcoxon

CaseScores = Mapping[str, Mapping[str, StructureScores]]  # case -> structure -> scores


def summarise(scores: CaseScores, unit: str) -> dict[str, Any]:
    """Means and their intervals.

    Args:
        scores: of at least one case, every case with the same structures.
        unit: of the sizes.

    Returns:
        `mean`: of each metric, over the classes' means; `classes`: for each its `n` cases that count, `n_missed`,
        `n_spurious`, `n_absent`, each metric's mean over the cases that count, that of the difference in size, and
        under `where_both` the `n` cases that prediction and reference both hold it in with their means alone: of
        distances without the worst that misses count as. What no case tells is None.
    """
    counts = ~_absent(scores)
    tables = {metric: np.where(counts, _table(scores, attrgetter(metric)), np.nan) for metric in METRICS}
    sizes = np.where(counts, _table(scores, attrgetter("size_difference")), np.nan)
    classes = {}
    for index, name in enumerate(_names(scores)):
        found = [case[name].presence for case in scores.values()]
        numbers = {f"n_{p.value}": found.count(p) for p in (Presence.MISSED, Presence.SPURIOUS, Presence.ABSENT)}
        classes[name] = {"n": int(counts[:, index].sum()), **numbers,
                         **{metric: _mean(table[:, index]) for metric, table in tables.items()},
                         f"difference_{unit}": _mean(sizes[:, index]), "where_both": _where_both(scores, name)}
    return {"mean": {metric: _mean(table) for metric, table in tables.items()}, "classes": classes}


def compare(first: CaseScores, second: CaseScores) -> dict[str, Any]:
    """Two predictions of the same cases, case by case.

    A case counts for a class where the reference or either prediction has it.

    Args:
        first, second: with the same cases, in any order, and the same structures.

    Returns:
        `mean`: of each metric over the classes' means, `first`, `second`, their `difference` (first less second) and
        its `interval`; `classes`: class -> metric -> the same, `n` cases that count, `n_equal` of them, `p` (Wilcoxon's
        signed-rank test) and `p_holm` (corrected for the number of classes), or None where no case counts;
        `cases`: case -> class -> metric -> [first, second].
    """
    second = {case: second[case] for case in first}
    names, counts = _names(first), ~(_absent(first) & _absent(second))
    classes: dict[str, dict[str, Any]] = {name: {} for name in names}
    means = {}
    for metric in METRICS:
        pair = [np.where(counts, _table(scores, attrgetter(metric)), np.nan) for scores in (first, second)]
        means[metric] = _difference(*pair)
        outcomes = _test_classes(*pair)
        for name, outcome in zip(names, outcomes, strict=True):
            classes[name][metric] = outcome
    cases = {case: {name: {metric: [getattr(scores[case][name], metric) for scores in (first, second)]
                           for metric in METRICS} for name in names} for case in first}
    return {"mean": means, "classes": classes, "cases": cases}


def _where_both(scores: CaseScores, name: str) -> dict[str, Any]:
    found = [case[name] for case in scores.values() if case[name].presence is Presence.BOTH]
    return {"n": len(found), **{metric: float(np.mean([getattr(s, metric) for s in found])) if found else None
                                for metric in METRICS}}


def _test_classes(first: np.ndarray, second: np.ndarray) -> list[dict[str, Any] | None]:
    """Outcome for each class of two tables (cases, classes)."""
    outcomes: list[dict[str, Any] | None] = []
    for a, b in zip(first.T, second.T, strict=True):
        if np.isnan(a).all():
            outcomes.append(None)
            continue
        test = paired_wilcoxon(a, b)
        outcomes.append({"n": test.n, "n_equal": test.n_zero, **_difference(a, b), "p": test.p_value})
    tested = [outcome for outcome in outcomes if outcome is not None]
    for outcome, p_value in zip(tested, holm([outcome["p"] for outcome in tested]), strict=True):
        outcome["p_holm"] = p_value
    return outcomes


def _difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    return {"first": _number(mean_over_classes(first)), "second": _number(mean_over_classes(second)),
            "difference": _number(mean_over_classes(first - second)), "interval": _interval(first - second)}


def _names(scores: CaseScores) -> Sequence[str]:
    return list(next(iter(scores.values())))


def _table(scores: CaseScores, value: Callable[[StructureScores], Any]) -> np.ndarray:
    """(cases, classes)."""
    return np.array([[value(structure) for structure in case.values()] for case in scores.values()])


def _absent(scores: CaseScores) -> np.ndarray:
    """(cases, classes): neither prediction nor reference has the structure."""
    return _table(scores, lambda structure: structure.presence is Presence.ABSENT)


def _mean(values: np.ndarray) -> dict[str, Any]:
    return {"mean": _number(mean_over_classes(values)), "interval": _interval(values)}


def _interval(values: np.ndarray) -> list[float] | None:
    interval = bootstrap_interval(values)
    return None if interval is None else list(interval)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
