"""Plots of everything that lies in benchmarks/results: benchmarks/figures/*.png.

    python benchmarks/figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402, the backend must be chosen first

HERE = Path(__file__).resolve().parent


def accuracy(content: dict[str, Any], file: Path) -> None:
    """Dice over seconds of prediction and, of several budgets, over training minutes (each side's first prediction)."""
    results = content["results"]
    has_curve = len({row["minutes"] for row in results}) > 1
    figure, axes = pyplot.subplots(1, 1 + has_curve, figsize=(6 + 6 * has_curve, 5), squeeze=False)
    over_seconds, over_time = axes[0, 0], axes[0, -1]
    for side in dict.fromkeys(row["side"] for row in results):
        rows = [row for row in results if row["side"] == side]
        minutes = sorted({row["minutes"] for row in rows})
        first = list(rows[0]["points"])[0]
        if has_curve:
            over_time.plot(minutes, [np.mean([_dice(row["points"][first]) for row in rows if row["minutes"] == m])
                                     for m in minutes], "o-", label=f"{side}, {first}")
        longest = [row for row in rows if row["minutes"] == minutes[-1]]
        points = longest[0]["points"]
        over_seconds.plot([np.mean([np.mean(row["points"][p]["seconds"]) for row in longest]) for p in points],
                          [np.mean([_dice(row["points"][p]) for row in longest]) for p in points], "o-", label=side)
    if has_curve:
        over_time.set(xlabel="training, minutes", ylabel="Dice")
        over_time.legend(fontsize="small")
    over_seconds.set(xlabel="prediction, seconds a case", ylabel="Dice", xscale="log")
    _save(figure, file)


def robustness(content: dict[str, Any], file: Path) -> None:
    """Dice over severity, a panel for each corruption."""
    names = list(next(iter(content["dice"].values())))
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(2 + 3.5 * columns, 1 + 3.5 * rows), sharey=True,
                                   squeeze=False)
    for unused in axes.flat[len(names):]:
        unused.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        for side, found in content["dice"].items():
            axis.plot([np.mean(row) for row in found[name]], "o-", label=side)
        axis.set(title=name, xlabel="severity", ylabel="Dice")
    _save(figure, file)


def cost(content: dict[str, Any], file: Path) -> None:
    """Seconds and peak memory of each kind of prediction."""
    rows = content["results"]
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(12, 0.3 * len(rows) + 2), sharey=True)
    names = [row["name"] for row in rows]
    time.barh(names, [row["seconds"] for row in rows])
    memory.barh(names, [row["memory_gb"] for row in rows])
    time.set(xlabel="seconds", xscale="log")
    memory.set(xlabel="peak memory, GB")
    time.invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


PLOTS = {"accuracy": accuracy, "robustness": robustness, "cost": cost}


def _dice(point: dict[str, Any]) -> float:
    return float(np.nanmean(np.nanmean(point["dice"], 0)))


def _save(figure: Any, file: Path) -> None:
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    folder = HERE / "figures"
    folder.mkdir(exist_ok=True)
    for kind, plot in PLOTS.items():
        for source in sorted((HERE / "results").glob(f"{kind}_*.json")):
            plot(json.loads(source.read_text()), folder / f"{source.stem}.png")
            print(folder / f"{source.stem}.png")


if __name__ == "__main__":
    main()
