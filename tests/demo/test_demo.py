"""The parts of the demo that need no training; the whole of it is the slow test."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.cli.demo import main
from ldseg_auto.demo.anatomy import LABELS
from ldseg_auto.demo.demo import measure
from ldseg_auto.demo.phantom import write_dataset
from ldseg_auto.demo.pictures import draw_case, fullest_slice


@pytest.fixture
def dataset(tmp_path) -> Path:
    return write_dataset(tmp_path, 900, "LDSegDemo", num_train=1, num_test=2, seed=0)


def test_measure_reads_the_files(dataset, tmp_path):
    predictions = tmp_path / "predictions"
    shutil.copytree(dataset / "labelsTs", predictions)
    worse = sitk.ReadImage(str(predictions / "case_002.nii.gz"))
    sitk.WriteImage(sitk.ChangeLabel(worse, {LABELS["lesion"]: LABELS["organ"]}), str(predictions / "case_002.nii.gz"))
    scores = measure(predictions, dataset / "labelsTs")
    assert scores["case_001"] == {"organ": 1.0, "lesion": 1.0, "vessel": 1.0}
    assert scores["case_002"]["lesion"] == 0.0
    assert 0.8 < scores["case_002"]["organ"] < 1.0


def test_fullest_slice_prefers_more_labels():
    labels = np.zeros((3, 4, 4), int)
    labels[0] = 1
    labels[1, 0, :2] = [1, 2]
    labels[2, 0, :3] = [1, 2, 2]
    assert fullest_slice(labels) == 2


def test_picture_shows_the_prediction(dataset, tmp_path):
    truth = dataset / "labelsTs" / "case_001.nii.gz"
    empty = sitk.ReadImage(str(truth)) * 0
    entropy, nothing = tmp_path / "entropy.nii.gz", tmp_path / "nothing.nii.gz"
    sitk.WriteImage(sitk.Cast(empty, sitk.sitkFloat32) + 0.5, str(entropy))
    sitk.WriteImage(empty, str(nothing))
    image = dataset / "imagesTs" / "case_001_0000.nii.gz"
    drawn = {}
    for name, prediction in (("truth", truth), ("nothing", nothing)):
        picture = tmp_path / "pictures" / f"{name}.png"
        draw_case(image, truth, prediction, entropy, picture, LABELS)
        drawn[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(picture)))
    assert drawn["truth"].shape[1] > 3 * drawn["truth"].shape[0]
    different = np.any(drawn["truth"] != drawn["nothing"], axis=(0, 2)).nonzero()[0] / drawn["truth"].shape[1]
    assert different.min() > 0.4 and different.max() < 0.8  # the third of four panels


@pytest.mark.slow
def test_the_whole_way(tmp_path, monkeypatch, capsys):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, "")  # the demo sets them; monkeypatch restores them
    assert main(["-o", str(tmp_path / "demo"), "--seed", "1", "-device", "cpu"]) == 0
    raw = Path(os.environ["nnUNet_raw"]) / "Dataset900_LDSegDemo"
    assert len(list((raw / "picturesTs").glob("*.png"))) == 6
    assert len(list((raw / "predictionsTs" / "uncertainty").glob("*_entropy.nii.gz"))) == 6
    mean = float(capsys.readouterr().out.split("Mean Dice over the classes:")[1].split()[0])
    assert mean > 0.85
