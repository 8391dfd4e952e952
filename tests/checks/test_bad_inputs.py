"""Bad inputs of every kind: each is named with its file, its cause and a cure, and none ends in a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from bad_inputs import BAD, PLAN
from damages import changed, cut, four_d, swap, turn, with_value
from data_sets import NAME, PICTURES, DataSet

from ldseg_auto.checks.prediction import check_inputs, find_inputs
from ldseg_auto.checks.problem import ERROR, PLANS_KEY, WARNING, Problem
from ldseg_auto.checks.training import check_training
from ldseg_auto.cli import plan_and_preprocess, predict
from ldseg_auto.errors import LDSegError

READERS = {".nii.gz": "SimpleITKIO", ".png": "NaturalImage2DIO", ".nrrd": "SimpleITKIO", ".mha": "SimpleITKIO",
           ".tif": "Tiff3DIO", ".nii": "NibabelIO", ".gipl": "SimpleITKIO"}


def _train_and_check(data: DataSet, damage: Callable[[DataSet], object]) -> tuple[list[str], list[Problem]]:
    """The good cases of imagesTs, and the problems, for a model of the undamaged training set."""
    plans = {"image_reader_writer": READERS[data.ending], PLANS_KEY: check_training(NAME).facts}
    damage(data)
    good, problems = check_inputs(find_inputs(data.folder / "imagesTs", data.description), data.description, plans)
    return list(good), problems


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, raw):
    bad = BAD[name]
    data = DataSet(raw, **bad.made)
    if bad.severity == ERROR and (bad.command == PLAN or not bad.file and "has 3" not in bad.cause):
        with pytest.raises(LDSegError) as caught:
            if bad.command == PLAN:
                bad.damage(data)
                check_training(NAME)
            else:
                _train_and_check(data, bad.damage)
        said = [line for line in (caught.value.cause, *caught.value.details) if bad.cause in line]
        assert said and bad.file in said[0] and caught.value.cure
        assert len(caught.value.details) <= 1, "one thing is wrong, and said once"
        return
    if bad.command == PLAN:
        bad.damage(data)
        problems = check_training(NAME).problems
    else:
        good, problems = _train_and_check(data, bad.damage)
        assert ("t1" in good) == (bad.severity == WARNING or "t9" in bad.file)
        assert "t0" in good, "one bad case does not stop the others"
    (problem,) = problems
    assert problem.severity == bad.severity and bad.cause in problem.cause and bad.file in problem.file
    assert problem.cure.endswith(".") or problem.cure.endswith("?")


REGIONS = {"labels": {"background": 0, "all": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2],
           "values": (0, 1, 2, 3)}
GOOD = {
    "MR": {}, "MR of seven": {"cases": 7}, "CT": {"channels": {"0": "CT"}}, "CT and PET": {"channels": {
        "0": "CT", "1": "PET"}, "cases": 6}, "pictures": PICTURES, "regions and ignored voxels": REGIONS,
    "NRRD": {"ending": ".nrrd"}, "GIPL": {"ending": ".gipl"}, "MHA": {"ending": ".mha"}, "NIfTI": {"ending": ".nii"},
    "TIFF": {"ending": ".tif"},
    "2D TIFF": {"ending": ".tif", "flat": True}, "2D NIfTI": {"flat": True},
    "a reader of choice": {"overwrite_image_reader_writer": "NibabelIOWithReorient"},
}
EXPECTED_READERS = {"2D TIFF": "NaturalImage2DIO", "a reader of choice": "NibabelIOWithReorient"}


@pytest.mark.parametrize("name", GOOD)
def test_good_input(name, raw):
    data = DataSet(raw, **GOOD[name])
    checked = check_training(NAME)
    assert checked.problems == [] and checked.left_out == [] and checked.counted_rightly
    assert len(checked.cases) == data.description["numTraining"]
    assert checked.reader == EXPECTED_READERS.get(name, READERS[data.ending])
    plans = {"image_reader_writer": checked.reader, PLANS_KEY: checked.facts}
    good, problems = check_inputs(find_inputs(raw / "imagesTs", data.description), data.description, plans)
    assert list(good) == ["t0", "t1"] and problems == []


def test_cases_are_listed_as_nnunet_lists_them(raw):
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    DataSet(raw)
    listed = check_training(NAME).cases
    assert listed == get_filenames_of_train_images_and_targets(str(raw))


def test_files_may_be_listed_in_dataset_json(raw, monkeypatch):
    """With variables, and outside of imagesTr, as nnU-Net reads them."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    data = DataSet(raw)
    os.rename(raw / "imagesTr", raw / "elsewhere")
    os.rename(raw / "labelsTr", raw / "truth")
    monkeypatch.setenv("TRUTH", str(raw / "truth"))
    data.describe(dataset={case: {"images": [f"elsewhere/{case}_{i:04d}.nii.gz" for i in range(2)],
                                  "label": f"$TRUTH/{case}.nii.gz"} for case in ("c2", "c0", "c1")})
    checked = check_training(NAME)
    assert checked.problems == [] and list(checked.cases) == ["c2", "c0", "c1"]
    assert checked.cases == get_filenames_of_train_images_and_targets(str(raw))


def test_mr_of_any_scale_is_no_wrong_order(raw):
    data = DataSet(raw, cases=7)
    checked = check_training(NAME)
    data.write_images("imagesTs", "t1", 101, scale=1000)
    plans = {"image_reader_writer": checked.reader, PLANS_KEY: checked.facts}
    assert check_inputs(find_inputs(raw / "imagesTs", data.description), data.description, plans)[1] == []


def test_a_model_of_earlier_plans_is_checked_without_what_they_lack(raw):
    data = DataSet(raw, cases=7)
    turn(data, "t1", "imagesTs")
    swap(data, "t1", "imagesTs")
    plans = {"image_reader_writer": "SimpleITKIO"}
    assert check_inputs(find_inputs(raw / "imagesTs", data.description), data.description, plans)[1] == []


def test_all_bad_cases_are_listed_at_once(raw):
    data = DataSet(raw, cases=5)
    data.label("c0").unlink()
    data.image("c0").write_bytes(b"")
    with_value(data.label("c1"), 9)
    cut(data.image("c2", 1))
    data.image("c3", 1).unlink()
    with pytest.raises(LDSegError) as caught:
        check_training(NAME)
    assert caught.value.cause == "4 of 5 training cases of Dataset004_Small cannot be used."
    assert len(caught.value.details) == 5 and "--skip_bad_cases" in caught.value.cure
    for part in ("labelsTr/c0.nii.gz is missing", "c0_0000.nii.gz is empty", "labelsTr/c1.nii.gz holds 9",
                 "c2_0001.nii.gz is cut off", "c3_0000.nii.gz has 1 channels"):
        assert any(part in line for line in caught.value.details), part


@pytest.mark.parametrize("damage, part", [
    (lambda d: d.image().write_bytes(b"PNG"), "c1_0000.png cannot be read"),
    (lambda d: changed(d, numTraining=9), "says numTraining 9"),
    (lambda d: [f.write_bytes(b"") for f in (d.folder / "imagesTr").iterdir()], "c2_0000.png is empty")])
def test_the_planning_command_ends_without_a_traceback(damage, part, raw, capfd):
    damage(DataSet(raw, **PICTURES))
    assert plan_and_preprocess.main(["-d", "4"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert part in error and "Traceback" not in error


@pytest.fixture
def model(raw, nnunet_folders):
    """A trained model as far as it is looked at before the images are."""
    data = DataSet(raw)
    folder = nnunet_folders["nnUNet_results"] / NAME / "LDSegTrainer__LDSegPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    (folder / "dataset.json").write_text(json.dumps(data.description))
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO",
                                                   "configurations": {"3d_fullres": {}}}))
    return data


def test_the_prediction_command_ends_without_a_traceback(model, tmp_path, capfd):
    cut(model.image("t0", 1, "imagesTs"))
    four_d(model.image("t1", 0, "imagesTs"))
    arguments = ["-i", str(model.folder / "imagesTs"), "-o", str(tmp_path / "out"), "-d", "4"]
    for skip in ([], ["--skip_bad_cases"]):
        assert predict.main(arguments + skip) == 1, "with no good case there is nothing to go on with"
        error = capfd.readouterr().err
        assert "t0_0001.nii.gz is cut off" in error and "t1_0000.nii.gz is 4D" in error
        assert "error: None of the cases can be predicted" in error and "Traceback" not in error
    recorded = json.loads((tmp_path / "out" / "data_check.json").read_text())
    assert recorded["left_out"] == ["t0", "t1"] and recorded["problems"][0]["cure"]
