"""Tables and figures from what the benchmarks measure."""

from __future__ import annotations

import json
from dataclasses import asdict

import figures
import matplotlib.image
import numpy as np
import pytest
import robustness
import training_cost
from accuracy import report_signs
from corruptions import CORRUPTIONS, SEVERITIES
from cost import Work, earlier_row
from cost import report as cost_report
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


def test_rows_of_a_side_that_is_not_measured_are_an_earlier_calls(tmp_path):
    file, work = tmp_path / "cost.json", Work("nnU-Net, 64^3", "nnunet", size=64, repeats=1)
    with pytest.raises(SystemExit, match="--sides nnunet"):
        earlier_row(file, work)
    row = asdict(work) | {"seconds": 1.0, "memory_gb": 0.1}
    file.write_text(json.dumps({"results": [row | {"size": 32}, row]}))
    assert earlier_row(file, work) == row


def test_costs_are_compared_with_nnunets_of_the_same_work():
    def row(work, seconds):
        return asdict(work) | {"seconds": seconds, "memory_gb": seconds / 10}

    lines = cost_report([
        row(Work("nnU-Net", "nnunet"), 4.0), row(Work("nnU-Net, mirroring", "nnunet", mirroring=True), 32.0),
        row(Work("nnU-Net in 16 bits", "nnunet", bits=16), 2.0), row(Work("ours", "ldseg"), 1.0),
        row(Work("ours, mirroring", "ldseg", mirroring=True), 4.0)]).splitlines()
    assert [line.split(" | ")[2] for line in lines[2:]] == ["1.00", "1.00", "0.50", "0.25", "0.12"]


@pytest.mark.parametrize("kind, content", [
    ("accuracy", {"results": [{"side": "ldseg", "minutes": minutes, "fold": 0, "points": {
        "1 x 1": {"dice": [[0.8, float("nan")]], "seconds": [0.1]}, "5 x 2": {"dice": [[0.8, 0.7]], "seconds": [0.3]}}}
        for minutes in (5.0, 20.0)]}),
    ("accuracy", {"results": [{"side": "ldseg", "minutes": 5.0, "fold": 0, "points": {
        "1 x 1": {"dice": [[0.8, 0.7]], "seconds": [0.1]}}}]}),
    ("robustness", {"dice": {"ldseg": losing(0.01)}}),
    ("robustness", {"dice": {"ldseg": {"blur": losing(0.01)["blur"]}}}),
    ("cost", {"results": [{"name": "ours 1 x 1", "seconds": 0.1, "memory_gb": 0.2}]})])
def test_every_result_has_a_figure(tmp_path, monkeypatch, kind, content):
    monkeypatch.setattr(figures, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{kind}_Dataset001_A.json").write_text(json.dumps(content))
    figures.main()
    image = matplotlib.image.imread(tmp_path / "figures" / f"{kind}_Dataset001_A.png")
    assert image.std() > 0.05, "something is drawn"
