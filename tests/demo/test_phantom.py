import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.demo.anatomy import LABELS, draw_anatomy, rotation
from ldseg_auto.demo.phantom import make_case, write_dataset
from ldseg_auto.errors import LDSegError


def _checksums(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def dataset_3d(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("raw"), 7, "Phantom", num_train=2, num_test=1, seed=3)


@pytest.mark.parametrize("dims", [3, "2d_rgb"])
def test_same_seed_same_bytes(tmp_path, dims):
    first, second, other = (_checksums(write_dataset(tmp_path / str(i), 7, "Phantom", 1, 1, seed, dims))
                            for i, seed in enumerate((3, 3, 4)))
    assert first == second
    assert set(first) == set(other) and all(first[name] != other[name] for name in first)


def test_case_depends_on_its_index_only(tmp_path, dataset_3d):
    larger = write_dataset(tmp_path, 7, "Phantom", num_train=3, num_test=1, seed=3)
    name = "imagesTr/case_001_0000.nii.gz"
    assert (larger / name).read_bytes() == (dataset_3d / name).read_bytes()
    assert not np.array_equal(make_case(3, 0).labels, make_case(3, 1).labels)


def test_layout_and_description(dataset_3d):
    assert dataset_3d.name == "Dataset007_Phantom"
    assert [p.name for p in sorted((dataset_3d / "imagesTr").iterdir())] == \
        ["case_000_0000.nii.gz", "case_001_0000.nii.gz"]
    assert [p.name for p in sorted((dataset_3d / "labelsTs").iterdir())] == ["case_002.nii.gz"]
    assert len(list((dataset_3d / "imagesTs").iterdir())) == 1
    description = json.loads((dataset_3d / "dataset.json").read_text())
    assert description["labels"] == LABELS and description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"


def test_geometry_of_files(dataset_3d):
    for part in ("Tr", "Ts"):
        for labels_path in (dataset_3d / f"labels{part}").iterdir():
            labels = sitk.ReadImage(str(labels_path))
            name = labels_path.name.replace(".nii.gz", "_0000.nii.gz")
            image = sitk.ReadImage(str(dataset_3d / f"images{part}" / name))
            for key in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(image, key)() == getattr(labels, key)()
            case = make_case(3, int(labels_path.name[5:8]))
            assert image.GetSpacing() == pytest.approx(case.spacing_mm, abs=1e-5)
            assert image.GetOrigin() == pytest.approx(case.origin_mm, abs=1e-3)
            assert image.GetDirection() == pytest.approx(case.direction.ravel(), abs=1e-5)
            assert np.array_equal(sitk.GetArrayFromImage(labels), case.labels)


def test_geometry_varies_and_is_oblique():
    cases = [make_case(0, i) for i in range(4)]
    assert len({case.image.shape for case in cases}) > 1
    assert len({tuple(case.spacing_mm) for case in cases}) == 4
    for case in cases:
        assert case.direction @ case.direction.T == pytest.approx(np.eye(3), abs=1e-12)
        assert np.linalg.det(case.direction) == pytest.approx(1)
        assert np.abs(case.direction - np.eye(3)).max() > 1e-3
        assert 1.2 < case.spacing_mm[2] / case.spacing_mm[0] < 1.8


@pytest.mark.parametrize("index", range(8))
def test_structures_touch_and_lesion_lies_inside(index):
    labels = make_case(0, index).labels
    assert set(np.unique(labels)) == set(LABELS.values())
    assert np.count_nonzero(labels == LABELS["lesion"]) > 100
    neighbours = np.concatenate([_across(labels, LABELS["lesion"], axis) for axis in range(3)])
    inside = np.isin(neighbours, (LABELS["organ"], LABELS["vessel"]))
    assert inside.mean() > 0.9
    vessel = np.concatenate([_across(labels, LABELS["vessel"], axis) for axis in range(3)])
    assert np.isin(vessel, (LABELS["organ"], LABELS["lesion"])).any()


def _across(labels: np.ndarray, label: int, axis: int) -> np.ndarray:
    """Labels of the neighbours, along one axis, of a label's voxels; other labels only."""
    first, second = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
    return np.concatenate([second[(first == label) & (second != label)], first[(second == label) & (first != label)]])


def test_contrast_lies_between_two_and_five_sigma():
    ratios = []
    for index in range(6):
        case = make_case(0, index)
        # a local difference of neighbours leaves the noise alone
        noise = np.diff(case.image[0], axis=2)[case.labels[:, :, 1:] == LABELS["organ"]].std() / np.sqrt(2)
        mean = {name: case.image[0][case.labels == value].mean() for name, value in LABELS.items()}
        ratios.append([(mean["organ"] - mean["background"]) / noise, (mean["organ"] - mean["lesion"]) / noise,
                       (mean["vessel"] - mean["organ"]) / noise])
    assert np.all(np.mean(ratios, axis=0) > 2) and np.all(np.mean(ratios, axis=0) < 5)


def test_occupancy_sums_to_one_and_agrees_with_labels():
    rng = np.random.default_rng(0)
    anatomy = draw_anatomy(rng)
    points = rng.uniform(-20, 20, (4000, 3))
    share = anatomy.occupancy(points, edge_mm=0.01)
    assert share.sum(axis=0) == pytest.approx(1)
    assert share.min() >= -1e-12
    assert (share.argmax(axis=0) == anatomy.labels(points)).mean() > 0.999


def test_rotation_turns_by_its_angle():
    assert rotation(np.zeros(3)) == pytest.approx(np.eye(3))
    turned = rotation(np.array([0, 0, np.pi / 2])) @ np.array([1.0, 0, 0])
    assert turned == pytest.approx([0, 1, 0])


def test_2d_rgb(tmp_path):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    folder = write_dataset(tmp_path, 8, "Photo", num_train=1, num_test=1, seed=0, dims="2d_rgb")
    image, properties = NaturalImage2DIO().read_images([str(folder / "imagesTr" / "case_000_0000.png")])
    labels, _ = NaturalImage2DIO().read_seg(str(folder / "labelsTr" / "case_000.png"))
    assert image.shape[:2] == (3, 1) and labels.shape == (1, *image.shape[1:])
    assert set(np.unique(labels)) == set(LABELS.values())
    assert properties["spacing"] == (999, 1, 1)
    assert image[0].std() > 0 and not np.array_equal(image[0], image[1])
    description = json.loads((folder / "dataset.json").read_text())
    assert list(description["channel_names"]) == ["0", "1", "2"]
    assert description["overwrite_image_reader_writer"] == "NaturalImage2DIO"


def test_refuses_other_dims():
    with pytest.raises(LDSegError, match="Choose one of"):
        make_case(0, 0, dims=4)
