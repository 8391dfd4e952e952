import json

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing.manifest import Manifest, is_plain_name

ENTRY = {"sha256": "0" * 64, "bytes": 3}
MODEL = "Dataset004_Small/LDSegTrainer__LDSegPlans__2d"
CONTENT = {"ldseg_model_format": 1, "dataset": "Dataset004_Small", "trainer": "LDSegTrainer", "plans": "LDSegPlans",
           "checkpoint": "checkpoint_final.pth", "configurations": {"2d": [0, "all"]}, "created": "today",
           "versions": {}, "files": {f"{MODEL}/plans.json": ENTRY, f"{MODEL}/fold_all/validation/summary.json": ENTRY}}


def test_round_trip():
    assert json.loads(json.dumps(Manifest.from_json(CONTENT).to_json())) == CONTENT


@pytest.mark.parametrize("key, value, part", [
    ("ldseg_model_format", 2, "newer"), ("ldseg_model_format", "1", "format"), ("ldseg_model_format", True, "format"),
    ("dataset", "Dataset004_../..", "data set"), ("dataset", "Dataset4_Small", "data set"), ("dataset", 4, "data set"),
    ("dataset", "Dataset\uff10\uff10\uff14_Small", "data set"),  # digits of another script
    ("dataset", "Dataset004_Sma\u202ell", "data set"), ("dataset", "Dataset004_Small\n", "data set"),
    ("trainer", "../Trainer", "trainer"), ("plans", "A__B", "plans"), ("plans", "/etc", "plans"),
    ("checkpoint", None, "checkpoint"), ("configurations", {}, "no configuration"),
    ("configurations", ["2d"], "no configuration"), ("configurations", {"..": [0]}, "configuration"),
    ("configurations", {"2d": []}, "folds"), ("configurations", {"2d": ["../x"]}, "folds"),
    ("configurations", {"2d": [0, 0]}, "folds"), ("configurations", {"2d": [True]}, "folds"),
    ("configurations", {"2d": [-1]}, "folds"), ("configurations", {"2d": [[0]]}, "folds"),
    ("created", 3, "when"), ("versions", [], "versions"),
    ("files", [], "list of files"), ("files", {f"{MODEL}/plans.json": "0" * 64}, "list of files"),
    ("files", {f"{MODEL}/plans.json": ENTRY | {"sha256": "0" * 63}}, "SHA-256"),
    ("files", {f"{MODEL}/plans.json": ENTRY | {"bytes": -1}}, "size"),
    ("files", {f"{MODEL}/plans.json": {}}, "SHA-256"),
    ("files", {"../../evil": ENTRY}, "no file of a shared model"),
    ("files", {f"{MODEL}/fold_0/checkpoint_best.pth": ENTRY}, "no file of a shared model"),  # pickled
    ("files", {f"{MODEL}/postprocessing.pkl": ENTRY}, "no file of a shared model"),
    ("files", {f"{MODEL}/fold_1/checkpoint.json": ENTRY}, "no file of a shared model")])
def test_other_content_is_refused(key, value, part):
    with pytest.raises(LDSegError, match=part):
        Manifest.from_json(CONTENT | {key: value})


@pytest.mark.parametrize("content", [[], None, {}, {"ldseg_model_format": 1}])
def test_what_is_no_manifest_is_refused(content):
    with pytest.raises(LDSegError, match="manifest"):
        Manifest.from_json(content)


def test_files_that_prediction_needs_must_be_listed():
    with pytest.raises(LDSegError, match=f"lacks {MODEL}/dataset.json"):
        Manifest.from_json(CONTENT).require_complete()


@pytest.mark.parametrize("name, plain", [
    ("3d_fullres", True), ("2d", True), ("ResEnc M+2.5-x", True), ("Läsion", True), ("a", True), ("", False),
    (".", False), ("..", False), (".hidden", False), ("end.", False), ("end ", False), ("a/b", False), ("a\\b", False),
    ("c:", False), ("a\n", False), ("a\0", False), ("-flag", False), ("x" * 300, False), (None, False)])
def test_plain_names(name, plain):
    assert is_plain_name(name) == plain
