"""nnU-Net's own commands on our folders: its real entry points, with the command lines that a user would type."""

import json
import os
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle

from ldseg_auto import nnunet_ext
from ldseg_auto.cli import predict
from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

CPU = ["-device", "cpu"]
ALONE = ["-npp", "0", "-nps", "0", *CPU]
OURS = ["-tr", "LDSegTrainer", "-p", "LDSegPlans"]
DATASET = "Dataset007_Small"

# nnU-Net's trainer as it is, but for its length
STOCK_TRAINER = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerShort(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""


def call(command: str, *arguments: object) -> None:
    """What the shell does with an installed command, in this process."""
    script, = entry_points(group="console_scripts", name=command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, arguments)])
        script.load()()


@pytest.fixture(scope="module")
def shared(small_world, tmp_path_factory, use_threads):
    """Copies of the small world's folders, in which nnU-Net also plans, preprocesses and trains a U-Net."""
    root = tmp_path_factory.mktemp("shared")
    folders = {"nnUNet_raw": small_world["nnUNet_raw"]}
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        folders[variable] = shutil.copytree(small_world[variable], root / variable)
    (root / "trainers").mkdir()
    (root / "trainers" / "short.py").write_text(STOCK_TRAINER)
    folders |= {"images": small_world["images"], "results": folders["nnUNet_results"] / DATASET,
                "nnUNet_extTrainer": os.pathsep.join([str(root / "trainers"), nnunet_ext.FOLDER])}
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        set_environment(patch, folders)
        patch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner needs one
        call("nnUNetv2_plan_experiment", "-d", "7")
        call("nnUNetv2_preprocess", "-d", "7", "-c", "3d_fullres", "-np", "1")
        patch.setenv("nnUNet_n_proc_DA", "0")
        call("nnUNetv2_train", "7", "3d_fullres", "0", "-tr", "nnUNetTrainerShort", "--npz", *CPU)
    return folders


def set_environment(patch, folders):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"):
        patch.setenv(variable, str(folders[variable]))


@pytest.fixture
def world(shared, monkeypatch):
    """`shared`, with the environment variables set to it."""
    set_environment(monkeypatch, shared)
    return shared


@pytest.fixture(scope="module")
def predicted(shared, tmp_path_factory, use_threads):
    """The unseen cases by `nnUNetv2_predict`: our model and nnU-Net's, with probabilities."""
    out = {"ours": tmp_path_factory.mktemp("ours"), "stock": tmp_path_factory.mktemp("stock")}
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        set_environment(patch, shared)
        for name, model in (("ours", OURS), ("stock", ["-tr", "nnUNetTrainerShort"])):
            call("nnUNetv2_predict", "-i", shared["images"], "-o", out[name], "-d", "7", "-c", "3d_fullres", "-f", "0",
                 *model, "--save_probabilities", "--disable_tta", "--disable_progress_bar", *ALONE)
    return out


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def same_geometry(a: Path, b: Path) -> bool:
    a, b = sitk.ReadImage(str(a)), sitk.ReadImage(str(b))
    return a.GetSize() == b.GetSize() and all(np.allclose(getattr(a, f)(), getattr(b, f)()) for f in
                                              ("GetSpacing", "GetOrigin", "GetDirection"))


@pytest.mark.parametrize("configuration", ["3d_fullres", pytest.param("2d", marks=pytest.mark.processes)])
def test_train(world, configuration, monkeypatch):
    monkeypatch.setattr(LDSegTrainer, "validation_mirroring", False)  # four to eight times as quick
    call("nnUNetv2_train", "7", configuration, "1", "-tr", "LDSegTrainer_5iterations", "-p", "LDSegPlans", "--npz",
         *CPU)
    fold = world["results"] / f"LDSegTrainer_5iterations__LDSegPlans__{configuration}" / "fold_1"
    for name in ("checkpoint_final.pth", "progress.png", "latent_signs.json", "validation/summary.json"):
        assert (fold / name).is_file(), name
    validated = json.loads((world["nnUNet_preprocessed"] / DATASET / "splits_final.json").read_text())[1]["val"]
    assert sorted(p.stem for p in (fold / "validation").glob("*.npz")) == sorted(validated)


def test_predict(world, predicted):
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in world["images"].iterdir())
    assert sorted(p.stem for p in predicted["ours"].glob("*.npz")) == cases
    for case in cases:
        assert same_geometry(predicted["ours"] / f"{case}.nii.gz", world["images"] / f"{case}_0000.nii.gz")
        probabilities = np.load(predicted["ours"] / f"{case}.npz")["probabilities"]
        assert np.array_equal(probabilities.argmax(0), read(predicted["ours"] / f"{case}.nii.gz"))


def test_predict_from_modelfolder(world, predicted, tmp_path):
    call("nnUNetv2_predict_from_modelfolder", "-i", world["images"], "-o", tmp_path, "-m",
         world["results"] / "LDSegTrainer__LDSegPlans__3d_fullres", "-f", "0", "--disable_tta",
         "--disable_progress_bar", "-npp", "1", "-nps", "1", *CPU)
    for path in predicted["ours"].glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_accumulate_crossval_results(world, tmp_path):
    call("nnUNetv2_accumulate_crossval_results", "7", "-c", "3d_fullres", *OURS, "-f", "0", "-o", tmp_path / "merged")
    validation = world["results"] / "LDSegTrainer__LDSegPlans__3d_fullres" / "fold_0" / "validation"
    for file in validation.glob("*.nii.gz"):
        assert file.read_bytes() == (tmp_path / "merged" / file.name).read_bytes()
    merged, single = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "merged", validation))
    assert merged["foreground_mean"]["Dice"] == pytest.approx(single["foreground_mean"]["Dice"], abs=1e-12)


def test_find_best_configuration_then_postprocessing(world, predicted, tmp_path):
    call("nnUNetv2_find_best_configuration", "7", "-c", "2d", "3d_fullres", *OURS, "-f", "0", "-np", "1")
    information = json.loads((world["results"] / "inference_information.json").read_text())
    ensemble = "ensemble___LDSegTrainer__LDSegPlans__2d___LDSegTrainer__LDSegPlans__3d_fullres___0"
    assert set(information["all_results"]) == {"LDSegTrainer__LDSegPlans__2d", "LDSegTrainer__LDSegPlans__3d_fullres",
                                               ensemble}
    best = information["best_model_or_ensemble"]
    assert {m["trainer"] for m in best["selected_model_or_models"]} == {"LDSegTrainer"}
    call("nnUNetv2_apply_postprocessing", "-i", predicted["ours"], "-o", tmp_path / "pp", "-pp_pkl_file",
         best["postprocessing_file"], "-plans_json", best["some_plans_file"], "-np", "1")
    for path in predicted["ours"].glob("*.nii.gz"):
        before, after = read(path), read(tmp_path / "pp" / path.name)
        assert np.all((after == before) | (after == 0)), "postprocessing only removes"


def test_ensemble_with_a_stock_model(predicted, world, tmp_path):
    call("nnUNetv2_ensemble", "-i", predicted["ours"], predicted["stock"], "-o", tmp_path, "-np", "1", "--save_npz")
    for path in predicted["ours"].glob("*.npz"):
        parts = [np.load(folder / path.name)["probabilities"].astype(np.float32) for folder in predicted.values()]
        together = np.load(tmp_path / path.name)["probabilities"]
        assert np.allclose(together, sum(parts) / 2, atol=1e-6)
        assert not np.allclose(parts[0], parts[1], atol=1e-2), "two models, two opinions"
        assert np.array_equal(together.argmax(0), read(tmp_path / f"{path.stem}.nii.gz"))
        assert load_pickle(str(tmp_path / f"{path.stem}.pkl"))


def test_evaluate_folder(world, tmp_path):
    truth = world["nnUNet_preprocessed"] / DATASET / "gt_segmentations"
    model = world["results"] / "LDSegTrainer__LDSegPlans__3d_fullres"
    predictions = shutil.copytree(model / "fold_0" / "validation", tmp_path / "predictions")
    call("nnUNetv2_evaluate_folder", truth, predictions, "-djfile", model / "dataset.json", "-pfile",
         model / "plans.json", "-o", tmp_path / "scores.json", "-np", "1", "--chill")
    scores = json.loads((tmp_path / "scores.json").read_text())
    for label in (1, 2):
        ours = [dice(read(path), read(truth / path.name), label) for path in predictions.glob("*.nii.gz")]
        assert scores["mean"][str(label)]["Dice"] == pytest.approx(np.mean(ours), abs=1e-9)


@pytest.mark.parametrize("source", [["--use_raw"], ["-p", "LDSegPlans"]], ids=["raw", "preprocessed"])
def test_plot_overlay_pngs(world, tmp_path, source):
    call("nnUNetv2_plot_overlay_pngs", "-d", "7", "-o", tmp_path, "-np", "1", *source)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"case_{i:02d}.png" for i in range(10)]


def test_a_model_travels_as_a_zip(world, predicted, tmp_path, monkeypatch):
    call("nnUNetv2_export_model_to_zip", "-d", "7", "-o", tmp_path / "model.zip", "-c", "3d_fullres", *OURS, "-f", "0")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # another machine: nothing there
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    call("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    call("nnUNetv2_predict", "-i", world["images"], "-o", tmp_path / "stock", "-d", DATASET, "-c", "3d_fullres", "-f",
         "0", *OURS, "--disable_tta", "--disable_progress_bar", *ALONE)
    for path in predicted["ours"].glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "stock" / path.name).read_bytes()
    assert predict.main(["-i", str(world["images"]), "-o", str(tmp_path / "ours"), "-d", "7", "--disable_tta",
                         "--disable_progress_bar", *ALONE]) == 0
    assert len(list((tmp_path / "ours").glob("*.nii.gz"))) == len(list(world["images"].iterdir()))
