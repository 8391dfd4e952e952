"""Iterations a second and peak memory of training, ours against nnU-Net's, and what the loader's share of it is.

    python benchmarks/training_cost.py Dataset004_Hippocampus [--iterations 12] [--threads 2] [--workers 0 1]

Same patch and batch (nnU-Net's) for both. Each side runs in a process of its own. Writes
benchmarks/results/training_cost_*.json and the section of RESULTS.md.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from peers import NNUNET, SIDES
from record import conditions, in_own_process, parser, table, under, write_json, write_section

_WARM_UP = 2


def measure(side: str, dataset: str, iterations: int, threads: int) -> dict[str, Any]:
    """Medians over iterations, seconds, and the peak of this process's memory, GB."""
    import tempfile

    import torch

    from ldseg_auto.folders import load_plans

    torch.set_num_threads(threads)
    reference = load_plans(dataset, NNUNET)["configurations"]["3d_fullres"]
    plans = load_plans(dataset, SIDES[side].plans) | {"continue_training": False}
    plans["configurations"]["3d_fullres"].update(patch_size=reference["patch_size"], batch_size=reference["batch_size"])
    description = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "dataset.json").read_text())
    trainer: Any = SIDES[side].trainer(plans, "3d_fullres", 0, description, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as output:
        trainer.output_folder, trainer.log_file = output, str(Path(output) / "log.txt")
        trainer.disable_checkpointing = True
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loading, stepping = [], []
        for _ in range(iterations + _WARM_UP):
            started = perf_counter()
            batch = next(trainer.dataloader_train)
            loaded = perf_counter()
            trainer.train_step(batch)
            loading.append(loaded - started)
            stepping.append(perf_counter() - loaded)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer.on_train_end()
    load, step = median(loading[_WARM_UP:]), median(stepping[_WARM_UP:])
    return {"side": side, "load_s": load, "step_s": step, "iterations_per_s": 1 / (load + step),
            "loader_share": load / (load + step), "peak_gb": peak * 1024 / 1e9, "before_gb": before * 1024 / 1e9}


def report(found: list[dict[str, Any]]) -> str:
    return table(["side", "workers", "iterations/s", "loading, s", "step, s", "loader's share", "peak, GB"],
                 [[row["side"], str(row["workers"]), f"{row['iterations_per_s']:.3f}", f"{row['load_s']:.3f}",
                   f"{row['step_s']:.3f}", f"{row['loader_share']:.0%}", f"{row['peak_gb']:.2f}"] for row in found])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--iterations", type=int, default=12)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="values of nnUNet_n_proc_DA")
    options = arguments.parse_args()
    found = []
    for workers in options.workers:
        os.environ["nnUNet_n_proc_DA"] = str(workers)
        for side in ("ldseg", "nnunet-adamw"):
            row = in_own_process(measure, side, options.dataset, options.iterations, options.threads)
            found.append(row | {"workers": workers})
    context = conditions(options.threads)
    write_json(f"training_cost_{options.dataset}", {**context, "results": found})
    write_section(f"training cost {options.dataset}", f"{report(found)}\n\n{under(context)}")
    print(report(found))


if __name__ == "__main__":
    main()
