"""Generated data sets of the kinds that nnU-Net's users bring; planned, trained and predicted by the real commands."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from ldseg_auto.cli import plan_and_preprocess, predict, train

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ALONE = ["-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar"]


class Geometry(NamedTuple):
    """Of a volume, x y z."""

    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)


class Case(NamedTuple):
    """Image (channels, z, y, x) and labels (z, y, x)."""

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry = Geometry()


def write_volume(array: np.ndarray, file: Path, geometry: Geometry) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def write_case(folder: Path, name: str, case: Case, labelled: bool = True, ending: str = ".nii.gz") -> None:
    for channel, volume in enumerate(case.image):
        write_volume(volume, folder / ("imagesTr" if labelled else "imagesTs") / f"{name}_{channel:04d}{ending}",
                     case.geometry)
    write_volume(case.labels.astype(np.uint8), folder / ("labelsTr" if labelled else "labelsTs") / f"{name}{ending}",
                 case.geometry)


class World:
    """nnU-Net's folders below `root` with one data set."""

    def __init__(self, root: Path, number: int, name: str):
        self.root, self.number, self.name = root, number, f"Dataset{number:03d}_{name}"
        self.folders = {variable: root / variable for variable in FOLDERS}
        self.raw, self.preprocessed_folder, self.results = (folder / self.name for folder in self.folders.values())
        self.raw.mkdir(parents=True)
        for folder in self.folders.values():
            folder.mkdir(exist_ok=True)

    def describe(self, channels: Mapping[str, str], labels: Mapping[str, Any], cases: int, ending: str = ".nii.gz",
                 **more: Any) -> None:
        (self.raw / "dataset.json").write_text(json.dumps({
            "channel_names": dict(channels), "labels": dict(labels), "numTraining": cases, "file_ending": ending,
            **more}))

    def plan(self, configuration: str, validated: list[str] | None = None) -> None:
        """Plan and preprocess; batches of two patches, and the cases named are validated on, the others trained on."""
        assert plan_and_preprocess.main(["-d", str(self.number), "-c", configuration, "-np", "1", "-npfp", "1"]) == 0
        plans = self.plans()
        plans["configurations"][configuration]["batch_size"] = 2
        (self.preprocessed_folder / "LDSegPlans.json").write_text(json.dumps(plans))
        if validated is not None:
            cases = sorted(file.stem for file in (self.preprocessed_folder / "gt_segmentations").iterdir())
            cases = [case.split(".")[0] for case in cases]
            (self.preprocessed_folder / "splits_final.json").write_text(json.dumps([
                {"train": [case for case in cases if case not in validated], "val": validated}]))

    def plans(self) -> dict[str, Any]:
        return json.loads((self.preprocessed_folder / "LDSegPlans.json").read_text())

    def preprocessed(self, configuration: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Image (channels, z, y, x) and labels (1, z, y, x) of each case, as the network gets them."""
        folder = str(self.preprocessed_folder / f"LDSegPlans_{configuration}")
        dataset = infer_dataset_class(folder)(folder)
        return {case: tuple(np.asarray(part[:]) for part in dataset.load_case(case)[:2])
                for case in dataset.identifiers}

    def train(self, configuration: str, trainer: str = "LDSegTrainer", iterations: int = 2) -> Path:
        assert train.main([str(self.number), "0", "-c", configuration, "-tr", trainer, "--epochs", "1",
                           "--iterations_per_epoch", str(iterations), "-device", "cpu", "--seed", "0", "--npz"]) == 0
        return self.results / f"{trainer}__LDSegPlans__{configuration}" / "fold_0"

    def predict(self, out: Path, *flags: str, images: Path | None = None) -> Path:
        assert predict.main(["-i", str(images or self.raw / "imagesTs"), "-o", str(out), "-d", str(self.number),
                             "--samples", "1", "--disable_tta", *flags, *ALONE]) == 0
        return out


def balls(rng: np.random.Generator, shape: tuple[int, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Labels 1, 2, ... of nested balls around a place near the middle."""
    grid = np.indices(shape)
    centre = [n / 2 + rng.uniform(-1.5, 1.5) for n in shape]
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    return np.sum([distance < radius for radius in radii], axis=0)
