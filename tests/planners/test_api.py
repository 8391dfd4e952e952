"""Checks before any work, and what is handed to nnU-Net's functions."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.errors import LDSegError
from ldseg_auto.planners import api

NAME = "Dataset902_Api"
DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "numTraining": 4,
               "file_ending": ".nii.gz"}


@pytest.fixture
def raw(nnunet_folders):
    """A valid data set of four cases, and the fingerprint nnU-Net would extract (its workers are slow to start)."""
    folder = nnunet_folders["nnUNet_raw"] / NAME
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:11, 5:12, 3:10] = 1
    for number, case in enumerate("abcd"):
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"{case}.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels.astype(np.float32) + number),
                        str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
    _describe(folder)
    preprocessed = nnunet_folders["nnUNet_preprocessed"] / NAME
    preprocessed.mkdir()
    statistics = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps({
        "spacings": [[1, 1, 1]] * 4, "shapes_after_crop": [[16, 16, 16]] * 4,
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "median_relative_size_after_cropping": 1.0}))
    return folder


@pytest.fixture
def preprocessed(monkeypatch):
    """The arguments with which nnU-Net's preprocessing was called."""
    calls = []
    monkeypatch.setattr(api, "preprocess_dataset", lambda *arguments: calls.append(arguments))
    return calls


def _describe(folder, **changes):
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION | changes))


def test_everything_planned_is_preprocessed(raw, preprocessed, nnunet_folders):
    plans = api.plan_and_preprocess([902])
    assert set(plans) == {NAME} and set(plans[NAME]["configurations"]) == {"2d", "3d_fullres"}
    written = nnunet_folders["nnUNet_preprocessed"] / NAME
    assert (written / "label_fingerprint.json").is_file() and (written / "LDSegPlans.json").is_file()
    (number, identifier, configurations, processes, verbose), = preprocessed
    assert (number, identifier, verbose) == (902, "LDSegPlans", False)
    assert set(configurations) == {"2d", "3d_fullres"} and len(processes) == 2


def test_options_reach_nnunet(raw, preprocessed, nnunet_folders):
    plans = api.plan_and_preprocess([NAME, 902], configurations=["2d", "3d_lowres"], plans_name="Mine",
                                    gpu_memory_target_in_gb=4, overwrite_target_spacing=(2, 1, 1), num_processes=[3],
                                    verbose=True)[NAME]
    assert (nnunet_folders["nnUNet_preprocessed"] / NAME / "Mine.json").is_file()
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2, 1, 1]
    assert plans["configurations"]["2d"]["ldseg"]["memory"]["target_gb"] == 4
    assert preprocessed == [(902, "Mine", ["2d"], [3], True)]


def test_no_preprocessing(raw, preprocessed):
    api.plan_and_preprocess([902], no_preprocessing=True)
    assert preprocessed == []


@pytest.mark.parametrize("cases, clean, expected", [(4, False, False), (4, True, True), (3, False, True)])
def test_fingerprint_is_renewed_when_asked_or_when_cases_changed(raw, nnunet_folders, monkeypatch, cases, clean,
                                                                 expected):
    file = nnunet_folders["nnUNet_preprocessed"] / NAME / "dataset_fingerprint.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"spacings": content["spacings"][:cases]}))
    calls = []
    monkeypatch.setattr(api, "extract_fingerprint_dataset", lambda *_, **options: calls.append(options))
    api.plan_and_preprocess([902], clean=clean, no_preprocessing=True, num_processes_fingerprint=5)
    assert calls[0]["clean"] is expected and calls[0]["num_processes"] == 5


def test_integrity_check_is_nnunets(raw, monkeypatch):
    def refuse(folder, processes):
        raise RuntimeError("shape mismatch")
    monkeypatch.setattr(api, "verify", refuse)
    with pytest.raises(LDSegError, match="shape mismatch"):
        api.plan_and_preprocess([902], verify_dataset_integrity=True)


@pytest.mark.parametrize("options, message", [
    ({"gpu_memory_target_in_gb": 0}, "memory target"),
    ({"overwrite_target_spacing": (1, 1)}, "three positive"),
    ({"plans_name": "My__Plans"}, "'__'"),
    ({"configurations": ["3d_cascade_fullres"]}, "no configuration 3d_cascade_fullres"),
    ({"configurations": ["3d_lowres"]}, "Choose from: 2d, 3d_fullres"),
    ({"num_processes": [1, 2, 3]}, "3 numbers of processes"),
])
def test_wrong_options_are_refused(raw, preprocessed, options, message):
    with pytest.raises(LDSegError, match=message):
        api.plan_and_preprocess([902], **options)
    assert preprocessed == []


def test_unknown_data_set_is_refused(raw):
    with pytest.raises(LDSegError, match=NAME):
        api.plan_and_preprocess([902, 77])


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_missing_variables_are_refused(raw, monkeypatch, variable):
    monkeypatch.delenv(variable)
    with pytest.raises(LDSegError, match=variable):
        api.plan_and_preprocess([902])


def test_plans_of_another_planner_are_not_overwritten(raw, nnunet_folders):
    file = nnunet_folders["nnUNet_preprocessed"] / NAME / "nnUNetPlans.json"
    file.write_text(json.dumps({"experiment_planner_used": "ExperimentPlanner"}))
    with pytest.raises(LDSegError, match="ExperimentPlanner"):
        api.plan_and_preprocess([902], plans_name="nnUNetPlans")


@pytest.mark.parametrize("labels, message", [
    ({"organ": 1}, "background"),
    ({"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order"),
    ({"background": 0, "organ": 1, "ignore": 1}, "ignore"),
])
def test_invalid_labels_are_refused(raw, labels, message):
    _describe(raw, labels=labels)
    with pytest.raises(LDSegError, match=message):
        api.plan_and_preprocess([902])


def test_bad_cases_end_it_before_anything_is_written(raw, nnunet_folders, preprocessed):
    """tests/checks has every kind of them."""
    (raw / "labelsTr" / "a.nii.gz").unlink()
    with pytest.raises(LDSegError, match="1 of 4 training cases") as caught:
        api.plan_and_preprocess([902])
    assert "labelsTr/a.nii.gz is missing" in caught.value.details[0] and preprocessed == []
    assert [file.name for file in (nnunet_folders["nnUNet_preprocessed"] / NAME).iterdir()] == [
        "dataset_fingerprint.json"]


def test_what_the_check_found_is_recorded_and_gets_into_the_plans(raw, preprocessed, nnunet_folders, capsys):
    sitk.WriteImage(sitk.Image(16, 16, 16, sitk.sitkUInt8), str(raw / "labelsTr" / "c.nii.gz"))
    plans = api.plan_and_preprocess([902])[NAME]
    assert "c.nii.gz holds background only" in capsys.readouterr().out
    record = json.loads((nnunet_folders["nnUNet_preprocessed"] / NAME / "data_check.json").read_text())
    assert record["problems"][0]["severity"] == "warning" and record["left_out"] == []
    assert plans["training_images"] == {"orientations": {"LPS": 4}, "channels": []}
    assert record["orientations"] == {"LPS": 4} and record["cases"] == list("abcd")


def test_the_check_has_as_many_processes_as_the_fingerprints(raw, preprocessed, monkeypatch):
    calls = []

    def check(name, processes, skip):
        calls.append((name, processes, skip))
        raise LDSegError("enough", "")
    monkeypatch.setattr(api, "check_training", check)
    for options in ({"num_processes_fingerprint": 5}, {"skip_bad_cases": True}):
        with pytest.raises(LDSegError, match="enough"):
            api.plan_and_preprocess([902], **options)
    assert calls == [(NAME, 5, False), (NAME, 1, True)]
