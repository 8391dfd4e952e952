"""--skip_bad_cases: bad cases are in nothing that planning makes, and training goes on without them."""

import json
import shutil

import pytest

from ldseg_auto.cli import plan_and_preprocess
from ldseg_auto.folders import RAW

BAD = "case_03"


@pytest.fixture
def world(own_small_world):
    """Planned with ten cases; then one label was damaged, and a split of the user's own lies in both folders."""
    raw = own_small_world["nnUNet_raw"] / "Dataset007_Small"
    (raw / "labelsTr" / f"{BAD}.nii.gz").write_bytes(b"")
    split = [{"train": [f"case_{n:02d}" for n in range(8)], "val": ["case_08", "case_09"]},
             {"train": ["case_08", "case_09"], "val": [f"case_{n:02d}" for n in range(8)]}]
    for folder in (raw, own_small_world["preprocessed"]):
        (folder / "splits_final.json").write_text(json.dumps(split))
    return {**own_small_world, "raw": raw}


def test_bad_cases_are_left_out_of_everything(world, monkeypatch, capsys):
    arguments = ["-d", "7", "-c", "3d_fullres"]
    assert plan_and_preprocess.main(arguments) == 1, "unless asked, nothing is left out"
    assert f"{BAD}.nii.gz is empty" in capsys.readouterr().err
    raw_before = {path: path.stat().st_mtime_ns for path in world["raw"].rglob("*")}
    assert plan_and_preprocess.main([*arguments, "--skip_bad_cases"]) == 0
    assert f"1 cases are left out ({BAD}), 9 remain" in capsys.readouterr().out

    good = [f"case_{n:02d}" for n in range(10) if n != 3]
    folder = world["preprocessed"]
    assert len(_read(folder / "dataset_fingerprint.json")["spacings"]) == 9
    assert _read(folder / "label_fingerprint.json")["cases"] == good
    assert sorted(path.stem for path in (folder / "LDSegPlans_3d_fullres").glob("*.pkl")) == good
    description = _read(folder / "dataset.json")
    assert description["numTraining"] == 9 and sorted(description["dataset"]) == good
    assert description["dataset"]["case_00"] == {"images": ["imagesTr/case_00_0000.nii.gz"],
                                                 "label": "labelsTr/case_00.nii.gz"}
    assert not any(BAD in part for fold in _read(folder / "splits_final.json") for part in fold.values())
    record = _read(folder / "data_check.json")
    assert record["left_out"] == [BAD] and record["cases"] == good and record["orientations"] == {"LPS": 9}
    assert record["problems"][0]["file"].endswith(f"labelsTr/{BAD}.nii.gz")
    assert _read(folder / "LDSegPlans.json")["training_images"]["orientations"] == {"LPS": 9}
    assert raw_before == {path: path.stat().st_mtime_ns for path in world["raw"].rglob("*")}, "the raw data are left"
    with monkeypatch.context() as without_raw:
        without_raw.setenv(RAW, "nowhere")
        _nnunet_trains(folder, good)
    _a_repaired_case_comes_back(world)


def _nnunet_trains(folder, good):
    """nnU-Net's own command gets as far as its first batch."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    from ldseg_auto import nnunet_ext

    nnunet_ext.register()
    trainer = get_trainer_from_args("Dataset007_Small", "3d_fullres", 1, "LDSegTrainer", "LDSegPlans",
                                    device=torch.device("cpu"))
    train, val = trainer.do_split()
    assert sorted([*train, *val]) == good
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    assert set(batch["keys"]) <= set(good)


def _a_repaired_case_comes_back(world):
    shutil.copy(world["raw"] / "labelsTr" / "case_04.nii.gz", world["raw"] / "labelsTr" / f"{BAD}.nii.gz")
    (world["preprocessed"] / "splits_final.json").unlink()
    assert plan_and_preprocess.main(["-d", "7", "--no_pp"]) == 0
    assert len(_read(world["preprocessed"] / "dataset_fingerprint.json")["spacings"]) == 10
    description = _read(world["preprocessed"] / "dataset.json")
    assert description["numTraining"] == 10 and "dataset" not in description
    assert _read(world["preprocessed"] / "data_check.json")["left_out"] == []


def _read(path):
    return json.loads(path.read_text())
