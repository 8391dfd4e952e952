"""Small data sets in every format, written by the libraries that users write them with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile
from skimage import io

NAME = "Dataset004_Small"
SHAPE = (6, 7, 8)  # z, y, x
MR = {"0": "T1", "1": "T2"}
RGB = {"0": "R", "1": "G", "2": "B"}
LABELS = {"background": 0, "organ": 1}


class DataSet:
    """A raw data set of cases c0, c1, ..., and below imagesTs more images of the same kind: t0, t1, ...

    Args:
        folder: nnUNet_raw/DATASET.
        ending: decides the format.
        channels: channel_names of dataset.json.
        cases: training cases; as many images to predict, at most 2.
    """

    def __init__(self, folder: Path, ending: str = ".nii.gz", channels: dict[str, str] | None = None, cases: int = 3,
                 labels: dict | None = None, flat: bool = False, values: Sequence[int] = (0, 1), **description):
        self.folder, self.ending, self.flat = folder, ending, flat
        self.channels = MR if channels is None else channels
        self.values = values
        for part in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / part).mkdir(parents=True)
        for number in range(cases):
            self.write_case(f"c{number}", number)
        for number in range(min(cases, 2)):
            self.write_images("imagesTs", f"t{number}", 100 + number)
        self.description = {"channel_names": self.channels, "labels": labels or LABELS, "numTraining": cases,
                            "file_ending": ending, **description}
        self.describe()

    def describe(self, **changes) -> None:
        self.description |= changes
        (self.folder / "dataset.json").write_text(json.dumps(self.description))

    def image(self, case: str = "c1", channel: int = 0, part: str = "imagesTr") -> Path:
        return self.folder / part / f"{case}_{channel:04d}{self.ending}"

    def label(self, case: str = "c1") -> Path:
        return self.folder / "labelsTr" / f"{case}{self.ending}"

    def write_case(self, case: str, seed: int) -> None:
        self.write_images("imagesTr", case, seed)
        labels = np.zeros((1, *SHAPE[1:]) if self.flat else SHAPE, np.uint8)
        for index, value in enumerate(self.values):
            labels[:, 1 + index, 1:5] = value
        write(self.label(case), labels)

    def write_images(self, part: str, case: str, seed: int, scale: float = 1.0) -> None:
        """T1-like: dark skewed noise; every other channel bright and symmetric; CT with air."""
        rng = np.random.default_rng(seed)
        shape = (1, *SHAPE[1:]) if self.flat else SHAPE
        if self.ending == ".png":
            io.imsave(self.image(case, 0, part), rng.integers(0, 255, (*shape[1:], 3), np.uint8), check_contrast=False)
            return
        for channel, name in enumerate(self.channels.values()):
            noise = rng.exponential(100, shape) if channel == 0 else rng.normal(500, 30, shape)
            voxels = rng.normal(0, 300, shape) - 900 * (np.indices(shape)[-1] == 0) if name == "CT" else noise * scale
            write(self.image(case, channel, part), voxels.astype(np.float32))


def write(file: Path, voxels: np.ndarray, spacing=(1.0, 1.0, 2.0), origin=(0.0, 0.0, 0.0), direction=None) -> None:
    """Any format; in 2D the first axis is dropped."""
    flat = voxels.ndim == 3 and voxels.shape[0] == 1
    if file.suffix in (".png", ".bmp"):
        io.imsave(file, voxels[0] if flat else voxels, check_contrast=False)
    elif file.suffix in (".tif", ".tiff"):
        tifffile.imwrite(file, voxels[0] if flat else voxels)
    else:
        image = sitk.GetImageFromArray(voxels[0] if flat else voxels)
        dimensions = image.GetDimension()
        image.SetSpacing(spacing[:dimensions])
        image.SetOrigin(origin[:dimensions])
        if direction is not None:
            image.SetDirection(direction)
        sitk.WriteImage(image, str(file))


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
