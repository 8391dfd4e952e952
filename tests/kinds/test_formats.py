"""Every file format that nnU-Net reads: the same data make the same plans, cases and predictions, and segmentations
come back in the image's format and geometry. What reads the files is all that differs, so one network serves all."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage import io
from worlds import Case, Geometry, World, balls, write_case

from ldseg_auto.demo.phantom import write_dataset

PLAIN = Geometry()
OBLIQUE = Geometry((1.1, 0.9, 1.6), (-31.5, 17.25, 88.0), tuple(map(float, (
    np.cos(0.3), -np.sin(0.3), 0, np.sin(0.3), np.cos(0.3), 0, 0, 0, -1))))


class Format(NamedTuple):
    ending: str
    reader: str | None  # named in dataset.json, or found by the ending
    same_grid: bool = True  # as NIfTI by SimpleITK; not where images are turned


VOLUMES = [Format(".tif", "Tiff3DIO")]
MORE_VOLUMES = [Format(".nrrd", None), Format(".mha", None), Format(".tiff", None), Format(".nii.gz", "NibabelIO"),
                Format(".nii.gz", "NibabelIOWithReorient", False), Format(".nii.gz", "SimpleITKIOWithReorient", False)]
PICTURES = [Format(".tif", "NaturalImage2DIO"), Format(".bmp", None)]
READERS = {".nrrd": "SimpleITKIO", ".mha": "SimpleITKIO", ".tiff": "Tiff3DIO", ".bmp": "NaturalImage2DIO"}


def name_of(fmt: Format) -> str:
    return f"{fmt.ending[1:]} {fmt.reader or ''}".strip()



def make_case(index: int, shape=(14, 18, 16), geometry=PLAIN) -> Case:
    rng = np.random.default_rng(index)
    labels = balls(rng, shape, (5.5, 3))
    image = (labels * 100 + rng.normal(0, 20, shape)).astype(np.float32)
    return Case(image[None], labels, geometry)


def convert(source: Path, target: Path, fmt: Format) -> None:
    """Every image and label map below `source` in another format; pictures by their pixels."""
    for file in sorted(path for path in source.rglob("*") if path.name.endswith((".nii.gz", ".png"))):
        old = ".png" if file.suffix == ".png" else ".nii.gz"
        new = target / file.parent.name / (file.name.removesuffix(old) + fmt.ending)
        new.parent.mkdir(parents=True, exist_ok=True)
        if old == ".png":
            io.imsave(new, io.imread(file), check_contrast=False)
        elif fmt.ending in (".tif", ".tiff"):
            image = sitk.ReadImage(str(file))
            tifffile.imwrite(new, sitk.GetArrayFromImage(image))
            case = new.name.removesuffix(fmt.ending).removesuffix("_0000")
            (new.parent / f"{case}.json").write_text(json.dumps({"spacing": image.GetSpacing()[::-1]}))
        else:
            sitk.WriteImage(sitk.ReadImage(str(file)), str(new))


def convert_world(world: World, base: World, fmt: Format, configuration: str) -> None:
    """The data set of another world in this format, planned and preprocessed here; and that world's model, told of the
    format as if it had been trained here."""
    convert(base.raw, world.raw, fmt)
    description = json.loads((base.raw / "dataset.json").read_text())
    description.pop("overwrite_image_reader_writer", None)
    description["file_ending"] = fmt.ending
    if fmt.reader:
        description["overwrite_image_reader_writer"] = fmt.reader
    (world.raw / "dataset.json").write_text(json.dumps(description))
    world.plan(configuration)
    model = world.results / f"LDSegTrainer__LDSegPlans__{configuration}"
    shutil.copytree(base.results / model.name, model)
    for name in ("dataset.json", "plans.json"):
        source = world.preprocessed_folder / name.replace("plans", "LDSegPlans")
        shutil.copy(source, model / name)


@pytest.fixture(scope="module")
def nifti(make_world) -> tuple[World, np.ndarray]:
    """A trained model, and what it predicts of one oblique case."""
    world = make_world(31, "Volumes")
    for index in range(5):
        write_case(world.raw, f"case_{index}", make_case(index))
    write_case(world.raw, "unseen", make_case(9, (9, 18, 30), OBLIQUE), labelled=False)
    world.describe({"0": "MRI"}, {"background": 0, "shell": 1, "core": 2}, 5)
    world.plan("3d_fullres", validated=["case_1"])
    world.train("3d_fullres", iterations=1)
    out = world.predict(world.root / "out", "--save_probabilities")
    return world, np.load(out / "unseen.npz")["probabilities"]


def read_back(file: Path) -> np.ndarray:
    return tifffile.imread(file) if file.suffix in (".tif", ".tiff") else sitk.GetArrayFromImage(
        sitk.ReadImage(str(file)))


@pytest.mark.parametrize("fmt", [*(pytest.param(fmt, id=name_of(fmt)) for fmt in VOLUMES),
                                 *(pytest.param(fmt, id=name_of(fmt), marks=pytest.mark.slow)
                                   for fmt in MORE_VOLUMES)])
def test_volumes(nifti, make_world, fmt):
    base, expected = nifti
    world = make_world(31, "Volumes")
    convert_world(world, base, fmt, "3d_fullres")
    plans = world.plans()
    assert plans["image_reader_writer"] == (fmt.reader or READERS[fmt.ending])
    if fmt.same_grid:
        assert plans["configurations"]["3d_fullres"] == base.plans()["configurations"]["3d_fullres"]
        ours, theirs = (each.preprocessed("3d_fullres") for each in (world, base))
        assert ours.keys() == theirs.keys()
        for case, parts in ours.items():
            assert np.allclose(parts[0], theirs[case][0], atol=1e-4) and np.array_equal(parts[1], theirs[case][1])
    out = world.predict(world.root / "out", "--save_probabilities")
    segmentation = read_back(out / f"unseen{fmt.ending}")
    assert segmentation.shape == expected.shape[1:] and segmentation.dtype == np.uint8
    if fmt.same_grid:
        assert np.allclose(np.load(out / "unseen.npz")["probabilities"], expected, atol=2e-3)
    image = world.raw / "imagesTs" / f"unseen_0000{fmt.ending}"
    if fmt.ending in (".tif", ".tiff"):
        assert json.loads((out / "unseen.json").read_text())["spacing"] == pytest.approx(OBLIQUE.spacing[::-1])
    else:
        described = [sitk.ReadImage(str(file)) for file in (image, out / f"unseen{fmt.ending}")]
        for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(*(getattr(each, name)() for each in described), atol=1e-4), name
    if fmt.reader == "NibabelIO":
        assert np.allclose(*(nibabel.load(file).affine for file in (image, out / "unseen.nii.gz")), atol=1e-4)


@pytest.fixture(scope="module")
def pictures(make_world) -> tuple[World, np.ndarray]:
    """A model of RGB pictures, and what it predicts of one."""
    world = make_world(32, "Pictures")
    shutil.rmtree(world.raw)
    write_dataset(world.folders["nnUNet_raw"], 32, "Pictures", num_train=5, num_test=1, seed=0, dims="2d_rgb")
    world.plan("2d", validated=["case_001"])
    world.train("2d", iterations=1)
    out = world.predict(world.root / "out", "--save_probabilities")
    return world, np.load(out / "case_005.npz")["probabilities"]


@pytest.mark.slow  # PNG is not: test_end_to_end.py
@pytest.mark.parametrize("fmt", PICTURES, ids=name_of)
def test_pictures(pictures, make_world, fmt):
    base, expected = pictures
    world = make_world(32, "Pictures")
    convert_world(world, base, fmt, "2d")
    ours, theirs = (each.preprocessed("2d") for each in (world, base))
    for case, parts in ours.items():
        assert np.allclose(parts[0], theirs[case][0]) and np.array_equal(parts[1], theirs[case][1])
    assert world.plans()["configurations"] == base.plans()["configurations"]
    assert world.plans()["image_reader_writer"] == (fmt.reader or READERS[fmt.ending])
    out = world.predict(world.root / "out", "--save_probabilities")
    segmentation = io.imread(out / f"case_005{fmt.ending}")
    assert segmentation.dtype == np.uint8
    assert segmentation.shape == io.imread(world.raw / "imagesTs" / f"case_005_0000{fmt.ending}").shape[:2]
    assert np.allclose(np.load(out / "case_005.npz")["probabilities"], expected, atol=2e-3)


def frames(index: int, count: int, shape=(24, 28)) -> Case:
    """A beating ring over time."""
    rng = np.random.default_rng(index)
    place = [n / 2 + rng.uniform(-2, 2) for n in shape]
    distance = np.hypot(*(axis - c for axis, c in zip(np.indices(shape), place, strict=True)))
    radii = 7 + 2 * np.cos(2 * np.pi * np.arange(count) / count)
    labels = np.stack([(distance < r).astype(np.uint8) + (distance < r - 3) for r in radii])
    return Case((labels * 60 + 60 + rng.normal(0, 10, labels.shape)).clip(0, 255).astype(np.uint8)[None], labels,
                Geometry((1.4, 1.4, 30.0)))


@pytest.mark.slow
def test_frames_of_a_film_as_channels(make_world):
    """One label map for all frames: the frames are the channels of a picture."""
    world = make_world(33, "Frames")
    for index in range(6):
        case = frames(index, 3)
        part = "Tr" if index < 5 else "Ts"
        for folder in (f"images{part}", f"labels{part}"):
            (world.raw / folder).mkdir(exist_ok=True)
        for number, frame in enumerate(case.image[0]):
            io.imsave(world.raw / f"images{part}" / f"case_{index}_{number:04d}.png", frame, check_contrast=False)
        io.imsave(world.raw / f"labels{part}" / f"case_{index}.png", case.labels[0], check_contrast=False)
    world.describe({str(i): f"frame {i}" for i in range(3)}, {"background": 0, "muscle": 1, "cavity": 2}, 5, ".png")
    world.plan("2d", validated=["case_1"])
    world.train("2d", iterations=1)
    out = world.predict(world.root / "out")
    assert io.imread(out / "case_5.png").shape == (24, 28)


@pytest.mark.slow
def test_a_film_as_a_volume_with_time_as_its_first_axis(make_world):
    """A label map for each frame: the seconds between frames stand where millimetres between slices would."""
    world = make_world(34, "Film")
    for index in range(6):
        write_case(world.raw, f"case_{index}", frames(index, 12), labelled=index < 5)
    world.describe({"0": "cine"}, {"background": 0, "muscle": 1, "cavity": 2}, 5)
    world.plan("3d_fullres", validated=["case_1"])
    configuration = world.plans()["configurations"]["3d_fullres"]
    assert configuration["spacing"][0] == 30 and configuration["patch_size"][0] >= 12
    stride = configuration["architecture"]["arch_kwargs"]["latent_stride"]
    assert stride[0] < stride[1]
    world.train("3d_fullres", iterations=1)
    out = world.predict(world.root / "out")
    film = sitk.ReadImage(str(out / "case_5.nii.gz"))
    assert film.GetSize() == (28, 24, 12) and film.GetSpacing() == pytest.approx((1.4, 1.4, 30))
