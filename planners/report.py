"""`plan_report.html`: what `explain` says, with the distributions and the alternatives as plots, in one file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ldseg_auto.folders import resolved, write_text
from ldseg_auto.planners.explain import candidate_rows, describe_configuration, describe_data, is_explained
from ldseg_auto.report.parts import paragraph, plot, table

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
             "<h2>Data</h2>", *data_sections(plans, fingerprint, labels), "<h2>Configurations</h2>",
             *(part for name in plans["configurations"] for part in configuration_sections(plans, name))]
    text = (f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{html.escape(plans['dataset_name'])}</title>"
            f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>")
    write_text(file, text)


def data_sections(plans: Mapping[str, Any], fingerprint: Mapping[str, Any] | None,
                  labels: Mapping[str, Any] | None) -> list[str]:
    """HTML on what all configurations share; without a fingerprint its part is missing."""
    parts = [paragraph(sentence) for sentence in describe_data(plans)]
    if fingerprint is not None:
        parts.append("<h3>Images</h3><div class=plots>")
        for key, quantity in (("spacings", "spacing in mm"), ("shapes_after_crop", "size in voxels")):
            draw = partial(_plot_cases, per_case=fingerprint[key], quantity=quantity, plans=plans)
            parts.append(plot(draw, f"The {quantity} of each case along each axis, and what is planned."))
        parts.append("</div>")
    if labels is not None:
        parts += ["<h3>Labels</h3>", _label_table(labels), *_contact_table(labels)]
    return parts


def configuration_sections(plans: Mapping[str, Any], name: str) -> list[str]:
    """HTML on one configuration: each decision, its evidence and the alternatives; nothing where none is written."""
    plan = resolved(plans, name)
    if not is_explained(plan):
        return []
    latent, memory = plan["ldseg"]["latent"], plan["ldseg"]["memory"]
    return [f"<h3>Configuration {html.escape(name)}</h3>", *map(paragraph, describe_configuration(plan)),
            plot(partial(_plot_ceilings, latent=latent), "Dice after coding the labels over the number of latent "
                                                         "channels, one line a stride. The table has the numbers."),
            table(["stride", "channels", "mean", "worst class", "per class", "verdict"], candidate_rows(latent),
                  [c["chosen"] for c in latent["candidates"]]),
            plot(partial(_plot_memory, memory=memory), "Feature-map values of each part of the network in training. "
                                                       "The sentence on memory has the numbers.")]


def _label_table(labels: Mapping[str, Any]) -> str:
    rows = [[name, f"{described['share_of_cases']:.0%}", _range(described["volume_mm3"], 1e-3),
             _range(described["components"]), _range(described["thickness_mm"])]
            for name, described in labels["classes"].items()]
    return ("<p>10th percentile, median and 90th percentile over the cases that hold the class.</p>"
            + table(["class", "in cases", "volume in ml", "components", "thickness in mm"], rows))


def _contact_table(labels: Mapping[str, Any]) -> list[str]:
    """Classes that touch each other; what touches only the background is not named."""
    rows = [[" and ".join(contact["between"]), f"{contact['share_of_cases']:.0%}", _range(contact["area_mm2"], 1e-2)]
            for contact in labels["contact"] if "background" not in contact["between"]]
    return [table(["classes that touch", "in cases", "area in cm\u00b2"], rows)] if rows else []


def _range(percentiles: Mapping[str, float], factor: float = 1.0) -> str:
    if not percentiles:
        return "not measured"
    return " / ".join(f"{factor * percentiles[key]:.3g}" for key in ("p10", "p50", "p90"))


def _plot_cases(axes: Axes, per_case: Sequence[Sequence[float]], quantity: str, plans: Mapping[str, Any]) -> None:
    """One dot a case and axis, in the order of the planned axes; slices of pictures have no distance worth a dot."""
    values = np.asarray(per_case, dtype=float)[:, plans["transpose_forward"]]
    shown = range(1 if plans["original_median_shape_after_transp"][0] == 1 else 0, values.shape[1])
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
    for axis in shown:
        axes.plot(axis + jitter, values[:, axis], ".", color="tab:blue", alpha=0.5)
    key, label = ("spacing", "target") if quantity.startswith("spacing") else ("patch_size", "patch")
    planned = {name: plan[key] for name, plan in plans["configurations"].items()
               if "ldseg" in plan and "inherits_from" not in plan}
    for (name, sizes), marker in zip(planned.items(), "s^Dv*", strict=False):
        axes.plot(range(values.shape[1] - len(sizes), values.shape[1]), sizes, marker, mfc="none", color="black",
                  label=f"{label} {name}")
    axes.set(xticks=shown, xlabel="axis", ylabel=quantity)
    if planned:
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
