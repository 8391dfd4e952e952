"""Where labels, reader and tolerance come from."""

import json
import shutil

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.setting import find_setting, is_flat


@pytest.fixture
def find(folders):
    return lambda **options: find_setting(folders["predictions"], folders["references"], **options)


def _change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_beside_the_predictions(find, folders):
    setting = find()
    assert setting.dataset_json == folders["predictions"] / "dataset.json"
    assert setting.groups == {"organ": (1,), "lesion": (2,)}
    assert (setting.ignore_label, setting.file_ending) == (None, ".nii.gz")
    assert setting.reader_class.__name__ == "SimpleITKIO"
    assert setting.tolerance_mm == {"organ": 2.0, "lesion": 2.0}
    assert setting.tolerance_from == f"largest median spacing of the data set, from {folders['predictions']}/plans.json"


def test_in_the_model_folder_above_a_validation(find, folders):
    model = folders["predictions"].parent / "model"
    shutil.copytree(folders["predictions"], model / "fold_0" / "validation")
    for name in ("dataset.json", "plans.json"):
        (model / "fold_0" / "validation" / name).rename(model / name)
    setting = find_setting(model / "fold_0" / "validation", folders["references"])
    assert setting.groups == find().groups and setting.tolerance_mm == find().tolerance_mm


def test_regions_and_the_ignore_label(find, folders):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    _change(folders["predictions"] / "dataset.json", labels=labels, regions_class_order=[1, 2])
    setting = find()
    assert setting.groups == {"whole": (1, 2), "core": (2,)} and setting.ignore_label == 3


def test_a_data_set_or_files_that_are_named(find, folders, nnunet_folders, write_json):
    description = json.loads((folders["predictions"] / "dataset.json").read_text())
    raw = nnunet_folders["nnUNet_raw"] / "Dataset003_Other"
    write_json(raw / "dataset.json", description | {"labels": {"background": 0, "bone": 1}})
    assert set(find(dataset="3").groups) == {"bone"}
    assert find(dataset="3").tolerance_mm == {"bone": 2.0}, "no plans there: those beside the predictions"
    write_json(nnunet_folders["nnUNet_preprocessed"] / "Dataset003_Other" / "LDSegPlans.json",
               {"image_reader_writer": "NibabelIO", "original_median_spacing_after_transp": [1, 3, 1]})
    assert find(dataset="3").tolerance_mm == {"bone": 3.0} and find(dataset="3").reader_class.__name__ == "NibabelIO"
    assert find(dataset="Dataset003_Other") == find(dataset="3")
    assert set(find(dataset_json=str(raw / "dataset.json")).groups) == {"bone"}
    write_json(raw / "my.json", {"image_reader_writer": "NibabelIO", "original_median_spacing_after_transp": [5, 1, 1]})
    setting = find(plans_json=str(raw / "my.json"))
    assert setting.tolerance_mm["organ"] == 5.0 and setting.reader_class.__name__ == "NibabelIO"


def test_without_plans(find, folders):
    (folders["predictions"] / "plans.json").unlink()
    setting = find()
    assert setting.tolerance_mm == {"organ": 1.0, "lesion": 1.0} and "no plans" in setting.tolerance_from
    assert setting.reader_class.__name__ == "SimpleITKIO"
    _change(folders["predictions"] / "dataset.json", overwrite_image_reader_writer="NibabelIO")
    assert find().reader_class.__name__ == "NibabelIO"


@pytest.mark.parametrize("given, tolerances, source", [
    (0.5, {"organ": 0.5, "lesion": 0.5}, "as given"), ({None: 0.5}, {"organ": 0.5, "lesion": 0.5}, "as given"),
    ({"organ": 0.5, "lesion": 3}, {"organ": 0.5, "lesion": 3.0}, "as given"),
    ({"organ": 4.0, None: 0.5}, {"organ": 4.0, "lesion": 0.5}, "as given"),
    ({"organ": 4.0}, {"organ": 4.0, "lesion": 2.0}, "as given; of the others: largest median spacing")])
def test_tolerances(given, tolerances, source, find):
    setting = find(tolerance_mm=given)
    assert setting.tolerance_mm == tolerances and setting.tolerance_from.startswith(source)


def test_the_tolerance_of_2d_images_leaves_out_the_axis_they_lack(find, folders):
    _change(folders["predictions"] / "plans.json", original_median_spacing_after_transp=[999, 0.5, 0.7])
    assert find().tolerance_mm["organ"] == 0.7


@pytest.mark.parametrize("shape, spacing, flat", [
    ((1, 9, 9), (999, 1, 1), True), ((1, 9, 9), (0.3 * 999, 0.2, 0.3), True), ((1, 9, 9), (5.0, 1, 1), False),
    ((2, 9, 9), (999, 1, 1), False)])
def test_which_images_are_2d(shape, spacing, flat):
    assert is_flat(shape, spacing) == flat


@pytest.mark.parametrize("changes, message", [
    ({"labels": {"organ": 1}}, "nnU-Net refuses the labels"),
    ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions_class_order"),
    ({"labels": {"background": 0, "organ": "one"}}, "nnU-Net refuses the labels"),
    ({"labels": ["background", "organ"]}, "nnU-Net refuses the labels"),
    ({"labels": None}, "nnU-Net refuses the labels"),
    ({"file_ending": ".xyz"}, "no reader")])
def test_unusable_descriptions(changes, message, find, folders):
    (folders["predictions"] / "plans.json").unlink()
    _change(folders["predictions"] / "dataset.json", **changes)
    with pytest.raises(LDSegError, match=message):
        find()


def test_plans_of_an_unknown_reader(find, folders):
    _change(folders["predictions"] / "plans.json", image_reader_writer="MyIO")
    with pytest.raises(LDSegError, match="MyIO"):
        find()
