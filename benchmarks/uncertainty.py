"""How far the uncertainty of a prediction can be trusted: LDSegTrainer's samples against nnU-Net's softmax.

    python benchmarks/uncertainty.py Dataset004_Hippocampus --peer nnUNetTrainerAdamWWithinBudget

Predicts the validation cases of a fold with both models (ours: the mean of the plans' samples; no mirroring for
either), which must have been trained before, for the same time (benchmarks/accuracy.py). Temperature and intervals
are fitted on one half of the cases and measured on the other, and the other way round. Writes
benchmarks/results/uncertainty_*.json and the table of docs/uncertainty.md.
"""

from __future__ import annotations

import json
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from peers import register
from record import parser

from ldseg_auto.folders import load_plans, preprocessed_folder
from ldseg_auto.inference import finish
from ldseg_auto.inference.export import ExportOptions, export_prediction
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.search import load_case

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- table -->", "<!-- end of table -->"
ROWS = {"expected_calibration_error": "expected calibration error", "adaptive_calibration_error":
        "adaptive calibration error", "error_detection_auroc": "AUROC of confidence for wrong voxels",
        "error_of_expected_dice": "mean error of expected Dice",
        "correlation_of_expected_dice": "correlation of expected and true Dice",
        "area_under_risk_coverage": "area under the risk-coverage curve (risk: 1 - Dice)"}


def predict(model: Path, dataset: str, plans_name: str, fold: int, cases: list[str], out: Path) -> None:
    """Each case's segmentation and probabilities, of our model also its figures; no mirroring."""
    plans = load_plans(dataset, plans_name)
    folder = str(preprocessed_folder(dataset, plans, "3d_fullres"))
    data = infer_dataset_class(folder)(folder)
    device = torch.device("cpu")
    ours = plans_name == "LDSegPlans"
    predictor = (LDSegPredictor(device=device, use_mirroring=False, allow_tqdm=False, export=ExportOptions(maps=True))
                 if ours else nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=device,
                                              allow_tqdm=False))
    predictor.initialize_from_trained_model_folder(str(model), [fold], "checkpoint_final.pth")
    for case in cases:
        image, _, properties = load_case(data, case)
        if ours:
            predictor.predict_case(image, properties, str(out / case), save_probabilities=True)
        else:
            export_prediction(predictor.predict_logits_from_preprocessed_data(image), properties,
                              predictor.configuration_manager, predictor.plans_manager, predictor.dataset_json,
                              str(out / case), True)


def measure(out: Path, cases: list[str], model: Path) -> dict[str, Any]:
    """Quality as predicted, recalibrated by the other half, and coverage of the volumes' intervals."""
    halves = cases[::2], cases[1::2]
    raw, recalibrated = [], []
    for mine, others in (halves, halves[::-1]):
        fitted_to = finish.Cases(out, others, model)
        temperature = finish.temperature_of(fitted_to)
        measured = finish.Cases(out, mine, model)
        raw.append(finish.quality(measured, 1.0))
        recalibrated.append(finish.quality(measured, temperature, finish.lines_of(fitted_to, temperature))
                            | {"temperature": temperature})
    mean = lambda rows: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}  # noqa: E731
    every = finish.Cases(out, cases, model)
    dice = [every.dice(case.segmentation, case.truth) for case in every]
    result = {"dice": float(np.nanmean(dice)), "as predicted": mean(raw), "recalibrated": mean(recalibrated)}
    if (out / "uncertainty").is_dir():
        volume, unit, true = finish.volumes_of(every)
        result["coverage"] = {name: finish.coverage_on_others(volume[:, k] - true[:, k], unit[:, k])
                              for k, name in enumerate(every.classes)}
        scales = [finish.interval_scale(volume[:, k] - true[:, k], unit[:, k]) for k in range(len(every.classes))]
        result["width_over_volume"] = {name: float(np.mean(2 * scale * unit[:, k] / true[:, k]))
                                       for k, (name, scale) in enumerate(zip(every.classes, scales, strict=True))
                                       if scale is not None}
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, a column for each model and each state of its probabilities."""
    columns = [(name, state) for name in results for state in ("as predicted", "recalibrated")]
    lines = ["| | " + " | ".join(f"{name}, {state}" for name, state in columns) + " |",
             "|---|" + "---|" * len(columns),
             "| Dice | " + " | ".join(f"{results[name]['dice']:.3f}" for name, _ in columns) + " |"]
    for key, label in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(f"{results[n][state][key]:.4f}" for n, state in columns) + " |")
    lines.append("| temperature | " + " | ".join(f"{results[n][state].get('temperature', 1.0):.2f}"
                                                 for n, state in columns) + " |")
    for name, result in results.items():
        if "coverage" in result:
            shares = ", ".join(f"{label} {value:.3f}" for label, value in result["coverage"].items())
            widths = ", ".join(f"{label} {value:.2f}" for label, value in result["width_over_volume"].items())
            lines += ["", f"{name}: volumes within their 90 % interval, on cases it was not fitted to: {shares}; width "
                          f"of the interval over the true volume: {widths}."]
    return "\n".join(lines)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peer", default="nnUNetTrainerAdamWWithinBudget", help="nnU-Net's trainer")
    arguments.add_argument("--fold", type=int, default=0)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    register()
    results_folder = Path(os.environ["nnUNet_results"]) / options.dataset
    splits = json.loads((Path(os.environ["nnUNet_preprocessed"]) / options.dataset / "splits_final.json").read_text())
    cases = sorted(splits[options.fold]["val"])
    results = {}
    for name, trainer, plans_name in (("ours", "LDSegTrainer", "LDSegPlans"), ("nnU-Net", options.peer, "nnUNetPlans")):
        model = results_folder / f"{trainer}__{plans_name}__3d_fullres"
        with tempfile.TemporaryDirectory() as folder:
            predict(model, options.dataset, plans_name, options.fold, cases, Path(folder))
            results[name] = measure(Path(folder), cases, model)
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    file = ROOT / "benchmarks" / "results" / f"uncertainty_{options.dataset}_{date.today()}.json"
    file.write_text(json.dumps({"arguments": vars(options), "cases": len(cases), "results": results}, indent=1))
    page = ROOT / "docs" / "uncertainty.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(f"{before}{START}\n{table(results)}\n{END}{rest.partition(END)[2]}")
    print(table(results))


if __name__ == "__main__":
    main()
