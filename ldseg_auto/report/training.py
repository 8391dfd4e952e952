"""How the folds were trained: losses, Dice, the three signs of latent diffusion."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ldseg_auto.evaluation.latent_signs import MIN_USE_OF_LATENT, SERIES
from ldseg_auto.folders import Fold
from ldseg_auto.report.parts import paragraph, plot, table

Logging = Mapping[str, Sequence[Any]]


def curves_section(logging: Mapping[Fold, Logging]) -> list[str]:
    """HTML: of all folds together losses, Dice, learning rate and time; of each fold the signs by epoch.

    Args:
        logging: what each fold's checkpoint holds, one value an epoch.
    """
    epochs = ", ".join(f"{len(each.get('train_losses', ()))} in fold {fold}" for fold, each in logging.items())
    parts = [paragraph(f"Epochs: {epochs}."),
             "<div class=plots>",
             plot(partial(_draw, series={"train_losses": "-", "val_losses": "--"}, logging=logging, ylabel="loss"),
                  "Training loss (solid) and validation loss (dashed) over epochs, one colour a fold.",
                  "Loss: training solid, validation dashed."),
             plot(partial(_draw, series={"ema_fg_dice": "-", "mean_fg_dice": ":"}, logging=logging,
                          ylabel="Dice on\nvalidation patches"),
                  "Mean Dice on validation patches over epochs, one colour a fold: dotted each epoch, solid its moving "
                  f"average. {_last('ema_fg_dice', logging)}", "Dice: each epoch dotted, moving average solid."),
             plot(partial(_draw, series={"lrs": "-"}, logging=logging, ylabel="learning rate"),
                  "Learning rate over epochs, one colour a fold.", inches=(7, 2)),
             plot(partial(_draw, series={"seconds": "-"}, ylabel="seconds\nan epoch",
                          logging={fold: {"seconds": _seconds(each)} for fold, each in logging.items()}),
                  "Seconds an epoch, one colour a fold.", inches=(7, 2)), "</div>"]
    for fold, each in logging.items():
        if any(each.get(name) for name in SERIES):
            parts += [f"<h3>Signs of latent diffusion, fold {html.escape(str(fold))}</h3>",
                      plot(partial(_draw_signs, logging=each), "The Dice values behind the three signs over epochs: "
                           + ", ".join(f"{_plain(name)} {each[name][-1]:.3f} at the end"
                                       for name in SERIES if each.get(name)) + ".")]
    return parts


def signs_section(signs: Mapping[Fold, Mapping[str, Any]]) -> list[str]:
    """HTML: a table of the three signs measured after training, one row a fold.

    Args:
        signs: each fold's latent_signs.json.
    """
    if not signs:
        return []
    rows = [[f"fold {fold}", str(each["cases"]),
             f"{_percent(each['use_of_latent'])}, {_verdict(each['use_of_latent_holds'])}",
             f"{_percent(each['coding_error_over_prediction_error'])}, {_verdict(each['label_coding_holds'])}",
             f"{each['gain_of_samples']:+.4f}{_interval(each['gain_of_samples_95'])}, "
             f"{_verdict(each['gain_of_samples_holds'])}"] for fold, each in signs.items()]
    return ["<h3>The three signs after training</h3>",
            paragraph("They tell latent diffusion from a regression in disguise: is the estimate of the latent better "
                      "where z_t holds part of it, does the code of the labels lose less than the prediction, and does "
                      "the mean of samples beat a single step?"),
            table(["", "cases", f"use of the latent (at least {MIN_USE_OF_LATENT:.0%})",
                   "label-coding error over prediction error (at most 50%)",
                   "Dice that the mean of samples gains over one step (above 0)"], rows)]


def _draw(axes: Axes, series: Mapping[str, str], logging: Mapping[Fold, Logging], ylabel: str) -> None:
    for i, (fold, each) in enumerate(logging.items()):
        for j, (name, style) in enumerate(series.items()):
            values = each.get(name, ())
            axes.plot(range(len(values)), values, style, color=f"C{i}", label=None if j else f"fold {fold}",
                      marker="o" if len(values) == 1 else None)
    _label_epochs(axes, ylabel)
    axes.legend(fontsize="small")


def _draw_signs(axes: Axes, logging: Logging) -> None:
    for name in SERIES:
        values = logging.get(name, ())
        axes.plot(range(len(values)), values, label=_plain(name), marker="o" if len(values) == 1 else None)
    _label_epochs(axes, "Dice on\nvalidation patches")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _label_epochs(axes: Axes, ylabel: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=ylabel)


def _seconds(logging: Logging) -> list[float]:
    return [end - start for start, end in zip(logging.get("epoch_start_timestamps", ()),
                                              logging.get("epoch_end_timestamps", ()), strict=False)]


def _last(name: str, logging: Mapping[Fold, Logging]) -> str:
    ends = ", ".join(f"{each[name][-1]:.3f} in fold {fold}" for fold, each in logging.items() if each.get(name))
    return f"At the end {ends}." if ends else ""


def _plain(name: str) -> str:
    if name.startswith("dice_at_"):
        return f"Dice, {name.removeprefix('dice_at_')}% signal in z_t"
    return name.replace("_", " ").replace("dice", "Dice")


def _percent(share: float | None) -> str:
    return "not defined" if share is None else f"{share:.0%}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f" (95% interval {bounds[0]:+.4f} to {bounds[1]:+.4f})"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"
