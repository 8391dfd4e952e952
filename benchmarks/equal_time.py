"""Dice after equal wall time of training: LDSegTrainer and nnU-Net, one after the other on the same cores.

    python benchmarks/equal_time.py DATASET --minutes 20

Needs nnU-Net's three environment variables and both plans: ldseg_plan_and_preprocess -d DATASET, and
nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres. nnU-Net's augmentation for all, learning rates annealed to the
budget, no mirroring at test time, Dice from the real validation's summary.json. Each side runs in a process of its
own. Writes benchmarks/results/equal_time_*.json and a row a side to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import monotonic

HERE = Path(__file__).resolve().parent
SIDES = ("ldseg", "nnunet", "nnunet-adamw")


def train_and_validate(side: str, dataset: str, fold: int, minutes: float, threads: int, seed: int) -> dict:
    """Train one side, validate without mirroring, and read back what the validation wrote."""
    import random

    import numpy as np
    import torch
    from peers import PEERS

    from ldseg_auto.folders import load_plans
    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

    torch.set_num_threads(threads)
    plans = load_plans(dataset, "LDSegPlans" if side == "ldseg" else "nnUNetPlans") | {"continue_training": False}
    description = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "dataset.json").read_text())
    cls = LDSegTrainer if side == "ldseg" else PEERS[side]
    trainer = cls(plans, "3d_fullres", fold, description, torch.device("cpu"))
    trainer.max_minutes = minutes
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    started = monotonic()
    trainer.run_training()
    trained = monotonic()
    trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    result = {"side": side, "iterations": trainer._iterations_done, "training_s": trained - started,
              "validation_s": monotonic() - trained, "dice": summary["foreground_mean"]["Dice"],
              "dice_per_class": {k: v["Dice"] for k, v in summary["mean"].items()},
              "batch_size": trainer.batch_size}
    signs = folder / "latent_signs.json"
    return result | ({"signs": json.loads(signs.read_text())} if signs.is_file() else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="full name, DatasetXXX_NAME")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES[:2]))
    arguments = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    os.environ.setdefault("nnUNet_def_n_proc", str(arguments.threads))
    results = []
    for side in arguments.sides:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            results.append(process.submit(train_and_validate, side, arguments.dataset, arguments.fold,
                                          arguments.minutes, arguments.threads, arguments.seed).result())
        write(arguments, results)


def write(arguments: argparse.Namespace, results: list[dict]) -> None:
    """The whole run as JSON, and the last side as a row of RESULTS.md."""
    import torch

    (HERE / "results").mkdir(exist_ok=True)
    record = {"date": date.today().isoformat(), "machine": platform.processor() or platform.machine(),
              "torch": torch.__version__, "arguments": vars(arguments), "results": results}
    sides = "_".join(result["side"] for result in results)
    name = f"equal_time_{arguments.dataset}_{arguments.minutes:g}min_{sides}_{record['date']}.json"
    (HERE / "results" / name).write_text(json.dumps(record, indent=2))
    last = results[-1]
    classes = " ".join(f"{value:.3f}" for value in last["dice_per_class"].values())
    with (HERE / "RESULTS.md").open("a") as table:
        table.write(f"| {record['date']} | {arguments.dataset} fold {arguments.fold} | {last['side']} | "
                    f"{arguments.minutes:g} | {last['iterations']} x {last['batch_size']} | {last['dice']:.4f} | "
                    f"{classes} | {arguments.threads} | nnunetv2 {version('nnunetv2')} "
                    f"torch {torch.__version__} |\n")


if __name__ == "__main__":
    main()
