"""The whole way on a phantom: data, plans, one fold, predictions of held-out cases, Dice, pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from time import monotonic

import numpy as np

from ldseg_auto.demo.anatomy import LABELS
from ldseg_auto.demo.phantom import write_dataset
from ldseg_auto.demo.pictures import draw_case
from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.folders import PREPROCESSED, RAW, RESULTS

DATASET_ID, NAME = 900, "LDSegDemo"
_DATASET = f"Dataset{DATASET_ID}_{NAME}"
_NUM_TRAIN, _NUM_TEST = 24, 6
_CONFIGURATION = "3d_fullres"
_FOREGROUND = {name: value for name, value in LABELS.items() if value > 0}


def run_demo(folder: str, minutes: float = 3.2, seed: int = 0, device: str | None = None) -> dict[str, float]:
    """Make a data set, plan, train fold 0, predict the held-out cases, measure and draw them.

    Sets nnU-Net's environment variables to folders below `folder` for this process.

    Args:
        folder: everything is written below it; an earlier demo there is replaced.
        minutes: of training.
        seed: of the data and of the training.
        device: "cuda", "cpu" or "mps"; None takes the GPU if there is one.

    Returns:
        Mean Dice over the held-out cases, per class.

    Raises:
        LDSegError: a step left out something it should have written.
    """
    started = monotonic()
    root = Path(folder).resolve()
    if root.exists() and not root.is_dir():
        raise LDSegError(f"{root} is a file.", "Give a folder to -o.")
    _use_folders(root)
    _say("1/5", f"Making {_NUM_TRAIN} cases to train on and {_NUM_TEST} held out")
    dataset = write_dataset(root / RAW, DATASET_ID, NAME, _NUM_TRAIN, _NUM_TEST, seed)
    _say("2/5", "Planning and preprocessing")
    _plan()
    _say("3/5", f"Training one fold for {minutes:g} minutes")
    model = _train(minutes, seed, device)
    _say("4/5", "Predicting the held-out cases")
    predictions = _predict(dataset, seed, device)
    _say("5/5", "Measuring and drawing")
    scores = measure(predictions, dataset / "labelsTs")
    pictures = _draw(dataset, predictions)
    _require_files([model / "checkpoint_final.pth", model / "validation" / "summary.json", *pictures])
    _print_scores(scores)
    _print_places(dataset, predictions, pictures[0].parent, model.parent)
    print(f"Done in {(monotonic() - started) / 60:.1f} minutes.")
    return {name: float(np.mean([case[name] for case in scores.values()])) for name in _FOREGROUND}


def measure(predictions: Path, truths: Path) -> dict[str, dict[str, float]]:
    """Dice of each case and class, from the files: {case: {class: Dice}}."""
    import SimpleITK as sitk

    scores = {}
    for truth in sorted(truths.glob("*.nii.gz")):
        true, predicted = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (truth, predictions / truth.name))
        scores[truth.name.removesuffix(".nii.gz")] = {name: dice(predicted, true, value)
                                                      for name, value in _FOREGROUND.items()}
    return scores


def _use_folders(root: Path) -> None:
    for variable in (RAW, PREPROCESSED, RESULTS):
        path = root / variable
        os.environ[variable] = str(path)
        if (path / _DATASET).exists():
            rmtree(path / _DATASET)
        path.mkdir(parents=True, exist_ok=True)


def _plan() -> None:
    from ldseg_auto.planners import api, explain

    plans = api.plan_and_preprocess([DATASET_ID], configurations=[_CONFIGURATION])
    print(explain.explain(plans[_DATASET]))


def _train(minutes: float, seed: int, device: str | None) -> Path:
    from ldseg_auto.trainers.run import train_folds

    return train_folds(_DATASET, [0], _CONFIGURATION, device=device, max_minutes=minutes, seed=seed, restart=True)[0]


def _predict(dataset: Path, seed: int, device: str | None) -> Path:
    from ldseg_auto.inference.run import predict_folder

    predictions = dataset / "predictionsTs"
    predict_folder(str(dataset / "imagesTs"), str(predictions), _DATASET, configurations=[_CONFIGURATION],
                   device=device, num_processes_preprocessing=1, num_processes_export=1, seed=seed, uncertainty=True)
    return predictions


def _draw(dataset: Path, predictions: Path) -> list[Path]:
    pictures = []
    for truth in sorted((dataset / "labelsTs").glob("*.nii.gz")):
        case = truth.name.removesuffix(".nii.gz")
        entropy = predictions / "uncertainty" / f"{case}_entropy.nii.gz"
        _require_files([entropy])
        pictures.append(dataset / "picturesTs" / f"{case}.png")
        draw_case(dataset / "imagesTs" / f"{case}_0000.nii.gz", truth, predictions / truth.name, entropy, pictures[-1],
                  LABELS)
    return pictures


def _require_files(files: list[Path]) -> None:
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise LDSegError(f"The demo did not write {', '.join(missing)}.", "Look for the first error above.")


def _print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    print("\nDice on cases never trained on")
    print(f"{'case':12}" + "".join(f"{name:>10}" for name in _FOREGROUND))
    for case, values in scores.items():
        print(f"{case:12}" + "".join(f"{values[name]:10.3f}" for name in _FOREGROUND))
    means = [float(np.mean([case[name] for case in scores.values()])) for name in _FOREGROUND]
    print(f"{'mean':12}" + "".join(f"{value:10.3f}" for value in means))
    print(f"Mean Dice over the classes: {np.mean(means):.3f}\n")


def _print_places(dataset: Path, predictions: Path, pictures: Path, model: Path) -> None:
    for what, where in (("held-out truth", dataset / "labelsTs"), ("predictions", predictions),
                        ("uncertainty", predictions / "uncertainty"), ("pictures", pictures), ("trained model", model)):
        print(f"{what + ':':16}{where}")


def _say(step: str, what: str) -> None:
    print(f"\n[{step}] {what}", flush=True)
