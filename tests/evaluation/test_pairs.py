"""Cases found in two folders, and what is wrong with a case."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imsave

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.pairs import Pair, UnusableError, find_pairs, problem_of, read_pair
from ldseg_auto.evaluation.setting import Setting

GROUPS = {"organ": (1,), "lesion": (2,)}
OBLIQUE = (np.cos(0.01), -np.sin(0.01), 0, np.sin(0.01), np.cos(0.01), 0, 0, 0, 1)


def setting(reader: str = "SimpleITKIO", ignore_label=None, groups=GROUPS, ending=".nii.gz") -> Setting:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader_class = recursive_find_reader_writer_by_name(reader)
    return Setting(Path("dataset.json"), groups, ignore_label, ending, reader_class, {}, "")


@pytest.fixture
def pair(folders) -> Pair:
    return Pair("a", folders["predictions"] / "a.nii.gz", folders["references"] / "a.nii.gz")


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_maps_and_spacing(reader, pair, cubes):
    maps = read_pair(pair, setting(reader))
    assert maps.prediction.shape == maps.reference.shape == (8, 12, 12)
    assert np.bincount(maps.reference.ravel()).tolist() == np.bincount(cubes(lesion=(4, 6)).ravel()).tolist()
    assert (maps.spacing_mm, maps.ignored_voxels) == ((2.0, 1.0, 1.0), 0)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("changed, problem", [
    ({"shape": (8, 12, 13)}, r"another size, \(8, 12, 13\), than its reference, \(8, 12, 12\)"),
    ({"spacing": (1.0, 1.0, 2.1)}, r"another spacing, \(2.1, 1, 1\), than its reference, \(2, 1, 1\)"),
    ({"origin": (0.0, 0.0, 0.5)}, "another origin, "), ({"direction": OBLIQUE}, "another direction, ")])
def test_geometry_that_differs(reader, changed, problem, pair, cubes, write_map):
    labels = cubes(shape=changed.get("shape", (8, 12, 12)))
    write_map(pair.prediction, labels, **{k: v for k, v in changed.items() if k != "shape"})
    with pytest.raises(UnusableError, match=problem):
        read_pair(pair, setting(reader))
    assert problem_of(pair, setting(reader)).startswith(f"a: {pair.prediction} has another")


@pytest.mark.parametrize("reader, usable", [("NibabelIOWithReorient", True), ("SimpleITKIOWithReorient", True),
                                            ("NibabelIO", False), ("SimpleITKIO", False)])
def test_files_in_another_orientation(reader, usable, pair, cubes, write_map):
    """Some of nnU-Net's readers undo it."""
    write_map(pair.prediction, cubes()[..., ::-1], origin=(11.0, 0.0, 0.0), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert (problem_of(pair, setting(reader)) is None) == usable


def test_headers_that_differ_by_rounding(pair, cubes, write_map):
    write_map(pair.prediction, cubes(), spacing=(1.0001, 1.0, 2.0), origin=(0.001, 0, 0),
              direction=(1, 1e-5, 0, -1e-5, 1, 0, 0, 0, 1))
    assert problem_of(pair, setting()) is None


@pytest.mark.parametrize("reader, value, shown", [
    ("SimpleITKIO", 3, "3"), ("SimpleITKIO", 1.5, "1.5"), ("SimpleITKIO", -1, "-1"), ("SimpleITKIO", 65537, "65537"),
    ("NibabelIO", float("nan"), "nan")])  # SimpleITK reads 0 for it
@pytest.mark.parametrize("which", ["prediction", "reference"])
def test_values_that_are_no_labels(which, reader, value, shown, pair, cubes, write_map):
    labels = cubes().astype(np.float32)
    labels[0, 0, 0] = value
    write_map(getattr(pair, which), labels)
    with pytest.raises(UnusableError, match=rf"{which}s/a.nii.gz holds {shown}; its labels are \[0, 1, 2\]"):
        read_pair(pair, setting(reader))


def test_only_some_of_many_wrong_values_are_shown(pair, write_map):
    write_map(pair.prediction, np.arange(8 * 12 * 12, dtype=np.int16).reshape(8, 12, 12))
    assert "holds 3, 4, 5, 6, 7, ...; its labels" in problem_of(pair, setting())


def test_ignored_voxels_are_background_in_both(pair, cubes, write_map):
    reference = cubes(lesion=(4, 6))
    reference[:, :, 5:] = 3
    write_map(pair.reference, reference)
    maps = read_pair(pair, setting(ignore_label=3))
    assert maps.ignored_voxels == 8 * 12 * 7
    assert not maps.prediction[:, :, 5:].any() and not maps.reference[:, :, 5:].any()
    assert maps.prediction[:, :, :5].any() and set(np.unique(maps.reference)) == {0, 1, 2}


def test_predictions_ignore_nothing(pair, cubes, write_map):
    write_map(pair.prediction, cubes() + 2 * (cubes() == 1))
    assert "holds 3" in problem_of(pair, setting(ignore_label=3))


@pytest.mark.parametrize("reader, ending", [("NaturalImage2DIO", ".png"), ("SimpleITKIO", ".mha")])
def test_2d_images_are_2d(reader, ending, tmp_path, cubes, write_map):
    labels = cubes(lesion=(4, 6))[3]
    for name in ("predictions", "references"):
        file = tmp_path / name / f"a{ending}"
        file.parent.mkdir()
        imsave(file, labels, check_contrast=False) if ending == ".png" else write_map(file, labels, (0.5, 0.7))
    pair = Pair("a", *(tmp_path / name / f"a{ending}" for name in ("predictions", "references")))
    maps = read_pair(pair, setting(reader, ending=ending))
    assert maps.prediction.shape == (12, 12) and np.array_equal(maps.reference, labels)
    assert maps.spacing_mm == ((1.0, 1.0) if ending == ".png" else (0.7, 0.5))


def test_a_volume_of_one_slice_stays_a_volume(pair, cubes, write_map):
    for file in (pair.prediction, pair.reference):
        write_map(file, cubes()[3:4], (1.0, 1.0, 5.0))
    assert read_pair(pair, setting()).spacing_mm == (5.0, 1.0, 1.0)


def test_colours_are_no_labels(tmp_path):
    for name in ("predictions", "references"):
        (tmp_path / name).mkdir()
        imsave(tmp_path / name / "a.png", np.ones((9, 9, 3), np.uint8), check_contrast=False)
    pair = Pair("a", tmp_path / "predictions" / "a.png", tmp_path / "references" / "a.png")
    assert "has 3 channels" in problem_of(pair, setting("NaturalImage2DIO"))


def test_damaged_files(pair):
    pair.prediction.write_bytes(gzip.compress(b"no image"))
    assert "predictions/a.nii.gz cannot be read (" in problem_of(pair, setting())


@pytest.mark.parametrize("which", ["prediction", "reference"])
def test_files_that_are_cut_off(which, pair):
    """SimpleITK reads zeros for what is missing: a score that looks right."""
    file = getattr(pair, which)
    file.write_bytes(file.read_bytes()[:-20])
    assert problem_of(pair, setting()) == f"a: {file} is cut off or damaged"


@pytest.mark.parametrize("reader, usable", [("SimpleITKIO", False), ("NibabelIO", True)])
def test_an_unpacked_file_beside_the_packed_one(reader, usable, pair, cubes, write_map):
    """SimpleITK takes its voxels."""
    write_map(pair.reference.with_suffix(""), cubes() * 0)
    assert (problem_of(pair, setting(reader)) is None) == usable


def test_cases_of_both_folders(folders):
    pairs, left_out = find_pairs(folders["predictions"], folders["references"], ".nii.gz")
    assert [pair.case for pair in pairs] == ["a", "b", "c"] and not any(left_out.values())
    (folders["predictions"] / "a.nii.gz").unlink()
    (folders["references"] / "c.nii.gz").unlink()
    with pytest.raises(LDSegError, match=r"cases without prediction \(1\): a; without reference \(1\): c.*--chill"):
        find_pairs(folders["predictions"], folders["references"], ".nii.gz")
    pairs, left_out = find_pairs(folders["predictions"], folders["references"], ".nii.gz", chill=True)
    assert [pair.case for pair in pairs] == ["b"]
    assert left_out == {"without_prediction": ["a"], "without_reference": ["c"]}
