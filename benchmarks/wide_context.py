"""Context beyond a tile: tile by tile against whole volume, at full and at low resolution, and the cascade.

    python benchmarks/wide_context.py FOLDER [--iterations 200]

Makes a data set in FOLDER and trains on it: 92 x 48 x 48 voxels, two balls of one look in the middle, and at one end a
bright slab, 30 voxels away or more. The ball that is nearer to the slab is of class 1, the other of class 2; a tile of
full resolution that holds a ball never holds the slab. 3d_fullres, both folds of 3d_lowres and the cascade train for as
many iterations each; so does a cascade whose first stage comes as channels of the image alone, as nnU-Net has it. Dice
on cases that no training saw, without mirroring. Writes its section of benchmarks/RESULTS.md and a JSON file; takes
about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk
from record import conditions, table, under, write_json, write_section

os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("nnUNet_def_n_proc", "1")

DATASET = "Dataset800_Context"
SHAPE, RADIUS, SLAB = (48, 48, 92), 5, 4
TRAINING, UNSEEN = 16, 6
PATCHES = {"3d_fullres": [24, 24, 24], "3d_lowres": [20, 20, 28]}
LOWRES_MM = 2.3
MEMORY_GB = 0.1
SAMPLES = 2
EPOCHS = 4
INPUT_ALONE = "3d_cascade_input_alone"
WAYS = ("3d_fullres", "3d_lowres", "3d_cascade_fullres", INPUT_ALONE)


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, (z, y, x): float32 and uint8."""
    rng = np.random.default_rng(seed)
    grid, near_start = np.indices(SHAPE), rng.random() < 0.5
    labels = np.zeros(SHAPE, np.uint8)
    for left in (True, False):
        across = [side / 2 + rng.uniform(-14, 14) for side in SHAPE[:2]]
        along = SHAPE[2] / 2 + (-1 if left else 1) * rng.uniform(RADIUS, RADIUS + 1)
        inside = ((grid - np.array([*across, along])[:, None, None, None]) ** 2).sum(0) < RADIUS ** 2
        labels[inside] = 1 if left == near_start else 2
    image = (labels > 0) + rng.normal(0, 0.3, labels.shape)
    image[..., slice(None, SLAB) if near_start else slice(-SLAB, None)] += 2
    return image.astype(np.float32), labels


def write_dataset(raw: Path) -> None:
    """In nnU-Net's format, with unseen cases and their truth below imagesTs and labelsTs."""
    for seed in range(TRAINING + UNSEEN):
        part = "Tr" if seed < TRAINING else "Ts"
        for array, name in zip(volume(seed), (f"images{part}/case_{seed:02d}_0000", f"labels{part}/case_{seed:02d}"),
                               strict=True):
            file = raw / f"{name}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(file))
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "near": 1, "far": 2}, "numTraining": TRAINING,
        "file_ending": ".nii.gz"}))


def plan(preprocessed: Path) -> None:
    """By the planner, but for patches and the low resolution; two folds; and the cascade without the first stage in its
    condition."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    from ldseg_auto.planners.api import plan_and_preprocess

    plan_and_preprocess([DATASET], gpu_memory_target_in_gb=MEMORY_GB, num_processes_fingerprint=1,
                        no_preprocessing=True)
    file = preprocessed / "LDSegPlans.json"
    plans = json.loads(file.read_text())
    stages = plans["configurations"]
    for name, patch in PATCHES.items():
        stages[name] |= {"patch_size": patch, "batch_size": 2}
    stages["3d_cascade_fullres"]["batch_size"] = 2
    stages["3d_lowres"]["spacing"] = [LOWRES_MM] * 3
    architecture = json.loads(json.dumps(stages["3d_cascade_fullres"]["architecture"]))
    architecture["arch_kwargs"]["previous_stage_channels"] = 0
    stages[INPUT_ALONE] = {"inherits_from": "3d_cascade_fullres", "architecture": architecture}
    stages["3d_lowres"]["next_stage"] = ["3d_cascade_fullres", INPUT_ALONE]
    file.write_text(json.dumps(plans))
    preprocess_dataset(800, "LDSegPlans", ["3d_fullres", "3d_lowres"], [1, 1])
    cases = [f"case_{seed:02d}" for seed in range(TRAINING)]
    (preprocessed / "splits_final.json").write_text(json.dumps([
        {"train": cases[half::2], "val": cases[1 - half::2]} for half in (0, 1)]))
    return plans


def dice(out: Path, raw: Path) -> list[float]:
    """Of each class, over all unseen cases."""
    both, either = np.zeros(2), np.zeros(2)
    for file in sorted((raw / "labelsTs").glob("*.nii.gz")):
        truth, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(each))) for each in (file, out / file.name))
        both += [np.sum((truth == c) & (found == c)) for c in (1, 2)]
        either += [np.sum(truth == c) + np.sum(found == c) for c in (1, 2)]
    return (2 * both / either).tolist()


def measure(folder: Path, raw: Path, configuration: str, whole: bool) -> dict[str, Any]:
    """Dice and seconds of one way of predicting; a cascade by the first stage's segmentations tile by tile."""
    from ldseg_auto.inference.run import predict_folder

    out = folder / f"{configuration}_{'whole' if whole else 'tiles'}"
    first = str(folder / "3d_lowres_tiles") if "cascade" in configuration else None
    started = perf_counter()
    predict_folder(str(raw / "imagesTs"), str(out), DATASET, configurations=[configuration], folds=["0"], device="cpu",
                   mirroring=False, num_processes_preprocessing=0, num_processes_export=0, progress_bar=False,
                   whole_volume=whole, previous_stage_folder=first, samples=SAMPLES)
    return {"configuration": configuration, "whole_volume": whole, "dice": dice(out, raw),
            "seconds_a_case": (perf_counter() - started) / UNSEEN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a new one")
    parser.add_argument("--iterations", type=int, default=200, help="of each of the five trainings (default: 200)")
    options = parser.parse_args()
    folder = Path(options.folder).absolute()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / variable).mkdir(parents=True)
        os.environ[variable] = str(folder / variable)
    import torch

    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
    from ldseg_auto.trainers.run import train_folds

    LDSegTrainer.validation_mirroring = False
    raw = folder / "nnUNet_raw" / DATASET
    write_dataset(raw)
    plan(folder / "nnUNet_preprocessed" / DATASET)
    for configuration in ("3d_lowres", "3d_fullres", "3d_cascade_fullres", INPUT_ALONE):
        if configuration != "3d_lowres":  # nothing reads their validation, which takes longer than their training
            LDSegTrainer.perform_actual_validation = lambda *_: None
        train_folds(DATASET, ["0", "1"] if configuration == "3d_lowres" else ["0"], configuration, device="cpu",
                    epochs=EPOCHS, iterations_per_epoch=options.iterations // EPOCHS, seed=0)
    results = [measure(folder, raw, configuration, whole) for configuration in ("3d_lowres", "3d_fullres",
                                                                               "3d_cascade_fullres", INPUT_ALONE)
               for whole in (False, True)]
    made = conditions(torch.get_num_threads())
    write_json(f"wide_context_{made['date']}", {**made, "iterations": options.iterations, "patches": PATCHES,
                                                "spacing_of_lowres": LOWRES_MM, "results": results})
    write_section("wide_context", section(results, options.iterations, made))


def section(results: list[dict[str, Any]], iterations: int, made: dict[str, Any]) -> str:
    """Of RESULTS.md."""
    by = {(row["configuration"], row["whole_volume"]): row for row in results}
    names = {INPUT_ALONE: "cascade, first stage as image channels alone"}
    rows = [[names.get(way, way), *(cell for whole in (False, True) for cell in (
        " ".join(f"{d:.2f}" for d in by[way, whole]["dice"]), f"{by[way, whole]['seconds_a_case']:.1f}"))]
        for way in WAYS]
    text = table(["", "tile by tile: Dice of near and far", "s a case", "whole volume", "s a case"], rows)
    patches = {name: "x".join(map(str, patch)) for name, patch in PATCHES.items()}
    return (f"## Context beyond a tile\n\nTwo balls of one look, told apart by a slab 30 voxels away or more "
            f"({'x'.join(map(str, SHAPE))} voxels, patches of {patches['3d_fullres']} at full resolution and of "
            f"{patches['3d_lowres']} voxels {LOWRES_MM:g} times as wide); {iterations} iterations a training, "
            f"{UNSEEN} unseen cases, {SAMPLES} samples.\n\n{text}\n\n{under(made)}")


if __name__ == "__main__":
    main()
