"""Dice of corrupted images: trained models of several sides on the same images.

    python benchmarks/robustness.py Dataset004_Hippocampus --minutes 20 --sides ldseg nnunet-adamw-16 nnunet-no-skips-16

Needs models that benchmarks/accuracy.py has trained, and torchio. Raw validation images are corrupted, then
preprocessed as any image is; no mirroring. Writes benchmarks/results/robustness_*.json and the section of RESULTS.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruptions import CORRUPTIONS, SEVERITIES, area_under, corrupted
from models import Model, dice_per_class, results_of, validation_cases
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from peers import SIDES
from record import conditions, parser, table, under, write_json, write_section
from tqdm import tqdm

from ldseg_auto.evaluation.statistics import bootstrap_interval


def images(dataset: str, cases: list[str], plans_manager: PlansManager, ending: str) -> list[tuple[Any, ...]]:
    """(image, properties, truth) of each case, read from nnUNet_raw."""
    raw = Path(os.environ["nnUNet_raw"]) / dataset
    reader = plans_manager.image_reader_writer_class()
    read = []
    for case in cases:
        channels = sorted(str(path) for path in (raw / "imagesTr").glob(f"{case}_????{ending}"))
        truth, _ = reader.read_seg(str(raw / "labelsTr" / f"{case}{ending}"))
        read.append((*reader.read_images(channels), truth[0]))
    return read


def measure(model: Model, data: list[tuple[Any, ...]], labels: list[int], corruptions: list[str],
            progress: tqdm) -> dict[str, list[list[float]]]:
    """Corruption -> of each severity, each case's mean Dice over classes."""
    found = {}
    clean = [np.nanmean(dice_per_class(model.predict(image, properties).segmentation, truth, labels))
             for image, properties, truth in data]
    for name in corruptions:
        rows = [list(map(float, clean))]
        for severity in SEVERITIES[1:]:
            rows.append([])
            for number, (image, properties, truth) in enumerate(data):
                segmentation = model.predict(corrupted(name, image, severity, number), properties).segmentation
                rows[-1].append(float(np.nanmean(dice_per_class(segmentation, truth, labels))))
                progress.update()
        found[name] = rows
    return found


def report(results: dict[str, dict[str, list[list[float]]]]) -> str:
    """A row for every corruption and side; its loss is compared with the first side's, case by case."""
    rows = []
    for name in next(iter(results.values())):
        losses = {side: np.subtract(found[name][0], found[name][3]) for side, found in results.items()}
        first = next(iter(losses.values()))
        for side, found in results.items():
            means = [float(np.mean(row)) for row in found[name]]
            interval = bootstrap_interval(losses[side] - first)
            less = "" if losses[side] is first or interval is None else (
                f"{np.mean(losses[side] - first):+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]")
            rows.append([name, side, *(f"{mean:.3f}" for mean in means), f"{means[0] - means[3]:.3f}", less,
                         f"{area_under(means):.3f}"])
    return table(["corruption", "side", *(f"severity {s}" for s in SEVERITIES), "loss at 3",
                  "less the first side's, 95 %", "area"], rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=20.0, help="of the training whose models are taken")
    arguments.add_argument("--sides", nargs="+", choices=SIDES,
                           default=["ldseg", "nnunet-adamw-16", "nnunet-no-skips-16"])
    arguments.add_argument("--fold", type=int, default=0)
    arguments.add_argument("--cases", type=int, default=20, help="the first of the fold's validation cases")
    arguments.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=list(CORRUPTIONS))
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    results = results_of(options.minutes, Path(os.environ["nnUNet_results"]))
    cases = validation_cases(options.dataset, options.fold)[:options.cases]
    found: dict[str, Any] = {}
    with tqdm(total=len(options.sides) * len(options.corruptions) * (len(SEVERITIES) - 1) * len(cases)) as progress:
        for side in options.sides:
            model = Model(side, options.dataset, options.fold, results)
            p = model.predictor
            data = images(options.dataset, cases, p.plans_manager, p.dataset_json["file_ending"])
            found[side] = measure(model, data, list(p.label_manager.foreground_labels),
                                  options.corruptions, progress)
    context = conditions(options.threads)
    name = f"robustness_{options.dataset}_{options.minutes:g}min_{len(cases)}cases_{'_'.join(options.sides)}"
    write_json(name, {**context, "cases": cases, "dice": found})
    write_section(name,
                  f"{len(cases)} cases of fold {options.fold}, {options.minutes:g} minutes of training for each:\n\n"
                  f"{report(found)}\n\n{under(context)}")
    print(report(found))


if __name__ == "__main__":
    main()
