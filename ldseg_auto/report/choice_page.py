"""The tables behind a choice, as a page to read."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldseg_auto.folders import write_text
from ldseg_auto.inference.choice import Best
from ldseg_auto.inference.search import RULE
from ldseg_auto.report.parts import paragraph, table

_STYLE = ("body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
          "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}tr.chosen{background:#e6f2e6}")


def write_page(file: Path, dataset: str, searches: Mapping[str, Sequence[Mapping[str, Any]]],
               evidence: Mapping[str, Any], best: Best) -> None:
    """Write the choice and what led to it.

    Args:
        file: ldseg_inference.html.
        dataset: name.
        searches: for each configuration the samplers that were measured, see `search.Measured.row`.
        evidence: "finalists", "confirmed" and "samplers", as in ldseg_inference.json.
        best: the choice.
    """
    finish = best.finish
    parts = [f"<h1>{html.escape(dataset)}: how to predict</h1>",
             f"<p><b>{html.escape(' and '.join(best.configurations))}</b>: ",
             "; ".join(html.escape(f"{name} {evidence['samplers'][name]}") for name in best.configurations),
             f". Temperature {finish.temperature:.2f}. Only the largest component is kept of "
             f"{html.escape(', '.join(map(str, finish.largest_component)) or 'no label')}.</p>",
             paragraph(RULE)]
    for name, rows in searches.items():
        parts += [f"<h2>{html.escape(name)}</h2>", rows_table(rows)]
    if evidence["finalists"]:
        parts += ["<h2>Configurations and pairs</h2>", rows_table(
            [{**row, "configurations": " + ".join(row["configurations"])} for row in evidence["finalists"]])]
    confirmed = evidence["confirmed"]
    parts += ["<h2>The choice on all cross-validation cases</h2>",
              rows_table([{"cases": confirmed["cases"], "seconds": confirmed["seconds"], "dice": confirmed["dice"]}]),
              "<h2>Trust in probabilities</h2>",
              rows_table([{"probabilities": name, **values} for name, values in confirmed["calibration"].items()]),
              "<h2>Classes</h2>",
              rows_table([{"class": name, "dice": confirmed["dice_per_class"][name],
                       "gain of keeping the largest component": confirmed["gain_of_largest_component"][name],
                       "volumes within the 90 % interval": confirmed["coverage_of_90"][name]}
                      for name in confirmed["dice_per_class"]])]
    write_text(file, f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{html.escape(dataset)}</title>"
                     f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>")


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each mapping, its keys as head; those that are "chosen" are marked."""
    columns = [name for name in rows[0] if name != "chosen"]
    return table([name.replace("_", " ") for name in columns], [[_cell(row[name]) for name in columns] for row in rows],
                 [bool(row.get("chosen")) for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:  # NaN
        return "too few cases"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
