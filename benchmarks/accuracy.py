"""Dice after equal wall time of training, and against seconds of prediction: every side on the same cores and cases.

    python benchmarks/accuracy.py Dataset004_Hippocampus --minutes 5 20 --sides ldseg nnunet nnunet-adamw

Needs nnU-Net's three environment variables and the plans of the sides that are asked for: ldseg_plan_and_preprocess
-d ID for ours, nnUNetv2_plan_and_preprocess -d ID -c 3d_fullres for nnU-Net's, with -pl nnUNetPlannerResEncM too for
resenc-m, which is trained with the batch of nnU-Net's plans (its own is a GPU's). nnU-Net's augmentation for all,
learning rates annealed to the budget. Each training runs in a process of its own, one after the other; models lie in
nnUNet_results/benchmarks/MINUTESmin, and one that is there is neither trained nor predicted with again: calls of some
sides each, then one of all, make one table. Every validation case is predicted from nnUNet_raw at several operating
points. With one thread and `--clock processor` the minutes are those that the training had a core, whatever else the
machine does. Writes benchmarks/results/accuracy_*.json after every training, and the section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
from models import Model, dice_per_class, results_of, validation_cases
from peers import SIDES
from record import HERE, conditions, in_own_process, parser, table, under, write_json, write_section
from robustness import images

from ldseg_auto.evaluation.statistics import bootstrap_interval, paired_wilcoxon

CLOCKS = {"wall": monotonic, "processor": process_time}
POINTS_OF_OURS: dict[str, dict[str, Any]] = {
    "1 x 1": {"samples": 1, "steps": 1}, "5 x 2": {"samples": 5, "steps": 2}, "16 x 2": {"samples": 16, "steps": 2},
    "1 x 1, mirroring": {"samples": 1, "steps": 1, "mirroring": True},
    "2 x 2, mirroring": {"samples": 2, "steps": 2, "mirroring": True}}
POINTS_OF_THE_PAPER = {"1 x 15": {"samples": 1, "steps": 15}, "5 x 15": {"samples": 5, "steps": 15}}
POINTS_OF_A_REGRESSOR = {name: POINTS_OF_OURS[name] for name in ("1 x 1", "1 x 1, mirroring")}
POINTS_OF_NNUNET: dict[str, dict[str, Any]] = {"one pass": {}, "mirroring": {"mirroring": True}}
DEFAULT_POINTS = ("5 x 2", "1 x 15", "one pass")  # what is compared first: no mirroring


def points_of(side: str) -> dict[str, dict[str, Any]]:
    """Operating points: name -> arguments of `Model`."""
    if not SIDES[side].is_ours:
        return POINTS_OF_NNUNET
    return {"ldseg-paper": POINTS_OF_THE_PAPER, "ldseg-at-T": POINTS_OF_A_REGRESSOR}.get(side, POINTS_OF_OURS)


def default_point(side: str) -> str:
    return next((point for point in points_of(side) if point in DEFAULT_POINTS), next(iter(points_of(side))))


def train(side: str, dataset: str, fold: int, options: argparse.Namespace, minutes: float) -> None:
    """In a process of its own, whose nnUNet_results is the budget's folder."""
    import random

    import torch

    from ldseg_auto.folders import load_plans
    from ldseg_auto.trainers import budget

    budget.monotonic = clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    plans = load_plans(dataset, SIDES[side].plans) | {"continue_training": False}
    if SIDES[side].batch_of is not None:
        batch = load_plans(dataset, SIDES[side].batch_of)["configurations"]["3d_fullres"]["batch_size"]
        plans["configurations"]["3d_fullres"]["batch_size"] = batch
    description = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "dataset.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer: Any = SIDES[side].trainer(plans, "3d_fullres", fold, description, device)
    trainer.max_minutes = minutes
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
    started = clock()
    trainer.run_training()
    facts = {"iterations": trainer._iterations_done, "batch_size": trainer.batch_size, "seconds": clock() - started}
    if SIDES[side].is_ours:
        facts["signs"] = _signs(trainer)
    _facts_of(trainer.output_folder).write_text(json.dumps(facts))


def _signs(trainer: Any) -> dict[str, Any]:
    """Of latent diffusion, on validation cases."""
    from ldseg_auto.evaluation import latent_signs
    from ldseg_auto.trainers.signs_report import SAMPLES, measure_on_cases

    network = trainer.unwrapped_network
    with trainer.average.swapped(network):
        return latent_signs.summary(measure_on_cases(trainer, network), SAMPLES, network.config.sampler_steps)


def _facts_of(folder: str | Path) -> Path:
    """Written when a training is finished; predictions are added to it."""
    return Path(folder) / "benchmark.json"


def predict(side: str, dataset: str, fold: int, threads: int) -> dict[str, dict[str, Any]]:
    """Operating point -> Dice of each case and class, and seconds of each case, by a trained model."""
    import torch

    torch.set_num_threads(threads)
    cases = validation_cases(dataset, fold)
    found = {}
    data: list[tuple[Any, ...]] = []
    for point, arguments in points_of(side).items():
        model = Model(side, dataset, fold, Path(os.environ["nnUNet_results"]), **arguments)
        p = model.predictor
        data = data or images(dataset, cases, p.plans_manager, p.dataset_json["file_ending"])
        labels = list(p.label_manager.foreground_labels)
        predictions = [(model.predict(image, properties), truth) for image, properties, truth in data]
        found[point] = {"dice": [dice_per_class(made.segmentation, truth, labels) for made, truth in predictions],
                        "seconds": [made.seconds for made, _ in predictions]}
    return found


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    base = Path(os.environ["nnUNet_results"])
    results = []
    for fold in options.folds:
        for minutes in options.minutes:
            os.environ["nnUNet_results"] = str(results_of(minutes, base))  # for the processes that start from here
            for side in options.sides:
                file = _facts_of(results_of(minutes, base) / options.dataset / SIDES[side].folder / f"fold_{fold}")
                if not file.is_file():
                    in_own_process(train, side, options.dataset, fold, options, minutes)
                facts = json.loads(file.read_text())
                if "points" not in facts:
                    facts["points"] = in_own_process(predict, side, options.dataset, fold, options.threads)
                    file.write_text(json.dumps(facts))
                results.append({"side": side, "fold": fold, "minutes": minutes, **facts})
                write(options, results)
    return results


def report(results: list[dict[str, Any]]) -> str:
    """A row for every operating point; the difference is to the first side's default point, same fold and budget."""
    rows = []
    for result in results:
        first = next(r for r in results if all(r[key] == result[key] for key in ("fold", "minutes")))
        for point, found in result["points"].items():
            table_of_dice = np.array(found["dice"])
            classes = " ".join(f"{value:.3f}" for value in np.nanmean(table_of_dice, 0))
            rows.append([str(result["fold"]), f"{result['minutes']:g}", result["side"], point,
                         f"{result['iterations']} x {result['batch_size']}",
                         f"{np.nanmean(np.nanmean(table_of_dice, 0)):.4f}", classes,
                         f"{np.mean(found['seconds']):.3f}", _against(first, result, point)])
    return table(["fold", "minutes", "side", "prediction", "iterations x batch", "Dice", "per class", "s a case",
                  "less the first side, 95 % interval, Wilcoxon p per class"], rows)


def _against(first: dict[str, Any], result: dict[str, Any], point: str) -> str:
    if result is first and point == default_point(first["side"]):
        return ""
    dice, reference = (np.array(r["points"][p]["dice"]) for r, p in (
        (result, point), (first, default_point(first["side"]))))
    interval = bootstrap_interval(dice - reference)
    tests = [paired_wilcoxon(a, b).p_value for a, b in zip(dice.T, reference.T, strict=True)]
    ends = "" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]"
    return f"{np.nanmean(dice - reference):+.4f}{ends}; " + " ".join(f"{p:.2g}" for p in tests)


def report_signs(results: list[dict[str, Any]]) -> str:
    """The three signs of every training of ours."""
    rows = []
    for result in (r for r in results if "signs" in r):
        signs = result["signs"]
        gain, ends = signs["gain_of_samples"], signs["gain_of_samples_95"] or (float("nan"),) * 2
        rows.append([str(result["fold"]), f"{result['minutes']:g}", result["side"],
                     f"{signs['use_of_latent'] or 0:.2f}", f"{signs['coding_dice']:.3f}",
                     f"{signs['coding_error_over_prediction_error']:.2f}",
                     f"{gain:+.4f} [{ends[0]:+.4f}, {ends[1]:+.4f}]", f"{signs['pairwise_dice']:.3f}"])
    return table(["fold", "minutes", "side", "use of the latent (at least .25)", "label coding",
                  "its error over the prediction's (at most .5)", "gain of 5 samples over one step, 95 % (above 0)",
                  "pairwise Dice"], rows) if rows else ""


def write(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    context = conditions(options.threads)
    name = f"accuracy_{options.dataset}_{'_'.join(f'{m:g}' for m in options.minutes)}min_{'_'.join(options.sides)}"
    write_json(name, {**context, "results": results})
    context["clock"] = options.clock
    write_section(name, f"{report(results)}\n\n{report_signs(results)}\n\n{under(context)}", HERE / "RESULTS.md")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, nargs="+", default=[20.0], help="one budget or several")
    arguments.add_argument("--sides", nargs="+", choices=SIDES, default=["ldseg", "nnunet", "nnunet-adamw"])
    arguments.add_argument("--folds", type=int, nargs="+", default=[0])
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--clock", choices=CLOCKS, default="wall", help="what the minutes are counted by")
    options = arguments.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    os.environ.setdefault("nnUNet_def_n_proc", str(options.threads))
    print(report(run(options)))


if __name__ == "__main__":
    main()
