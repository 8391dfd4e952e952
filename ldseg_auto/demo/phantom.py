"""Images of the phantom with a scanner's faults, written as a data set in nnU-Net's raw format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ldseg_auto.demo.anatomy import LABELS, Anatomy, draw_anatomy, rotation
from ldseg_auto.errors import LDSegError

# With the variation below every image, resampled, fits into a patch of 32 x 32 x 24: one tile a case, and a few
# hundred iterations in the minutes of the demo on two cores.
VOXELS = (29, 29, 21)  # x, y, z
SPACING_MM = (1.3, 1.3, 2.0)
DIMENSIONS = (3, "2d_rgb")
# Mean intensity of background, organ, lesion, vessel in the unit of the noise's sigma below; one row a channel.
# The lesion differs from the organ by about 3 sigma and hardly from the background: only its place tells.
_INTENSITIES = np.array([[0.45, 1.25, 0.60, 2.0], [1.5, 0.80, 1.40, 0.30], [0.60, 1.10, 1.80, 0.50]])
_NOISE_SIGMA = 0.12
_BLUR_MM = 0.7  # of the scanner's point spread, standard deviation
_GREY_VALUES_3D = 300.0  # per unit of intensity
_GREY_VALUES_RGB = 85.0


@dataclass(frozen=True)
class Case:
    """One image and its truth; arrays are in the order z, y, x, the geometry in the order x, y, z.

    `image` is (channels, z, y, x) float32, `labels` (z, y, x) uint8, `direction` a rotation matrix (3, 3).
    """

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: np.ndarray
    origin_mm: np.ndarray
    direction: np.ndarray


def make_case(seed: int, index: int, dims: int | str = 3) -> Case:
    """Case `index` of the data set `seed`; it depends on nothing else.

    Args:
        seed: of the data set.
        index: of the case.
        dims: 3 for a volume with one channel, "2d_rgb" for a slice through the lesion with three.
    """
    if dims not in DIMENSIONS:
        raise LDSegError(f"dims is {dims!r}.", f"Choose one of {DIMENSIONS}.")
    rng = np.random.default_rng([seed, index])
    anatomy = draw_anatomy(rng)
    spacing = np.array(SPACING_MM) * rng.uniform([0.95, 0.95, 0.9], [1.05, 1.05, 1.1])
    spacing[1] = spacing[0]  # pixels are square
    direction = rotation(rng.normal(0, 0.1, 3))
    voxels = np.array(VOXELS) + rng.integers(-1, 2, 3)
    centre = np.zeros(3)
    channels = 1
    if dims == "2d_rgb":
        voxels[2], channels, direction, centre = 1, 3, np.eye(3), np.array([0, 0, anatomy.lesion.centre_mm[2]])
    points = _grid_mm(voxels, spacing, direction) + centre
    image = np.stack([_acquire(rng, anatomy, points, spacing, intensities) for intensities in _INTENSITIES[:channels]])
    table_mm = rng.normal(0, 60, 3)  # where the patient lay
    return Case(image.astype(np.float32), anatomy.labels(points), spacing, points[0, 0, 0] + table_mm, direction)


def _grid_mm(voxels: np.ndarray, spacing_mm: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Positions of the voxels around the image's centre, (z, y, x, 3) with x, y, z last."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(voxels, spacing_mm, strict=True)]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    return np.stack([x, y, z], axis=-1) @ direction.T


def _acquire(rng: np.random.Generator, anatomy: Anatomy, points_mm: np.ndarray, spacing_mm: np.ndarray,
             intensities: np.ndarray) -> np.ndarray:
    """One channel: contrast and texture of this patient, partial volume, blur, bias field, Rician noise.

    Magnitude images carry Rician noise: |signal + complex Gaussian| (Gudbjartsson and Patz, MRM 34:910, 1995).
    """
    shape = points_mm.shape[:-1]
    contrast = intensities * rng.normal(1, 0.06, len(intensities))
    edge_mm = float(spacing_mm.mean())  # a voxel on the surface shares its volume between two tissues
    signal = np.tensordot(contrast, anatomy.occupancy(points_mm, edge_mm), axes=1)
    signal = signal + 0.08 * _smooth_field(rng, shape, spacing_mm, 3.0)
    signal = gaussian_filter(signal, _BLUR_MM / spacing_mm[::-1])
    signal = signal * np.exp(0.12 * _smooth_field(rng, shape, spacing_mm, 20.0))
    noise = rng.normal(0, _NOISE_SIGMA * rng.uniform(0.8, 1.2), (2, *shape))
    return np.hypot(signal + noise[0], noise[1])


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: np.ndarray,
                  scale_mm: float) -> np.ndarray:
    """A random field of mean 0 and standard deviation 1 that varies over `scale_mm`."""
    field = gaussian_filter(rng.normal(0, 1, shape), scale_mm / spacing_mm[::-1], mode="reflect")
    return (field - field.mean()) / field.std()


def write_dataset(raw_root: Path | str, dataset_id: int, name: str, num_train: int, num_test: int, seed: int,
                  dims: int | str = 3) -> Path:
    """Write imagesTr, labelsTr, imagesTs, labelsTs and dataset.json; the same arguments give the same bytes.

    Args:
        raw_root: nnUNet_raw.
        dataset_id, name: of the data set, DatasetXXX_NAME.
        num_train, num_test: cases to train on, and cases held out (images in imagesTs, truth in labelsTs).
        seed: of the data set.
        dims: as `make_case`: NIfTI volumes for 3, RGB PNG for "2d_rgb".

    Returns:
        The data set's folder.
    """
    folder = Path(raw_root) / f"Dataset{dataset_id:03d}_{name}"
    for index in range(num_train + num_test):
        part = "Tr" if index < num_train else "Ts"
        case = make_case(seed, index, dims)
        write = _write_nifti if dims == 3 else _write_png
        write(case, folder / f"images{part}" / f"case_{index:03d}_0000", folder / f"labels{part}" / f"case_{index:03d}")
    channels = {"0": "MRI"} if dims == 3 else {"0": "R", "1": "G", "2": "B"}
    reader = "SimpleITKIO" if dims == 3 else "NaturalImage2DIO"
    description = {"channel_names": channels, "labels": LABELS, "numTraining": num_train,
                   "file_ending": ".nii.gz" if dims == 3 else ".png", "name": name,
                   "overwrite_image_reader_writer": reader,
                   "description": f"Phantom made by ldseg_auto with seed {seed}; no patient data"}
    (folder / "dataset.json").write_text(json.dumps(description, indent=4))
    return folder


def _write_nifti(case: Case, image_path: Path, labels_path: Path) -> None:
    import SimpleITK as sitk

    for array, path in (((case.image[0] * _GREY_VALUES_3D).astype(np.int16), image_path), (case.labels, labels_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(case.spacing_mm.tolist())
        image.SetOrigin(case.origin_mm.tolist())
        image.SetDirection(case.direction.ravel().tolist())
        sitk.WriteImage(image, f"{path}.nii.gz")


def _write_png(case: Case, image_path: Path, labels_path: Path) -> None:
    import SimpleITK as sitk

    colours = np.clip(np.moveaxis(case.image[:, 0], 0, -1) * _GREY_VALUES_RGB, 0, 255).astype(np.uint8)
    for array, is_vector, path in ((colours, True, image_path), (case.labels[0], False, labels_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), f"{path}.png")
