"""Reports of models and data sets of which parts are missing, and of maps that lie beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from ldseg_auto.inference.choice import Best, Finish, save_best
from ldseg_auto.report.build import _split_files
from ldseg_auto.report.pictures import heat_url
from ldseg_auto.report.run import write_report
from ldseg_auto.trainers import checkpoint


def write(tmp_path: Path, page_of):
    return page_of(write_report("7", output=str(tmp_path / "page.html"), device="cpu"))


def data_of(made) -> dict:
    return json.loads(made.by_id["data"])


def test_a_case_whose_image_is_missing(in_small_world, quick, tmp_path, page_of, monkeypatch):
    """Its truth is there: it counts for the reliability, but has no pictures."""
    raw = tmp_path / "raw" / "Dataset007_Small"
    shutil.copytree(in_small_world["nnUNet_raw"] / raw.name, raw)
    (raw / "imagesTr" / "case_07_0000.nii.gz").unlink()
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    made = write(tmp_path, page_of)
    assert [bool(case["slices"]) for case in data_of(made)["cases"]] == [True, False]
    assert "1 of 2 cases, such as case_07, lack an image or one of its channels" in made.text
    assert "voxels of 2 cases" in made.text and "have no truth" not in made.text
    shutil.rmtree(raw / "imagesTr")
    (raw / "imagesTr").mkdir()
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "2 of 2 cases, such as case_00, lack an image" in (text := write(tmp_path, page_of).text)
    assert "voxels of 2 cases" in text


def test_a_case_that_lacks_a_channel_has_no_image(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for name in ("a_0000", "a_0001", "b_0000"):
        (tmp_path / "imagesTr" / f"{name}.nii.gz").touch()
    for name in "abc":
        (tmp_path / "labelsTr" / f"{name}.nii.gz").touch()
    found = _split_files(tmp_path, ".nii.gz")
    assert {name: len(each["images"]) for name, each in found.items()} == {"a": 2, "b": 0, "c": 0}
    assert all(each["label"].is_file() for each in found.values())


def write_information(model: Path, folder: Path, peak: float) -> None:
    """Maps of mutual information of both validation cases, `peak` nats in one voxel of the 8th slice."""
    (folder / "uncertainty").mkdir(parents=True)
    for case in ("case_00", "case_07"):
        image = sitk.ReadImage(str(model / "fold_0" / "validation" / f"{case}.nii.gz"))
        values = np.zeros(image.GetSize()[::-1], np.float32)
        values[7, 2, 3] = peak
        map_ = sitk.GetImageFromArray(values)
        map_.CopyInformation(image)
        sitk.WriteImage(map_, str(folder / "uncertainty" / f"{case}_mutual_information.nii.gz"))


def test_mutual_information_is_drawn_where_it_was_written(own_model, quick, tmp_path, page_of, monkeypatch):
    def slices(told: bool) -> list[dict]:
        made = write(tmp_path, page_of)
        assert ("Disagreement is the part of it" in made.text) == told
        return [case["slices"][0] for case in data_of(made)["cases"]]

    assert [each["mutual_information"] for each in slices(told=False)] == [None, None]
    results, key = own_model.parent, ("LDSegTrainer", "LDSegPlans")
    write_information(own_model, results / "crossval_chosen_LDSegTrainer__LDSegPlans", 0.4)
    assert slices(told=False)[0]["mutual_information"] is None, "of which model?"
    save_best(results, *key, Best(("2d", "3d_fullres"), Finish()), {})
    assert slices(told=False)[0]["mutual_information"] is None, "of a pair"
    save_best(results, *key, Best(("3d_fullres",), Finish()), {})
    monkeypatch.setattr("ldseg_auto.report.pictures.fullest_slice", lambda labels: 7)
    expected = np.zeros((18, 16))
    expected[2, 3] = 1
    for each in slices(told=True):
        assert each["most_mutual_information"] == 0.4
        assert each["mutual_information"] == heat_url(expected), "in the axes of the image"
    write_information(own_model, own_model / "fold_0" / "validation", 0.2)
    assert slices(told=True)[0]["most_mutual_information"] == 0.2, "its own comes first"


def test_an_imported_model(own_model, quick, tmp_path, page_of):
    """It has scores, but neither the course of its training nor segmentations."""
    file = own_model / "fold_0" / "checkpoint_final.pth"
    content = checkpoint.load(str(file), torch.device("cpu"))
    checkpoint.save({name: value for name, value in content.items() if name != "logging"}, str(file))
    for segmentation in (own_model / "fold_0" / "validation").glob("*.n*"):
        segmentation.unlink()
    made = write(tmp_path, page_of)
    assert "fold 0 does not hold the course of its training" in made.text and "Training loss" not in made.text
    assert "The segmentations of 2 of 2 cases, such as case_00, are not there" in made.text
    for part in ("cannot be read", "--npz writes them", "cases have pictures"):
        assert part not in made.text, part
    assert "neither segmentations nor probabilities" in made.text
    assert [case["case"] for case in data_of(made)["cases"]] == ["case_00", "case_07"]
