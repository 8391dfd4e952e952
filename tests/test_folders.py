"""Cures that name the command which makes what is missing."""

import json
import re

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import load_plans, require_preprocessed

DATASET = "Dataset005_Five"


@pytest.mark.parametrize(("name", "cure"), [
    ("LDSegPlans", "ldseg_plan_and_preprocess -d 5"),
    ("Other", "-d 5 with -overwrite_plans_name Other or the -pl that says so"),
    ("LDSegPlansFrom004", "-d 5 -s 004 -sp LDSegPlans -overwrite_plans_name LDSegPlansFrom004")])
def test_plans_that_are_missing(nnunet_folders, name, cure):
    with pytest.raises(LDSegError, match=f"{re.escape(cure)}$"):
        load_plans(DATASET, name)


def test_cases_of_plans_that_were_taken_over(nnunet_folders):
    plans = {"plans_name": "Mine", "taken_over_from": {"dataset_name": "Dataset004_Four", "plans_name": "LDSegPlans"},
             "configurations": {"2d": {"data_identifier": "Mine_2d"}}}
    folder = nnunet_folders["nnUNet_preprocessed"] / DATASET
    folder.mkdir()
    (folder / "Mine.json").write_text(json.dumps(plans))
    cure = "-d 5 -c 2d -s Dataset004_Four -sp LDSegPlans -overwrite_plans_name Mine"
    with pytest.raises(LDSegError, match=f"{re.escape(cure)}$"):
        require_preprocessed(DATASET, plans, "2d")
