"""What one pass over the cases gathers, and its limits."""

from dataclasses import replace

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ldseg_auto.evaluation.calibration import confidence_bins
from ldseg_auto.folders import read_json
from ldseg_auto.report import walk as module
from ldseg_auto.report.build import _raw_files
from ldseg_auto.report.cases import find_cases
from ldseg_auto.report.model import Model
from ldseg_auto.report.pictures import palette
from ldseg_auto.report.volumes import read_volumes
from ldseg_auto.report.walk import walk


@pytest.fixture
def world(own_model):
    """The two validation cases, and what `walk` takes besides."""
    plans, description = read_json(own_model / "plans.json"), read_json(own_model / "dataset.json")
    model = Model(own_model, (0,), "checkpoint_final.pth", plans, description)
    manager = PlansManager(plans)
    cases, _ = find_cases(model, _raw_files(model)[0])
    return cases, (manager.image_reader_writer_class(), manager.get_label_manager(description),
                   palette(description["labels"]))


def test_everything_of_every_case(world):
    cases, others = world
    found = walk(cases, [1], *others)
    assert set(found.slices) == {0, 1} and set(found.embedded) == {1}
    assert set(found.embedded[1]["files"]) == {"image", "truth", "prediction", "entropy"}
    assert found.counted == 2 and not found.left_out and not found.flat
    reader, *_ = others
    read = [read_volumes(case, reader, regions=False) for case in cases]
    by_hand = sum(confidence_bins(each.probabilities, each.truth, each.prediction, None, None) for each in read)
    assert (found.bins == by_hand).all() and by_hand[0].sum() > 0


def test_without_probabilities(world):
    cases, others = world
    found = walk([replace(case, probabilities=None) for case in cases], [0], *others)
    assert found.counted == 0 and found.slices[0][0]["entropy"] is None
    assert set(found.embedded[0]["files"]) == {"image", "truth", "prediction"}


def test_without_images_only_the_reliability_is_left(world):
    cases, others = world
    found = walk([replace(case, images=()) for case in cases], [0], *others)
    assert found.counted == 2 and not found.slices and not found.embedded and not found.left_out


def test_without_truth_nothing_is_read(world):
    cases, others = world
    found = walk([replace(case, truth=None, prediction=None) for case in cases], [0], *others)
    assert not found.slices and not found.counted and not found.left_out


def test_a_page_has_room_for_so_many_pictures(world, monkeypatch):
    cases, others = world
    monkeypatch.setattr(module, "MAX_PICTURES", 1)
    found = walk(cases, [1], *others)
    assert set(found.slices) == {1} and found.counted == 2, "the others are counted all the same"
    assert found.left_out == ["Only 1 cases have pictures, the worst first, to keep the page small."]


def test_a_page_has_room_for_so_many_volumes(world, monkeypatch):
    cases, others = world
    size = sum(map(len, walk(cases, [0], *others).embedded[0]["files"].values()))
    monkeypatch.setattr(module, "MAX_CHARACTERS", size + 10)
    found = walk(cases, [0, 1], *others)
    assert set(found.embedded) == {0} and set(found.slices) == {0, 1}
    assert "room for 1 of 2" in found.left_out[0]


@pytest.mark.parametrize("damage, part", [
    (lambda case: case.probabilities.write_bytes(b"PK"), "case_00 of fold 0 cannot be read"),
    (lambda case: case.prediction.write_bytes(b"no image"), "cannot be read"),
    (lambda case: np.savez_compressed(case.probabilities, probabilities=np.zeros((3, 2, 2, 2))), "differ in shape"),
    (lambda case: np.savez_compressed(case.probabilities, other=np.zeros(2)), "cannot be read (KeyError")])
def test_a_damaged_case_is_left_out_and_named(damage, part, world):
    cases, others = world
    damage(cases[0])
    found = walk(cases, [0, 1], *others)
    assert set(found.slices) == {1} and found.counted == 1
    sentence, = found.left_out
    assert part in sentence


def test_objects_in_an_archive_are_not_loaded(world):
    cases, others = world
    np.savez_compressed(cases[0].probabilities, probabilities=np.array([{}], dtype=object))
    assert "allow_pickle=False" in walk(cases, [], *others).left_out[0]
