"""Tables and figures from what the benchmarks measure."""

from __future__ import annotations

import json

import figures
import matplotlib.image
import numpy as np
import pytest
import robustness
import training_cost
from accuracy import report_signs
from corruptions import CORRUPTIONS, SEVERITIES
from models import Prediction
from tqdm import tqdm


def losing(by: float, cases: int = 3) -> dict[str, list[list[float]]]:
    """Dice .9 on clean images, less with every severity."""
    return {name: [[0.9 - by * severity] * cases for severity in SEVERITIES] for name in CORRUPTIONS}


def test_robustness_has_loss_and_area_of_every_side():
    lines = robustness.report({"ldseg": losing(0.01), "nnunet": losing(0.1)}).splitlines()
    assert len(lines) == 2 + 2 * len(CORRUPTIONS)
    assert lines[2].endswith("| 0.030 |  | 0.880 |")
    assert lines[3].endswith("| 0.300 | +0.270 [+0.270, +0.270] | 0.700 |")


def test_only_the_corruptions_that_are_asked_for_are_measured():
    class Perfect:
        def predict(self, image, properties):
            return Prediction((image[0] > 0).astype(np.uint8), 0.1)

    image = np.where(np.arange(512).reshape(1, 8, 8, 8) % 2, 1.0, -1.0).astype(np.float32)
    with tqdm(disable=True) as progress:
        found = robustness.measure(Perfect(), [(image, {}, (image[0] > 0).astype(np.uint8))], [1],
                                   ["Gaussian noise", "blur"], progress)
    assert list(found) == ["Gaussian noise", "blur"]
    clean, *noisy = [row[0] for row in found["Gaussian noise"]]
    assert clean == 1 and noisy == sorted(noisy, reverse=True) and noisy[-1] < 0.9


def test_training_cost_has_the_loaders_share():
    row = {"side": "ldseg", "workers": 1, "iterations_per_s": 2.0, "load_s": 0.1, "step_s": 0.4, "loader_share": 0.2,
           "peak_gb": 1.5}
    assert training_cost.report([row]).splitlines()[-1] == "| ldseg | 1 | 2.000 | 0.100 | 0.400 | 20% | 1.50 |"


def test_signs_of_the_sides_that_have_them():
    signs = {"use_of_latent": None, "coding_dice": 0.95, "coding_error_over_prediction_error": 0.3,
             "gain_of_samples": 0.001, "gain_of_samples_95": None, "pairwise_dice": 0.9}
    rows = [{"side": "ldseg", "fold": 0, "minutes": 5.0, "signs": signs}, {"side": "nnunet", "fold": 0, "minutes": 5.0}]
    assert len(report_signs(rows).splitlines()) == 3
    assert report_signs(rows[1:]) == ""


@pytest.mark.parametrize("kind, content", [
    ("accuracy", {"results": [{"side": "ldseg", "minutes": minutes, "fold": 0, "points": {
        "1 x 1": {"dice": [[0.8, float("nan")]], "seconds": [0.1]}, "5 x 2": {"dice": [[0.8, 0.7]], "seconds": [0.3]}}}
        for minutes in (5.0, 20.0)]}),
    ("robustness", {"dice": {"ldseg": losing(0.01)}}),
    ("cost", {"results": [{"name": "ours 1 x 1", "seconds": 0.1, "memory_gb": 0.2}]})])
def test_every_result_has_a_figure(tmp_path, monkeypatch, kind, content):
    monkeypatch.setattr(figures, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{kind}_Dataset001_A.json").write_text(json.dumps(content))
    figures.main()
    image = matplotlib.image.imread(tmp_path / "figures" / f"{kind}_Dataset001_A.png")
    assert image.std() > 0.05, "something is drawn"
