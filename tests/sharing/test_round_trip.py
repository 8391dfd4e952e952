"""A trained model, exported and imported into an empty folder by the real commands."""

import os
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from ldseg_auto import nnunet_ext
from ldseg_auto.cli import export, import_model, predict, train
from ldseg_auto.sharing.manifest import WEIGHTS

FLAGS = ["-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar", "--disable_tta", "--samples", "2",
         "--save_probabilities", "--uncertainty"]


@pytest.fixture(scope="module")
def model_zip(small_world, tmp_path_factory) -> Path:
    """Both configurations of the small world."""
    out = tmp_path_factory.mktemp("export") / "model.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(small_world["nnUNet_results"]))
        assert export.main(["-d", "7", "-o", str(out)]) == 0
    return out


@pytest.fixture
def imported(model_zip, tmp_path, monkeypatch) -> Path:
    """The imported model, with nothing but nnUNet_results set."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "other"))
    assert import_model.main([str(model_zip)]) == 0
    return tmp_path / "other" / "Dataset007_Small" / "LDSegTrainer__LDSegPlans__3d_fullres"


def _predictions(images: Path, out: Path, configuration: str) -> dict[str, bytes]:
    assert predict.main(["-i", str(images), "-o", str(out), "-d", "7", "-c", configuration, *FLAGS]) == 0
    (out / "predict_from_raw_data_args.json").unlink()  # nnU-Net's record of the call, which names the folder
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("configuration", ["3d_fullres", pytest.param("2d", marks=pytest.mark.slow)])
def test_predictions_are_the_same_files(configuration, in_small_world, model_zip, tmp_path, monkeypatch):
    images = in_small_world["images"]
    before = _predictions(images, tmp_path / "before", configuration)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "empty"))
    assert import_model.main([str(model_zip)]) == 0
    after = _predictions(images, tmp_path / "after", configuration)
    assert {Path(name).suffix for name in after} >= {".gz", ".npz", ".pkl"}
    assert before == after


def test_nnunets_own_predictor_loads_it(imported, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    monkeypatch.setenv("nnUNet_extTrainer", nnunet_ext.FOLDER)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(imported), None)
    assert (predictor.trainer_name, predictor.allowed_mirroring_axes) == ("LDSegTrainer", (0, 1, 2))
    original = torch.load(imported / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(value, original[name]) for name, value in predictor.network.state_dict().items())


def test_a_training_starts_from_it_but_does_not_continue_it(imported, small_world, monkeypatch, capsys):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    monkeypatch.setenv("nnUNet_preprocessed", str(small_world["nnUNet_preprocessed"]))
    for flag in ("--c", "--val"):
        assert train.main(["7", "0", "-c", "3d_fullres", flag, "-device", "cpu"]) == 1
        assert "was imported" in (error := capsys.readouterr().err) and "-pretrained_weights" in error
    from ldseg_auto.folders import load_plans, read_json
    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

    monkeypatch.setenv("nnUNet_results", str(small_world["nnUNet_results"]))
    trainer = LDSegTrainer(load_plans("Dataset007_Small") | {"continue_training": False}, "3d_fullres", 1,
                           read_json(small_world["preprocessed"] / "dataset.json"), torch.device("cpu"))
    trainer.initialize()
    checkpoint = imported / "fold_0" / "checkpoint_final.pth"
    load_pretrained_weights(trainer.network, str(checkpoint))
    weights = torch.load(checkpoint)["network_weights"]
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.state_dict().items())


def test_the_zip_is_a_fraction_of_the_checkpoints(model_zip, small_world):
    with ZipFile(model_zip) as opened:
        folds = [Path(name).parent for name in opened.namelist() if name.endswith(WEIGHTS)]
    results = small_world["model"].parents[1]
    checkpoints = sum(os.path.getsize(results / fold / "checkpoint_final.pth") for fold in folds)
    assert len(folds) >= 2
    assert model_zip.stat().st_size < 0.35 * checkpoints
