"""Raw data sets of the kinds that a planner meets: label maps drawn in mm, with the fingerprint nnU-Net would extract.

Images are not needed by the planner; their intensities are made up in the fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from PIL import Image

Draw = Callable[[np.ndarray, np.random.Generator, int], np.ndarray]


class Archetype(NamedTuple):
    """`draw` gets the voxels' positions in mm from the centre, (axes, *shape), a generator and the case's index."""

    shape: tuple[int, ...]  # z, y, x
    spacing_mm: tuple[float, ...]
    labels: Mapping[str, int]
    cases: int
    draw: Draw
    channels: Sequence[str] = ("MRI",)


def write(archetype: Archetype, raw: Path, preprocessed: Path) -> None:
    """dataset.json, labelsTr and dataset_fingerprint.json; 2D label maps as PNG, volumes as NIfTI."""
    ending = ".png" if len(archetype.shape) == 2 else ".nii.gz"
    (raw / "labelsTr").mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    names = [f"case{index:03d}" for index in range(archetype.cases)]
    for index, name in enumerate(names):
        rng = np.random.default_rng([7, index])
        labels = archetype.draw(_positions_mm(archetype.shape, archetype.spacing_mm), rng, index).astype(np.uint8)
        if ending == ".png":
            Image.fromarray(labels).save(raw / "labelsTr" / f"{name}{ending}")
            continue
        image = sitk.GetImageFromArray(labels)
        image.SetSpacing(archetype.spacing_mm[::-1])
        sitk.WriteImage(image, str(raw / "labelsTr" / f"{name}{ending}"))
    flat = ending == ".png"
    spacing, shape = ((999, *archetype.spacing_mm), (1, *archetype.shape)) if flat else (
        archetype.spacing_mm, archetype.shape)
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": dict(enumerate(archetype.channels)), "labels": archetype.labels,
        "numTraining": archetype.cases, "file_ending": ending,
        "overwrite_image_reader_writer": "NaturalImage2DIO" if flat else "SimpleITKIO",
        "dataset": {name: {"images": [f"imagesTr/{name}_0000{ending}"], "label": f"labelsTr/{name}{ending}"}
                    for name in names}}))
    statistics = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps({
        "spacings": [spacing] * archetype.cases, "shapes_after_crop": [shape] * archetype.cases,
        "foreground_intensity_properties_per_channel": {str(c): statistics for c in range(len(archetype.channels))},
        "median_relative_size_after_cropping": 1.0}))


def _positions_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    axes = [((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(shape, spacing_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij", copy=False))


def ball(positions: np.ndarray, centre: Sequence[float], radii: Sequence[float] | float) -> np.ndarray:
    """Ellipsoid (in 2D an ellipse) along the axes, bool."""
    scaled = [(axis - c) / r for axis, c, r in zip(positions, centre, np.broadcast_to(radii, len(positions)),
                                                   strict=True)]
    return sum(s ** 2 for s in scaled) < 1


def tube(positions: np.ndarray, radius: float, phase: float, bend_mm: float = 15) -> np.ndarray:
    """Along the first axis, bent, bool."""
    z, y, x = positions
    return (y - bend_mm * np.sin(z / 30 + phase)) ** 2 + (x - bend_mm * np.cos(z / 40 + phase)) ** 2 < radius ** 2


def heart(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    """Short axis: right ventricle, muscle, cavity; tapering to the apex."""
    size = 1 - 0.3 * np.abs(positions[0]) / 60
    centre = rng.normal(0, 4, 3) * [0, 1, 1]
    flat = positions[1:] / size
    labels = np.where(ball(flat, centre[1:] + [0, 30], [32, 26]), 1, 0)
    labels[ball(flat, centre[1:], 32)] = 2
    labels[ball(flat, centre[1:], 22 + rng.normal(0, 1))] = 3
    return labels


def liver_with_lesion(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    labels = np.where(ball(positions, rng.normal(0, 5, 3), [55, 70, 80]), 1, 0)
    labels[ball(positions, rng.uniform(-25, 25, 3), rng.uniform(3, 5, 3))] = 2
    return labels


def liver(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    return np.minimum(liver_with_lesion(positions, rng, index), 1)


def vessels(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    return np.where(tube(positions, 2.0, rng.uniform(0, 6)) | tube(positions, 1.5, rng.uniform(0, 6), 30), 1, 0)


def cells(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    labels = np.zeros(positions.shape[1:], np.uint8)
    for _ in range(80):
        centre, radii = rng.uniform(-250, 250, 2), rng.uniform(7, 13, 2)
        labels[ball(positions, centre, radii + 2)] = 2
        labels[ball(positions, centre, radii)] = 1
    return labels


def abdomen(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    """Twenty organs: large and small ones, some that touch, and vessels through them."""
    labels = np.zeros(positions.shape[1:], np.uint8)
    places = np.random.default_rng(1).uniform([-100, -90, -90], [100, 90, 90], (18, 3))
    for organ, place in enumerate(places):
        labels[ball(positions, place + rng.normal(0, 4, 3), 45 - 1.7 * organ + rng.normal(0, 1, 3))] = organ + 1
    labels[tube(positions, 9, 0)] = 19
    labels[tube(positions, 8, 3)] = 20
    return labels


def hippocampus(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    z, y, _ = positions
    body = ball(positions, rng.normal(0, 1, 3), [9, 19, 8]) & (z + 0.02 * y ** 2 < 8)
    return np.where(body, np.where(y < rng.normal(-3, 1), 1, 2), 0)


def rare_class(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    labels = np.where(ball(positions, rng.normal(0, 2, 3), 18), 1, 0)
    if index == 17:
        labels[ball(positions, (0, 0, 0), 8)] = 2
    return labels


def moving_heart(positions: np.ndarray, rng: np.random.Generator, index: int) -> np.ndarray:
    """One slice over time: the first axis is the heartbeat."""
    radius = 24 + 6 * np.cos(2 * np.pi * positions[0] / (np.abs(positions[0]).max() * 2))
    distance = np.linalg.norm(positions[1:] - rng.normal(0, 3, 2)[:, None, None, None], axis=0)
    return np.where(distance < radius, 1, 0) + np.where(distance < radius - 8, 1, 0)


HEART = {"background": 0, "RV": 1, "muscle": 2, "cavity": 3}
CARDIAC = Archetype((10, 208, 208), (10.0, 1.5, 1.5), HEART, 6, heart)
CT_LESION = Archetype((90, 140, 160), (1.5, 1.2, 1.2), {"background": 0, "liver": 1, "lesion": 2}, 5,
                      liver_with_lesion, ("CT",))
CT_LIVER = CT_LESION._replace(labels={"background": 0, "liver": 1}, draw=liver)
CT_VESSELS = CT_LESION._replace(labels={"background": 0, "vessel": 1}, draw=vessels)
MICROSCOPY = Archetype((512, 512), (1.0, 1.0), {"background": 0, "nucleus": 1, "border": 2}, 8, cells,
                       ("red", "green", "blue"))
ABDOMEN = Archetype((80, 150, 150), (3.0, 1.6, 1.6), {"background": 0} | {f"organ {i}": i for i in range(1, 21)}, 3,
                    abdomen, ("CT",))
TINY = Archetype((36, 50, 35), (1.0, 1.0, 1.0), {"background": 0, "anterior": 1, "posterior": 2}, 30, hippocampus)
HUGE = CT_LIVER._replace(shape=(260, 400, 400), spacing_mm=(0.8, 0.7, 0.7), cases=2)
SINGLE = TINY._replace(cases=1)
RARE = Archetype((48, 48, 48), (1.0, 1.0, 1.0), {"background": 0, "organ": 1, "rare": 2}, 30, rare_class)
CINE = Archetype((24, 128, 128), (40.0, 1.4, 1.4), {"background": 0, "muscle": 1, "cavity": 2}, 6, moving_heart)
ARCHETYPES = {"cardiac": CARDIAC, "lesion": CT_LESION, "liver": CT_LIVER, "vessels": CT_VESSELS,
              "microscopy": MICROSCOPY, "abdomen": ABDOMEN, "tiny": TINY, "huge": HUGE, "single case": SINGLE,
              "rare class": RARE, "cine": CINE}
