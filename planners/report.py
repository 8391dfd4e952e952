"""`plan_report.html`: what `explain` says, with the distributions and the alternatives as plots, in one file."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldseg_auto.folders import write_text
from ldseg_auto.planners.explain import candidate_rows, describe_configuration, describe_data, is_explained

FILE_NAME = "plan_report.html"
_STYLE = ("body{font-family:sans-serif;max-width:60em;margin:2em auto;line-height:1.4}"
          "table{border-collapse:collapse}td,th{padding:.15em .8em;border-bottom:1px solid #ddd;text-align:right}"
          "td:last-child,th:last-child{text-align:left}tr.chosen{background:#dfd}figure{margin:1em 0}")


def write_report(plans: Mapping[str, Any], fingerprint: Mapping[str, Any], labels: Mapping[str, Any],
                 file: Path) -> None:
    """Write the report.

    Args:
        plans: of `LDSegPlanner`.
        fingerprint: nnU-Net's dataset_fingerprint.json.
        labels: label_fingerprint.json.
        file: is replaced when the report is complete.
    """
    parts = [f"<h1>{html.escape(plans['plans_name'])} for {html.escape(plans['dataset_name'])}</h1>",
             *map(_paragraph, describe_data(plans)), "<h2>Images</h2>",
             _figure(lambda axes: _plot_cases(axes, fingerprint["spacings"], "spacing in mm", plans)),
             _figure(lambda axes: _plot_cases(axes, fingerprint["shapes_after_crop"], "size in voxels", plans)),
             "<h2>Labels</h2>", _label_table(labels), *_contact_table(labels)]
    for name, plan in plans["configurations"].items():
        if is_explained(plan):
            parts += _configuration(name, plan)
    text = (f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{html.escape(plans['dataset_name'])}</title>"
            f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>")
    write_text(file, text)


def _configuration(name: str, plan: Mapping[str, Any]) -> list[str]:
    latent, memory = plan["ldseg"]["latent"], plan["ldseg"]["memory"]
    return [f"<h2>Configuration {html.escape(name)}</h2>", *map(_paragraph, describe_configuration(plan)),
            _figure(lambda axes: _plot_ceilings(axes, latent)),
            _table(["stride", "channels", "mean", "worst class", "per class", "verdict"], candidate_rows(latent),
                   [c["chosen"] for c in latent["candidates"]]),
            _figure(lambda axes: _plot_memory(axes, memory))]


def _paragraph(sentence: str) -> str:
    return f"<p>{html.escape(sentence)}</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool]) -> str:
    body = "".join(f"<tr{' class=chosen' if mark else ''}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
                   + "</tr>" for row, mark in zip(rows, marked, strict=True))
    return f"<table><tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def _label_table(labels: Mapping[str, Any]) -> str:
    rows = [[name, f"{described['share_of_cases']:.0%}", _range(described["volume_mm3"], 1e-3),
             _range(described["components"]), _range(described["thickness_mm"])]
            for name, described in labels["classes"].items()]
    return ("<p>10th percentile, median and 90th percentile over the cases that hold the class.</p>"
            + _table(["class", "in cases", "volume in ml", "components", "thickness in mm"], rows, [False] * len(rows)))


def _contact_table(labels: Mapping[str, Any]) -> list[str]:
    """Classes that touch each other; what touches only the background is not named."""
    rows = [[" and ".join(contact["between"]), f"{contact['share_of_cases']:.0%}", _range(contact["area_mm2"], 1e-2)]
            for contact in labels["contact"] if "background" not in contact["between"]]
    return [_table(["classes that touch", "in cases", "area in cm\u00b2"], rows, [False] * len(rows))] if rows else []


def _range(percentiles: Mapping[str, float], factor: float = 1.0) -> str:
    if not percentiles:
        return "not measured"
    return " / ".join(f"{factor * percentiles[key]:.3g}" for key in ("p10", "p50", "p90"))


def _figure(draw: Callable[[Axes], None]) -> str:
    """What `draw` draws, as SVG within the page."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    draw(figure.add_subplot())
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg'):]}</figure>"


def _plot_cases(axes: Axes, per_case: Sequence[Sequence[float]], quantity: str, plans: Mapping[str, Any]) -> None:
    """One dot a case and axis, in the order of the planned axes; slices of pictures have no distance worth a dot."""
    values = np.asarray(per_case, dtype=float)[:, plans["transpose_forward"]]
    shown = range(1 if plans["original_median_shape_after_transp"][0] == 1 else 0, values.shape[1])
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
    for axis in shown:
        axes.plot(axis + jitter, values[:, axis], ".", color="tab:blue", alpha=0.5)
    key, label = ("spacing", "target") if quantity.startswith("spacing") else ("patch_size", "patch")
    planned = {name: plan[key] for name, plan in plans["configurations"].items() if "ldseg" in plan}
    for (name, sizes), marker in zip(planned.items(), "s^Dv*", strict=False):
        axes.plot(range(values.shape[1] - len(sizes), values.shape[1]), sizes, marker, mfc="none", color="black",
                  label=f"{label} {name}")
    axes.set(xticks=shown, xlabel="axis", ylabel=quantity)
    axes.legend(fontsize="small")


def _plot_ceilings(axes: Axes, latent: Mapping[str, Any]) -> None:
    candidates = latent["candidates"]
    for stride in sorted({tuple(c["stride"]) for c in candidates}, key=prod):
        of_stride = [c for c in candidates if tuple(c["stride"]) == stride]
        line, = axes.plot([c["channels"] for c in of_stride], [c["mean"] for c in of_stride], "o-",
                          label="x".join(map(str, stride)))
        axes.plot([c["channels"] for c in of_stride], [c["worst"] for c in of_stride], "--", color=line.get_color())
    chosen = next(c for c in candidates if c["chosen"])
    axes.plot(chosen["channels"], chosen["mean"], "o", ms=14, mfc="none", color="black", label="chosen")
    axes.axhline(latent["target_mean"], color="grey", lw=0.8)
    axes.axhline(latent["target_worst"], color="grey", lw=0.8, ls="--")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="latent channels", ylabel="Dice after coding the labels\n(dashed: worst class)")
    axes.legend(title="stride", fontsize="small")


def _plot_memory(axes: Axes, memory: Mapping[str, Any]) -> None:
    parts = memory["parts"]
    axes.barh([part.replace("_", " ") for part in parts], [values / 1e6 for values in parts.values()])
    axes.invert_yaxis()
    axes.set(xlabel="million feature-map values per sample and pass",
             title=f"about {memory['estimate_gb']:.2g} of {memory['target_gb']:g} GB in training")
