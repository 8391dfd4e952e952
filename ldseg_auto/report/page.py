"""The page: sections of HTML, the data that its script works on, and the template that holds both."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ldseg_auto import __version__
from ldseg_auto.folders import write_text
from ldseg_auto.report.cases import Case
from ldseg_auto.report.embedded import MAX_VOXELS
from ldseg_auto.report.parts import paragraph, plot, table
from ldseg_auto.report.pictures import Palette
from ldseg_auto.report.walk import Walk

SECTIONS = {"summary": "Summary", "cases": "Cases", "worst-best": "Worst and best", "viewer": "Viewer",
            "reliability": "Reliability", "training": "Training", "film": "Reverse diffusion", "plans": "Plans and why"}
_VIEWER = "niivue.umd.js.gz"
_LICENCES = "niivue_licences.txt"
_DIGITS = 4


def summary_section(cases: Sequence[Case], classes: Sequence[str]) -> list[str]:
    """HTML: Dice of each class over all cases, as numbers and as dots."""
    per_class = [[value for case in cases if (value := case.dice[i]) is not None] for i in range(len(classes))]
    known = [values for values in per_class if values]
    if not known:
        return [paragraph("No case was validated, or none holds a class.")]
    rows = [[name, str(len(values)), *([f"{np.mean(values):.3f}", f"{np.median(values):.3f}", f"{min(values):.3f}"]
                                       if values else ["\u2013"] * 3)]
            for name, values in zip(classes, per_class, strict=True)]
    mean = float(np.mean([np.mean(values) for values in known]))
    return [f"<p class=lead>Mean Dice <strong>{mean:.3f}</strong> over {len(cases)} validation "
            f"case{'s' * (len(cases) > 1)} and {len(classes)} class{'es' * (len(classes) > 1)}</p>",
            table(["class", "cases that hold it", "mean Dice", "median", "lowest"], rows),
            paragraph("A case counts for a class where truth or prediction holds it."),
            plot(partial(_draw_dice, per_class=per_class, classes=classes),
                 "Dice of each case, one row of dots a class; the table has the numbers.",
                 "A dot a case; the line is the mean.", (7, min(1.2 + 0.35 * len(classes), 12)))]


def _draw_dice(axes: Axes, per_class: Sequence[Sequence[float]], classes: Sequence[str]) -> None:
    rng = np.random.default_rng(0)
    for row, values in enumerate(per_class):
        axes.plot(values, row + rng.uniform(-0.15, 0.15, len(values)), ".", color="tab:blue", alpha=0.6)
        if values:
            axes.plot(np.mean(values), row, "|", color="black", ms=16)
    axes.set(yticks=range(len(classes)), yticklabels=[name.replace("$", r"\$") for name in classes], xlabel="Dice",
             ylim=(len(classes) - 0.5, -0.5))


def cases_section(cases: Sequence[Case]) -> list[str]:
    """HTML that the page's script fills."""
    return ["<div id=case-table></div>"] if cases else [paragraph("No case was validated.")]


def worst_best_section(worst: Sequence[int], best: Sequence[int], informed: bool) -> list[str]:
    """HTML that the page's script fills; `informed`: there is mutual information."""
    places = [f"<h3>{title}</h3><div id={title.lower()}></div>" for title, cases in (("Worst", worst), ("Best", best))
              if cases]
    if places and informed:
        places.insert(0, paragraph("Uncertainty is the entropy of the mean prediction: how sure it is. Disagreement is "
                                   "the part of it that the samples and mirrors disagree about (mutual information), "
                                   "of what ldseg_find_best_configuration chose where the validation did not write it; "
                                   "the rest is what every draw is unsure of by itself."))
    return places or [paragraph("No case was validated, or none holds a class.")]


def viewer_section(found: Walk, cases: Sequence[Case]) -> list[str]:
    """HTML: what the viewer holds, and its licence; where it holds nothing, why."""
    if not found.embedded:
        return [paragraph("Images of one slice have nothing to scroll." if found.flat else
                          "There are no images to show: see what is left out.")]
    thinned = [f"{cases[i].name} every {'x'.join(map(str, each['step']))} voxels (x, y, z)"
               for i, each in found.embedded.items() if max(each["step"]) > 1]
    parts = [paragraph(f"The worst and the best cases, {len(found.embedded)} in all, grey values in 256 steps from the "
                       "0.5th to the 99.5th percentile. Drag or use the mouse wheel to go through the slices.")]
    if thinned:
        parts.append(paragraph(f"More than {MAX_VOXELS / 1e6:g} million voxels are too many for a page. Embedded are "
                               f"of {'; of '.join(thinned)}."))
    licences = html.escape(_resource(_LICENCES).decode())
    return [*parts, "<div id=viewer-app></div><details><summary>The viewer is NiiVue, BSD-2-Clause: its licence"
                    f"</summary><pre>{licences}</pre></details>"]


def payload(cases: Sequence[Case], classes: Sequence[str], found: Walk, worst: Sequence[int], best: Sequence[int],
            colours: Palette, most_entropy: float) -> dict[str, Any]:
    """What the page's script works on; numbers that are not known are null.

    Args:
        worst, best: indices of cases.
        most_entropy: in nats, shown brightest.
    """
    in_ml = all(case.voxel_ml is not None for case in cases)
    return {
        "classes": list(classes), "unit": "ml" if in_ml else "voxels", "legend": colours.legend(),
        "highest_entropy": round(most_entropy, 2),
        "worst": list(worst), "best": list(best),
        "cases": [{
            "case": case.name, "fold": str(case.fold), "dice": [_rounded(value) for value in case.dice],
            "mean": _rounded(case.mean_dice),
            "volumes": [[_significant(each * (case.voxel_ml or 1)) if in_ml else each for each in pair]
                        for pair in case.voxels],
            "slices": found.slices.get(i, []), "embedded": list(found.embedded.get(i, {}).get("files", ())),
        } for i, case in enumerate(cases)]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _significant(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def write_page(file: Path, title: str, subtitle: str, left_out: Sequence[str], sections: Mapping[str, Sequence[str]],
               data: Mapping[str, Any], found: Walk) -> None:
    """Write the page under a temporary name, then rename it.

    Args:
        sections: HTML by the keys of `SECTIONS`.
        data: of `payload`.
        found: its volumes are embedded.
    """
    blobs = {f"volume-{i}-{name}": text for i, each in found.embedded.items() for name, text in each["files"].items()}
    scripts = [_resource(name).decode() for name in ("report.js", "viewer.js")]
    hashed = [script.encode() for script in scripts]
    if blobs:
        packed = _resource(_VIEWER)
        blobs["viewer-code"] = base64.b64encode(packed).decode()
        hashed.append(gzip.decompress(packed))
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in hashed)
    content = {**sections, "summary": [*sections["summary"], *_notes(left_out)]}
    text = Template(_resource("template.html").decode()).substitute(
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
               "form-action 'none'",
        title=html.escape(title), subtitle=html.escape(subtitle), version=html.escape(__version__),
        style=_resource("report.css").decode(),
        navigation="".join(f"<a href='#{key}'>{name}</a>" for key, name in SECTIONS.items()),
        sections="".join(f"<section id={key}><h2>{name}</h2>{''.join(content[key])}</section>"
                         for key, name in SECTIONS.items()),
        data=_json(data), blobs="".join(f"<script type=text/plain id={key}>{blob}</script>\n"
                                        for key, blob in blobs.items()),
        scripts="".join(f"<script>{script}</script>\n" for script in scripts))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _notes(left_out: Sequence[str]) -> list[str]:
    notes = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in left_out)
    return [f"<h3>Left out</h3><ul id=left-out>{notes}</ul>"] if notes else []


def _json(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _resource(name: str) -> bytes:
    return (files("ldseg_auto.report") / name).read_bytes()
