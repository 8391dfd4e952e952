"""Folds trained as jobs, their validations as one, their mean as the prediction."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.cli import predict, train
from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers.cluster import FoldJob, parse_options, run_locally, submit_folds
from ldseg_auto.trainers.crossval import merge_folds
from ldseg_auto.trainers.run import train_folds

CASES = [f"case_{number:02d}" for number in range(10)]
TWO_FOLDS = [{"train": CASES[5:], "val": CASES[:5]}, {"train": CASES[:5], "val": CASES[5:]}]
SHORT = ["--epochs", "1", "--iterations_per_epoch", "2", "-device", "cpu", "--seed", "0"]


@pytest.fixture
def two_folds(own_small_world, monkeypatch):
    """The small world with a split of two folds, none of them trained."""
    (own_small_world["preprocessed"] / "splits_final.json").write_text(json.dumps(TWO_FOLDS))
    shutil.rmtree(own_small_world["model"])
    shutil.rmtree(own_small_world["model_2d"])
    # jobs are processes of their own
    checkout = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([checkout, os.environ.get("PYTHONPATH", "")]))
    return own_small_world


def write_fold(model, number, cases):
    """What a finished fold leaves, the truth as its prediction."""
    validation = model / f"fold_{number}" / "validation"
    validation.mkdir(parents=True, exist_ok=True)
    (validation.parent / "checkpoint_final.pth").touch()
    (validation / "summary.json").write_text("{}")
    truth = model.parents[2] / "nnUNet_preprocessed" / model.parent.name / "gt_segmentations"
    for case in cases:
        shutil.copy(truth / f"{case}.nii.gz", validation)


def test_two_folds_one_validation_one_ensemble(two_folds, tmp_path, capsys):
    """Of few cases: the validation takes its time. One fold is trained by a job, the other here."""
    few = [{"train": CASES[2:5], "val": CASES[:1]}, {"train": CASES[5:], "val": CASES[1:2]}]
    (two_folds["preprocessed"] / "splits_final.json").write_text(json.dumps(few))
    call = ["7", "0", "-c", "3d_fullres", "--cluster", "local", *SHORT]
    assert train.main(call) == 1
    assert "case_01, case_05, case_06, case_07, case_08 and 1 more is in neither part" in capsys.readouterr().err
    assert train.main([*call, "--allow_unused_cases"]) == 0
    model = two_folds["model"]
    assert len(list((model / "jobs").glob("*_0_log.out"))) == 1
    assert not list(model.glob("crossval*"))
    assert train.main(["7", "1", "-c", "3d_fullres", "--allow_unused_cases", *SHORT]) == 0
    merged = model / "crossval_results_folds_0_1"
    assert sorted(path.name for path in merged.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in CASES[:2]]
    scored = json.loads((merged / "summary.json").read_text())["metric_per_case"]
    assert [Path(case["prediction_file"]) for case in scored] == sorted(merged.glob("*.nii.gz"))
    assert not list(model.glob("*.part"))

    (two_folds["images"] / "case_10_0000.nii.gz").unlink()

    def probabilities(name, *flags):
        assert predict.main(["-i", str(two_folds["images"]), "-o", str(tmp_path / name), "-d", "7", "-npp", "0", "-nps",
                             "0", "--samples", "1", "--disable_tta", "--save_probabilities", "-device", "cpu",
                             "--disable_progress_bar", *flags]) == 0
        return np.load(tmp_path / name / "case_11.npz")["probabilities"].astype(np.float32)
    single = [probabilities(fold, "-f", fold) for fold in "01"]
    assert np.abs(single[0] - single[1]).max() > 0.01
    assert np.abs(probabilities("both") - sum(single) / 2).max() < 1e-3
    assert "fold 0 1" in capsys.readouterr().out


def test_a_failed_job_is_named_and_the_others_run(two_folds, capsys):
    """Fold 7 does not exist; one that ends at once does its part."""
    write_fold(two_folds["model"], 0, CASES[:5])
    with pytest.raises(LDSegError) as error:
        run_locally(two_folds["model"] / "jobs", "Dataset007_Small", [7, 0],
                    {"configuration": "3d_fullres", "device": "cpu"}, {})
    assert "fold 7 (" in str(error.value) and "_log.err" in str(error.value)
    assert "Fold 7 does not exist" in str(error.value) and "fold 0 (" not in str(error.value)
    assert capsys.readouterr().out.count(": job ") == 2


def test_a_job_goes_on_after_its_time_limit():
    job = FoldJob("Dataset007_Small", 2, {"restart": True, "epochs": 5}).checkpoint()
    assert (job.function.dataset, job.function.fold) == ("Dataset007_Small", 2)
    assert job.function.options == {"restart": False, "epochs": 5}


def test_options_of_a_cluster(monkeypatch, tmp_path):
    assert parse_options(["timeout_min=60", "mem_gb=1.5", "slurm_partition=a=b"]) == {
        "timeout_min": 60, "mem_gb": 1.5, "slurm_partition": "a=b"}
    assert parse_options(["slurm_account=007", "slurm_partition=1e3", "slurm_qos=nan", "slurm_use_srun=false",
                          "setup=module load cuda", "slurm_setup=source a"]) == {
        "slurm_account": "007", "slurm_partition": "1e3", "slurm_qos": "nan", "slurm_use_srun": False,
        "setup": ["module load cuda"], "slurm_setup": ["source a"]}
    with pytest.raises(LDSegError, match="NAME=VALUE"):
        parse_options(["timeout_min"])
    with pytest.raises(LDSegError, match="The job of fold 0 was not accepted"):
        submit_folds("local", tmp_path, "Dataset007_Small", [0], {}, {"timeout_min": "soon"})
    with pytest.raises(LDSegError, match="no option no_such_option"):
        submit_folds("local", tmp_path, "Dataset007_Small", [0], {}, {"no_such_option": 1})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LDSegError, match="no sbatch"):
        submit_folds("slurm", tmp_path, "Dataset007_Small", [0], {}, {})


def test_without_submitit(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LDSegError, match=r"pip install 'ldseg_auto\[cluster\]'"):
        submit_folds("local", tmp_path, "Dataset007_Small", [0], {}, {})


def test_slurm_refuses_a_job(monkeypatch, tmp_path):
    """An unknown option, and a partition that sbatch does not know."""
    for name in ("sbatch", "srun"):
        command = tmp_path / name
        command.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: no_such' >&2\nexit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LDSegError, match="invalid partition specified: no_such"):
        submit_folds("slurm", tmp_path / "jobs", "Dataset007_Small", [0], {}, {"slurm_partition": "no_such"})
    with pytest.raises(LDSegError, match="fold 0 was not accepted: .*partitoin"):
        submit_folds("slurm", tmp_path / "jobs", "Dataset007_Small", [0], {}, {"slurm_partitoin": "gpu"})


@pytest.mark.parametrize(("splits", "fold", "message"), [
    (7, "0", "is not a split"), ([], "0", "is not a split"), (TWO_FOLDS, "2", "has 2 folds. Choose from 0 to 1"),
    ([TWO_FOLDS[0], TWO_FOLDS[0]], "5", "has 2 folds")])
def test_a_split_that_the_command_refuses(two_folds, capsys, splits, fold, message):
    (two_folds["preprocessed"] / "splits_final.json").write_text(json.dumps(splits))
    assert train.main(["7", fold, "-c", "3d_fullres", "-device", "cpu"]) == 1
    assert message in capsys.readouterr().err


def test_finished_folds_are_merged_with_the_last(two_folds):
    write_fold(two_folds["model"], 0, CASES[:5])
    for name in ("plans.json", "dataset.json"):
        source = two_folds["preprocessed"] / {"plans.json": "LDSegPlans.json"}.get(name, name)
        shutil.copy(source, two_folds["model"] / name)
    train_folds("7", [0], "3d_fullres", device="cpu")
    assert not list(two_folds["model"].glob("crossval*"))
    write_fold(two_folds["model"], 1, CASES[5:])
    train_folds("7", [0], "3d_fullres", device="cpu")
    merged = two_folds["model"] / "crossval_results_folds_0_1" / "summary.json"
    summary, written = json.loads(merged.read_text()), merged.stat().st_mtime_ns
    assert summary["foreground_mean"]["Dice"] == 1 and len(summary["metric_per_case"]) == 10
    train_folds("7", [0], "3d_fullres", device="cpu")
    assert merged.stat().st_mtime_ns == written, "nothing is new"
    (two_folds["model"] / "fold_1" / "validation" / "summary.json").touch()
    train_folds("7", [0], "3d_fullres", device="cpu")
    assert merged.stat().st_mtime_ns > written
    (two_folds["model"] / "fold_1" / "validation" / "case_09.nii.gz").unlink()
    with pytest.raises(LDSegError, match=r"Fold 1 of .* is not finished \(trained\)"):
        merge_folds(two_folds["model"], TWO_FOLDS, CASES, ".nii.gz")
    image = sitk.ReadImage(str(two_folds["model"] / "crossval_results_folds_0_1" / "case_09.nii.gz"))
    assert image.GetSize() == (16, 18, 14), "what was merged before is still there"


@pytest.mark.parametrize(("splits", "cases", "message"), [
    ([TWO_FOLDS[0]] * 2, CASES[:5], "case_00, case_01, case_02, case_03, case_04 would be validated by several folds"),
    (TWO_FOLDS, [*CASES, "case_10"], "case_10 would be validated by no fold"),
    ([{"train": CASES[5:], "val": CASES[:4]}, TWO_FOLDS[1]], [*CASES[:4], *CASES[5:]], "another split: case_04"),
])
def test_no_cross_validation_without_each_case_once(two_folds, splits, cases, message):
    for number in (0, 1):
        write_fold(two_folds["model"], number, TWO_FOLDS[number]["val"])
    with pytest.raises(LDSegError) as error:
        merge_folds(two_folds["model"], splits, cases, ".nii.gz")
    assert message in str(error.value)


def test_a_fold_of_another_split_is_not_validated_by_this_one(two_folds, capsys):
    """It was trained on what is now its validation part."""
    write_fold(two_folds["model"], 0, TWO_FOLDS[1]["val"])
    before = sorted(path.name for path in (two_folds["model"] / "fold_0" / "validation").iterdir())
    for flags in ([], ["--val"]):
        assert train.main(["7", "0", "-c", "3d_fullres", "-device", "cpu", *flags]) == 1
        error = capsys.readouterr().err
        assert "another split: case_05, case_06" in error and "--restart" in error
    assert sorted(path.name for path in (two_folds["model"] / "fold_0" / "validation").iterdir()) == before


def test_other_plans_are_refused(two_folds):
    write_fold(two_folds["model"], 0, CASES[:5])
    plans = json.loads((two_folds["preprocessed"] / "LDSegPlans.json").read_text())
    (two_folds["model"] / "plans.json").write_text(json.dumps(plans))
    train_folds("7", [0], "3d_fullres", device="cpu")
    plans["configurations"]["3d_fullres"]["batch_size"] += 1
    (two_folds["model"] / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(LDSegError, match="Fold 0 of .* was trained by other plans"):
        train_folds("7", [0], "3d_fullres", device="cpu")
    with pytest.raises(LDSegError, match="Fold 0 of .* was trained by other plans"):
        train_folds("7", [1], "3d_fullres", device="cpu")  # one folder holds one plan
