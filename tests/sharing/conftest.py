"""A model of two folds and two tensors, its zip, and a way to change that zip as an attacker would."""

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from ldseg_auto.sharing.export import export_model
from ldseg_auto.trainers import checkpoint

NAME = "Dataset004_Small"
DESCRIPTION = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 5,
               "file_ending": ".nii.gz"}


def plans() -> dict:
    resampling = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")}
    return {"dataset_name": NAME, "plans_name": "LDSegPlans", "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager", "ldseg_plans_format": 2,
            "configurations": {
                "3d_fullres": {
                    "data_identifier": "LDSegPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor",
                    "normalization_schemes": ["CTNormalization"], **resampling,
                    "architecture": {
                        "network_class_name": "ldseg_auto.networks.ldseg_net.LDSegNet",
                        "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv3d",
                                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                                        "dropout_op": None, "nonlin": "torch.nn.LeakyReLU"},
                        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}},
                "3d_lowres": {"inherits_from": "3d_fullres", "data_identifier": "LDSegPlans_3d_lowres"}}}


def write_fold(folder: Path, configuration: str = "3d_fullres", name: str = "checkpoint_final.pth", value: float = 0.0,
               trainer: str = "LDSegTrainer") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weight = torch.full((8, 4), value)
    checkpoint.save({
        "network_weights": {"layer.weight": weight, "same.weight": weight, "steps": torch.tensor(3)},
        "optimizer_state": {"secret": torch.ones(1)}, "trainer_name": trainer,
        "init_args": {"configuration": configuration, "fold": int(folder.name[5:]), "plans": plans()},
        "inference_allowed_mirroring_axes": (0, 2)}, str(folder / name))
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation" / "summary.json").write_text(json.dumps({
        "foreground_mean": {"Dice": 0.5}, "metric_per_case": [
            {"prediction_file": "/home/someone/case_1.nii.gz", "reference_file": "/home/someone/gt/case_1.nii.gz",
             "metrics": {}}]}))
    (folder / "progress.png").write_bytes(b"a picture")
    (folder / "debug.json").write_text('{"hostname": "somewhere"}')


def write_model(results: Path, configuration: str = "3d_fullres", folds: tuple[int, ...] = (0, 1)) -> Path:
    model = results / NAME / f"LDSegTrainer__LDSegPlans__{configuration}"
    for fold in folds:
        write_fold(model / f"fold_{fold}", configuration, value=fold + 0.5)
    (model / "plans.json").write_text(json.dumps(plans()))
    (model / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return model


@pytest.fixture
def results(nnunet_folders) -> Path:
    return nnunet_folders["nnUNet_results"]


@pytest.fixture
def model(results) -> Path:
    return write_model(results)


@pytest.fixture
def second_model(results, model) -> Path:
    return write_model(results, "3d_lowres", (0,))


@pytest.fixture
def model_zip(model, tmp_path) -> Path:
    """The exported model, which is no longer below nnUNet_results."""
    export_model("4", str(tmp_path / "model.zip"))
    shutil.move(model.parent, tmp_path / "exported")
    return tmp_path / "model.zip"


Files = dict[str, bytes]


def read_zip(file: Path) -> Files:
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture
def change_zip(model_zip, tmp_path) -> Callable[..., Path]:
    """Another zip with files changed, by default with a manifest that fits them."""

    def change(edit: Callable[[Files], None] = lambda files: None, relist: bool = True,
               entries: tuple[zipfile.ZipInfo, ...] = ()) -> Path:
        files = read_zip(model_zip)
        edit(files)
        manifest_name = f"{NAME}/manifest.json"
        if relist and manifest_name in files:
            manifest = json.loads(files[manifest_name])
            manifest["files"] = {name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
                                 for name, content in files.items() if name != manifest_name}
            files[manifest_name] = json.dumps(manifest).encode()
        changed = tmp_path / "changed.zip"
        with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as written:
            for name, content in files.items():
                special = [entry for entry in entries if entry.filename == name]
                written.writestr(special[0] if special else name, content)
            for entry in entries:
                if entry.filename not in files:
                    written.writestr(entry, b"/etc/passwd" if stat.S_ISLNK(entry.external_attr >> 16) else b"")
        return changed

    return change


@pytest.fixture
def tools() -> dict[str, Callable]:
    """For tests that build models of their own."""
    return {"plans": plans, "write_fold": write_fold, "write_model": write_model, "read_zip": read_zip}
