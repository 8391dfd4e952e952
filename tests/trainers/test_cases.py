"""Preprocessed cases that cannot be read are named before a training begins."""

import os

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers.run import train_folds


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, file.stat().st_size // 2), os.remove],
                         ids=["cut off", "gone"])
def test_damaged_cases_are_named(own_small_world, ending, damage):
    damage(own_small_world["preprocessed"] / "LDSegPlans_3d_fullres" / f"case_03{ending}")
    with pytest.raises(LDSegError, match="Only 9 of 10 cases" if (ending, damage) == (".pkl", os.remove)
                       else "are damaged or incomplete: case_03"):
        train_folds("7", ["1"], "3d_fullres", device="cpu")
    assert not (own_small_world["model"] / "fold_1" / "checkpoint_latest.pth").exists()
