"""What is fitted to predictions of cross-validation cases, where their truth is not whole."""

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ldseg_auto.inference import finish
from ldseg_auto.inference.choice import Choice, Sampler, load_choice, save_choice


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Sets the truths of the cases: each is predicted as one cube of eight voxels, half a voxel less in the volume, and
    what is given besides."""
    cube = np.zeros((6, 6, 6), np.uint8)
    cube[2:4, 2:4, 2:4] = 1
    np.savez(tmp_path / "case.npz", probabilities=np.stack([0.8 - 0.6 * cube, 0.2 + 0.6 * cube]))

    def use(truths, segmentation=cube, volume=7.5):
        class Cases(finish.Cases):
            def __init__(self, *_):
                self.labels = LabelManager({"background": 0, "a": 1, "ignore": 2}, None)
                self.classes, self.structures = ["a"], finish.structures_of(self.labels)

            def __iter__(self):
                figures = {"a": {"volume": volume, "deviation": 1.0}}
                return (finish.Case(tmp_path / "case.npz", segmentation, truth, 1.0, figures) for truth in truths)

        monkeypatch.setattr(finish, "Cases", Cases)
        return cube

    return use


def test_small_components_go_where_that_helps(made_up, tmp_path):
    whole = made_up([])
    speckled = whole.copy()
    speckled[0, 0, 0] = 1
    made_up([whole] * 2, speckled)
    fitted, evidence = finish.fit(tmp_path, ["case"] * 2, tmp_path)
    assert fitted.largest_component == (1,) and evidence["gain_of_largest_component"]["a"] == pytest.approx(1 / 17)
    made_up([speckled] * 2, speckled)
    assert finish.fit(tmp_path, ["case"] * 2, tmp_path)[0].largest_component == ()
    save_choice(tmp_path, Choice(Sampler(1, 1, 0.0, False), fitted), evidence)
    assert load_choice(tmp_path).finish == fitted
    regions = LabelManager({"background": 0, "whole": [1, 2], "core": [2], "rim": 1}, [1, 2, 1])
    assert repr(finish.structures_of(regions)) == "[(1, 2), (2,), 1]"


def test_expected_dice_is_what_was_met(made_up, tmp_path):
    """Promised .8 to .9; met 1 in half of the cases and .8 in the others, whatever was promised."""
    whole = made_up([])
    half = whole.copy()
    half[3:] = 0
    truths = [whole] * 6 + [half] * 6
    made_up(truths)
    fitted, evidence = finish.fit(tmp_path, ["case"] * 12, tmp_path)
    (offset, slope), = fitted.expected_dice_lines
    assert slope == 0 and offset == pytest.approx((1 + 2 / 3) / 2)
    errors = {name: found["error_of_expected_dice"] for name, found in evidence["calibration"].items()}
    assert errors["recalibrated"] == pytest.approx(1 / 6)
    assert made_up(truths[:8]) is not None
    assert finish.fit(tmp_path, ["case"] * 8, tmp_path)[0].expected_dice_lines == ()


def test_volumes_that_are_not_known_fit_no_interval(made_up, tmp_path):
    """Half of a structure may lie among the ignored voxels."""
    whole = made_up([])
    partly = whole.copy()
    partly[3:] = 2
    made_up([whole] * 10 + [partly] * 2)
    fitted, evidence = finish.fit(tmp_path, ["case"] * 12, tmp_path)
    assert fitted.interval_scales == (0.5,)
    assert evidence["dice"] == 1
    made_up([partly] * 12)
    assert finish.fit(tmp_path, ["case"] * 12, tmp_path)[0].interval_scales == ()


def test_volumes_without_error_have_an_interval_without_width(made_up, tmp_path):
    """Of a class that nearly no case holds, and that is not predicted there."""
    whole = made_up([])
    made_up([whole] * 12, volume=8.0)
    fitted, _ = finish.fit(tmp_path, ["case"] * 12, tmp_path)
    assert fitted.interval_scales == (0.0,)
