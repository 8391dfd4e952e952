"""Which cases there are, and which are the worst and the best."""

import json
import math
from pathlib import Path

import pytest

from ldseg_auto.report.cases import Case, class_names, find_cases, worst_and_best
from ldseg_auto.report.model import Model


def case(name: str, *dice: float | None) -> Case:
    return Case(name, 0, dice, ((1, 1),) * len(dice), 0.001, Path(name), None, (), None)


@pytest.mark.parametrize("labels, expected", [
    ({"background": 0, "organ": 1}, {"1": "organ"}),
    ({"background": 0, "a": 1, "b": [2], "ignore": 3}, {"1": "a", "2": "b"}),
    ({"background": 0, "whole": [1, 2], "core": [2], "rim": 1}, {"(1, 2)": "whole", "(2,)": "core", "1": "rim"})])
def test_names_by_the_keys_that_nnunet_writes(labels, expected):
    assert class_names(labels) == expected
    from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(labels, [1, 2, 1] if len(expected) == 3 else None)
    written = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    assert {label_or_region_to_key(each) for each in written} == set(expected)


def test_worst_and_best_are_never_the_same():
    cases = [case("a", 0.5, 0.7), case("b", None, 0.2), case("c", None, None), case("d", 0.9, None), case("e", 0.7)]
    assert [each.mean_dice for each in cases] == [pytest.approx(0.6), 0.2, None, 0.9, 0.7]
    assert worst_and_best(cases, 1) == ([1], [3])
    assert worst_and_best(cases, 2) == ([1, 0], [3, 4])
    assert worst_and_best(cases, 9) == ([1, 0], [3, 4])
    assert worst_and_best(cases[2:3], 3) == ([], [])
    assert worst_and_best(cases[:1], 3) == ([0], [])


@pytest.fixture
def model(tmp_path) -> Model:
    description = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    return Model(tmp_path / "Dataset004_Small" / "MyTrainer__MyPlans__2d", (0, "all"), "checkpoint_final.pth",
                 {"image_reader_writer": "SimpleITKIO"}, description)


def test_cases_of_moved_results(model):
    folder = model.validation_folder(0)
    folder.mkdir(parents=True)
    counts = {"Dice": math.nan, "n_ref": 0, "n_pred": 0}
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": [
        {"prediction_file": "/elsewhere/a.b.nii.gz", "metrics": {"1": counts}}]}))
    (folder / "a.b.npz").touch()
    (found,), (sentence,) = find_cases(model, {"a.b": {"images": ["i.nii.gz"], "label": "l.nii.gz"}})
    assert found == Case("a.b", 0, (None,), ((0, 0),), None, folder / "a.b.nii.gz", folder / "a.b.npz",
                         (Path("i.nii.gz"),), Path("l.nii.gz"))
    assert "Fold all has no validation/summary.json" in sentence
    assert "ldseg_train 4 all -c 2d -tr MyTrainer -p MyPlans --val --npz" in sentence
    (unknown,), _ = find_cases(model, {})
    assert unknown.images == () and unknown.truth is None


def test_another_checkpoint_has_another_validation(model):
    best = Model(model.folder, model.folds, "checkpoint_best.pth", model.plans, model.description)
    assert best.validation_folder(0).name == "validation_best"
    assert "--val --val_best --npz" in best.validation_command([0])
