"""nnU-Net's folders with one small data set in each state of the work: raw, preprocessed, trained."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

NAME = "Dataset004_Small"
MODEL = "LDSegTrainer__LDSegPlans__3d_fullres"
DESCRIPTION = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1}, "numTraining": 10,
               "file_ending": ".nii.gz"}
PLANS = {"image_reader_writer": "SimpleITKIO",
         "configurations": {"2d": {"data_identifier": "LDSegPlans_2d"},
                            "3d_fullres": {"data_identifier": "LDSegPlans_3d_fullres", "batch_size": 2,
                                           "architecture": {
                                               "network_class_name": "ldseg_auto.networks.ldseg_net.LDSegNet",
                                               "arch_kwargs": {"timesteps": 1000}, "_kw_requires_import": []}},
                            "3d_lowres": {"inherits_from": "3d_fullres", "data_identifier": "LDSegPlans_3d_lowres"}}}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 1000, (2, 3, 4)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


def _write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def world(nnunet_folders, tmp_path, monkeypatch) -> dict[str, Path]:
    """raw, preprocessed and model folder of `NAME`, and `images` with two complete cases; torch's threads kept."""
    # its preprocessed cases are names without content
    monkeypatch.setattr("ldseg_auto.trainers.run.require_openable", lambda *_: None)
    raw = nnunet_folders["nnUNet_raw"] / NAME
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    _write_json(raw / "dataset.json", DESCRIPTION)
    preprocessed = nnunet_folders["nnUNet_preprocessed"] / NAME
    _write_json(preprocessed / "LDSegPlans.json", PLANS)
    _write_json(preprocessed / "dataset.json", DESCRIPTION)
    for configuration in ("2d", "3d_fullres"):
        for number in range(10):
            _write_json(preprocessed / f"LDSegPlans_{configuration}" / f"case_{number}.pkl", {})
    model = nnunet_folders["nnUNet_results"] / NAME / MODEL
    _write_json(model / "dataset.json", DESCRIPTION)
    _write_json(model / "plans.json", PLANS)
    for fold in (0, 2):
        (model / f"fold_{fold}").mkdir()
        (model / f"fold_{fold}" / "checkpoint_final.pth").write_bytes(b"")
    images = tmp_path / "images"
    for case in ("a", "b"):
        for channel in (0, 1):
            write_image(images / f"{case}_{channel:04d}.nii.gz")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return {"raw": raw, "preprocessed": preprocessed, "model": model, "images": images, "out": tmp_path / "out",
            "tmp": tmp_path}
