"""Evaluations and comparisons as files and as text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.scores import METRICS
from ldseg_auto.folders import write_text

_TITLES = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)"}
_DIGITS = {"dice": 3, "nsd": 3, "hd95_mm": 2, "assd_mm": 2}


def evaluation_rows(evaluation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a case and class."""
    for case, scored in evaluation["cases"].items():
        for name, scores in scored["classes"].items():
            yield {"case": case, "class": name, **scores}


def comparison_rows(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a class and metric, without those that no case tells anything about."""
    for name, metrics in comparison["classes"].items():
        for metric, outcome in metrics.items():
            if outcome is not None:
                low, high = outcome["interval"] or ("", "")
                yield {"class": name, "metric": metric, **{k: v for k, v in outcome.items() if k != "interval"},
                       "interval_low": low, "interval_high": high}


def evaluation_table(evaluation: dict[str, Any]) -> str:
    """Classes with their means and intervals, to be printed."""
    header = ["class", "cases", "missed", "spurious", "absent", *(_TITLES[metric] for metric in METRICS)]
    rows = [[name, *(str(c[key]) for key in ("n", "n_missed", "n_spurious", "n_absent")),
             *(_with_interval(c[metric]["mean"], c[metric]["interval"], _DIGITS[metric]) for metric in METRICS)]
            for name, c in evaluation["classes"].items()]
    rows.append(["mean", "", "", "", "", *(_with_interval(m["mean"], m["interval"], _DIGITS[metric])
                                           for metric, m in evaluation["mean"].items())])
    confidence = evaluation["bootstrap"]["confidence"]
    return (f"{_columns([header, *rows])}\n\n{len(evaluation['cases'])} cases; in brackets {confidence:.0%} intervals "
            "over cases; absent: neither in prediction nor reference, left out of means.\n"
            f"Tolerance of the NSD: {_tolerances(evaluation)}.")


def comparison_table(comparison: dict[str, Any]) -> str:
    """Classes and metrics with their paired differences, to be printed."""
    header = ["class", "metric", "cases", "first", "second", "difference", "p", "p (Holm)"]
    rows = []
    for row in comparison_rows(comparison):
        digits = _DIGITS[row["metric"]]
        interval = None if row["interval_low"] == "" else [row["interval_low"], row["interval_high"]]
        rows.append([row["class"], _TITLES[row["metric"]], str(row["n"]), f"{row['first']:.{digits}f}",
                     f"{row['second']:.{digits}f}", _with_interval(row["difference"], interval, digits, "+"),
                     f"{row['p']:.3g}", f"{row['p_holm']:.3g}"])
    for metric, mean in comparison["mean"].items():
        digits = _DIGITS[metric]
        rows.append(["mean", _TITLES[metric], "", *(_with_interval(mean[side], None, digits)
                                                    for side in ("first", "second")),
                     _with_interval(mean["difference"], mean["interval"], digits, "+"), "", ""])
    return (f"{_columns([header, *rows])}\n\nfirst: {comparison['first']}\nsecond: {comparison['second']}\n"
            "difference: first less second, in brackets its interval over cases; p: Wilcoxon signed-rank test over "
            "cases, Holm: corrected for the number of classes.")


def write_json(content: dict[str, Any], file: Path) -> None:
    """Whole or not at all."""
    _write(file, json.dumps(content, indent=2, allow_nan=False))


def write_csv(rows: Iterable[dict[str, Any]], file: Path) -> None:
    """Whole or not at all; the columns are those of the first row."""
    listed, stream = list(rows), StringIO()
    writer = csv.DictWriter(stream, list(listed[0]) if listed else [])
    writer.writeheader()
    writer.writerows(listed)
    _write(file, stream.getvalue())


def _write(file: Path, text: str) -> None:
    try:
        write_text(file, text)
    except OSError as error:
        raise LDSegError(f"{file} cannot be written: {error.strerror}.", "Give another folder to -o.") from error


def _with_interval(value: float | None, interval: Sequence[float] | None, digits: int, sign: str = "") -> str:
    if value is None:
        return "-"
    ends = "" if interval is None else f" ({', '.join(f'{end:{sign}.{digits}f}' for end in interval)})"
    return f"{value:{sign}.{digits}f}{ends}"


def _tolerances(evaluation: dict[str, Any]) -> str:
    by_class = evaluation["tolerance_mm"]
    values = set(by_class.values())
    text = f"{values.pop():g} mm" if len(values) == 1 else ", ".join(f"{n} {v:g} mm" for n, v in by_class.items())
    return f"{text} ({evaluation['tolerance_from']})"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
