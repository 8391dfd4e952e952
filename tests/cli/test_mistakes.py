"""Every foreseeable mistake, through the real commands: exit code 1 and one line with cause and cure."""

import json

import pytest

from ldseg_auto.cli import demo, evaluate, plan_and_preprocess, predict, report, train

PLAN, TRAIN, PREDICT, DEMO, REPORT = (command.main for command in (plan_and_preprocess, train, predict, demo, report))
EVALUATE = evaluate.main
PREDICT_ALL = ["-i", "{images}", "-o", "{out}", "-d", "4"]
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def _fails(capsys, command, arguments, *parts) -> None:
    assert command(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error


MISTAKES = {
    "plan: unknown ID": (PLAN, ["-d", "77"], "no data set 77", "Dataset004_Small"),
    "plan: unknown name": (PLAN, ["-d", "Dataset004_Other"], "no data set Dataset004_Other", "Choose one of"),
    "plan: planner": (PLAN, ["-d", "4", "-pl", "Other"], "no planner Other", "LDSegPlannerResEncM"),
    "plan: plans' name": (PLAN, ["-d", "4", "-overwrite_plans_name", "My__Plans"], "My__Plans", "without '__'"),
    "train: unknown ID": (TRAIN, ["77", "0"], "no data set 77", "Choose one of: Dataset004_Small"),
    "train: no plans": (TRAIN, ["4", "0", "-p", "Others"], "no plans named Others", "there are: LDSegPlans",
                        "ldseg_plan_and_preprocess -d 4"),
    "train: configuration": (TRAIN, ["4", "0", "-c", "3d"], "no configuration 3d", "2d, 3d_fullres, 3d_lowres"),
    "train: not preprocessed": (TRAIN, ["4", "0", "-c", "3d_lowres"], "not preprocessed",
                                "ldseg_plan_and_preprocess -d 4 -c 3d_lowres"),
    "train: fold": (TRAIN, ["4", "0", "5"], "Fold 5 does not exist", "0 to 4, or all"),
    "train: fold's name": (TRAIN, ["4", "first"], "Fold 'first'", "all"),
    "train: trainer": (TRAIN, ["4", "0", "-tr", "NoTrainer", "-device", "cpu"], "no trainer named NoTrainer",
                       "LDSegTrainer"),
    "train: --c --val": (TRAIN, ["4", "0", "--c", "--val"], "--c and --val", "only one"),
    "train: --val_best": (TRAIN, ["4", "0", "--val_best", "--disable_checkpointing"], "--val_best", "only one"),
    "train: pretrained": (TRAIN, ["4", "0", "-pretrained_weights", "none.pth"], "no file none.pth", "checkpoint_"),
    "train: encoder": (TRAIN, ["4", "0", "--encoder_weights", "none.pth"], "no file none.pth", "to --encoder_weights"),
    "train: both weights": (TRAIN, ["4", "0", "-pretrained_weights", "a", "--encoder_weights", "b"],
                            "-pretrained_weights and --encoder_weights", "only one"),
    "train: --c weights": (TRAIN, ["4", "0", "--c", "-pretrained_weights", "a"], "--c and -pretrained_", "only one"),
    "train: --c encoder": (TRAIN, ["4", "0", "--c", "--encoder_weights", "a"], "--c and --encoder_", "only one"),
    "train: --val weights": (TRAIN, ["4", "0", "--val", "-pretrained_weights", "a"], "--val and -pre", "only one"),
    "train: --val encoder": (TRAIN, ["4", "0", "--val", "--encoder_weights", "a"], "--val and --enc", "only one"),
    "train: --restart --c": (TRAIN, ["4", "0", "--restart", "--c"], "--restart and --c", "only one"),
    "train: --restart --val": (TRAIN, ["4", "0", "--restart", "--val"], "--restart and --val", "only one"),
    "train: groups": (TRAIN, ["4", "0", "--group_by", "none.csv"], "no file none.csv", "case,patient"),
    "train: --val": (TRAIN, ["4", "1", "--val"], "fold_1/checkpoint_final.pth", "--c"),
    "train: --val --val_best": (TRAIN, ["4", "0", "--val", "--val_best"], "checkpoint_best.pth", "--c"),
    "train: GPUs": (TRAIN, ["4", "0", "-num_gpus", "3"], "batch of 2 patches", "equally by 3 processes", "Use 1 or 2"),
    "predict: unknown ID": (PREDICT, ["-i", "{images}", "-o", "{out}", "-d", "77"], "no data set 77", "Choose one of"),
    "predict: not trained": (PREDICT, [*PREDICT_ALL, "-c", "2d"], "no checkpoint_final.pth",
                             "LDSegTrainer__LDSegPlans__3d_fullres/fold_0/checkpoint_final.pth",
                             "ldseg_train 4 0 -c 2d"),
    "predict: trainer": (PREDICT, [*PREDICT_ALL, "-tr", "Other"], "Other__LDSegPlans__*", "-tr"),
    "predict: checkpoint": (PREDICT, [*PREDICT_ALL, "-chk", "checkpoint_best.pth"], "no checkpoint_best.pth", "-chk"),
    "predict: fold": (PREDICT, [*PREDICT_ALL, "-f", "0", "1"], "Fold 1 of", "folds are: 0 2", "ldseg_train 4 1"),
    "predict: below a file": (PREDICT, ["-i", "{images}", "-o", "{model}/plans.json/out", "-d", "4"],
                              "Nothing can be written to", "-o"),
    "predict: no folder": (PREDICT, ["-i", "{tmp}/no", "-o", "{out}", "-d", "4"], "does not exist", "-i"),
    "predict: empty": (PREDICT, ["-i", "{model}/fold_0", "-o", "{out}", "-d", "4"], "holds no .nii.gz", "CASE_0000"),
    "predict: same folder": (PREDICT, ["-i", "{images}", "-o", "{images}", "-d", "4"], "same folder", "-o"),
    "predict: output": (PREDICT, ["-i", "{images}", "-o", "{model}/plans.json", "-d", "4"], "is a file", "-o"),
    "predict: part": (PREDICT, [*PREDICT_ALL, "-num_parts", "2", "-part_id", "2"], "part_id 2", "num_parts - 1 = 1"),
    "predict: step": (PREDICT, [*PREDICT_ALL, "-step_size", "1.5"], "step_size is 1.5", "up to 1"),
    "predict: eta": (PREDICT, [*PREDICT_ALL, "--eta", "2"], "eta is 2.0", "0 (no noise added) to 1"),
    "predict: processes": (PREDICT, [*PREDICT_ALL, "-npp", "0"], "0 processes for preprocessing and 3", "0 to both"),
    "predict: steps": (PREDICT, [*PREDICT_ALL, "--steps", "2000"], "2000 steps", "1000 timesteps"),
    "evaluate: no folder": (EVALUATE, ["-i", "{tmp}/no", "-r", "{images}"], "no does not exist", "-i"),
    "evaluate: no references": (EVALUATE, ["-i", "{images}", "-r", "{tmp}/no"], "no does not exist", "-r"),
    "evaluate: same folder": (EVALUATE, ["-i", "{images}", "-r", "{images}"], "same folder", "-i", "-r"),
    "evaluate: unknown ID": (EVALUATE, ["-i", "{images}", "-r", "{model}", "-d", "77"], "no data set 77",
                             "Choose one of: Dataset004_Small"),
    "report: unknown ID": (REPORT, ["77"], "no data set 77", "Choose one of: Dataset004_Small"),
    "report: not trained": (REPORT, ["4", "-c", "2d"], "no checkpoint_final.pth",
                            "3d_fullres/fold_0/checkpoint_final.pth", "ldseg_train 4 0 -c 2d"),
    "report: trainer": (REPORT, ["4", "-tr", "Other"], "Other__LDSegPlans__*", "-tr"),
    "report: plans": (REPORT, ["4", "-p", "Other"], "LDSegTrainer__Other__*", "-p"),
    "report: checkpoint": (REPORT, ["4", "-chk", "checkpoint_best.pth"], "no checkpoint_best.pth", "-chk"),
    "report: fold": (REPORT, ["4", "-f", "0", "1"], "Fold 1 of", "folds are: 0 2", "ldseg_train 4 1"),
    "report: fold's name": (REPORT, ["4", "-f", "first"], "Fold 'first'", "all"),
    "report: folder": (REPORT, ["4", "-o", "{model}"], "is a folder", "-o"),
    "report: below a file": (REPORT, ["4", "-o", "{model}/plans.json/report.html"], "plans.json is a file", "-o"),
    "report: damaged checkpoint": (REPORT, ["4", "-o", "{out}/report.html"], "checkpoint_final.pth is damaged",
                                   "train anew"),
    "demo: file": (DEMO, ["-o", "{model}/plans.json"], "is a file", "-o"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, world, capsys):
    command, arguments, *parts = MISTAKES[name]
    _fails(capsys, command, [argument.format(**world) for argument in arguments], *parts)


@pytest.mark.parametrize("command, arguments, variable", [
    (PLAN, ["-d", "4"], "nnUNet_raw"), (PLAN, ["-d", "4"], "nnUNet_preprocessed"),
    (TRAIN, ["4", "0"], "nnUNet_preprocessed"), (TRAIN, ["4", "0"], "nnUNet_results"),
    (PREDICT, PREDICT_ALL, "nnUNet_results"), (REPORT, ["4"], "nnUNet_results")])
def test_variable_not_set(command, arguments, variable, world, monkeypatch, capsys):
    monkeypatch.delenv(variable)
    _fails(capsys, command, arguments, f"{variable} is not set", f"export {variable}=")


def test_device_that_is_not_there(world, monkeypatch, capsys):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    _fails(capsys, REPORT, ["4", "-device", "mps"], "mps is not available", "-device cpu")


def test_folder_that_may_not_be_written_to(world, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda *_: False)
    _fails(capsys, REPORT, ["4"], f"may not write to {world['model']}", "-o")


def test_raw_folder_does_not_exist(world, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(world["tmp"] / "no"))
    _fails(capsys, PLAN, ["-d", "4"], "not a folder", "Set nnUNet_raw")


def test_no_data_sets_at_all(nnunet_folders, capsys):
    _fails(capsys, PLAN, ["-d", "4"], "no data set 4", "DatasetXXX_NAME")


def test_ambiguous_id(world, capsys):
    (world["raw"].parent / "Dataset004_Twin").mkdir()
    _fails(capsys, PLAN, ["-d", "4"], "ambiguous: Dataset004_Small, Dataset004_Twin", "full name")


def test_incomplete_raw_data(world, capsys):
    (world["raw"] / "labelsTr").rmdir()
    _fails(capsys, PLAN, ["-d", "4"], "lacks labelsTr", "nnU-Net's format")


@pytest.mark.parametrize("content, part", [("{", "not valid JSON"), ('{"labels": {}}', "lacks channel_names")])
def test_broken_description(content, part, world, capsys):
    (world["raw"] / "dataset.json").write_text(content)
    _fails(capsys, PLAN, ["-d", "4"], part)


def test_fold_beyond_a_split_of_our_own(world, capsys):
    (world["preprocessed"] / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}] * 3))
    _fails(capsys, TRAIN, ["4", "3"], "has 3 folds", "0 to 2, or all")


def test_too_few_cases_to_split(world, capsys):
    description = json.loads((world["preprocessed"] / "dataset.json").read_text()) | {"numTraining": 4}
    (world["preprocessed"] / "dataset.json").write_text(json.dumps(description))
    _fails(capsys, TRAIN, ["4", "0"], "4 training cases, too few for 5 folds", "fold all")


def test_too_few_patients_to_split(world, capsys, tmp_path):
    (tmp_path / "groups.csv").write_text("case,patient\n" + "".join(f"case_{n},{n % 3}\n" for n in range(10)))
    _fails(capsys, TRAIN, ["4", "0", "--group_by", str(tmp_path / "groups.csv")], "too few for folds", "fold all")


def test_images_that_cannot_be_used(world, capsys):
    """tests/checks has every kind of them; here all of them, so that there is nothing to go on with."""
    for case in ("a", "b"):
        (world["images"] / f"{case}_0001.nii.gz").unlink()
    assert PREDICT([argument.format(**world) for argument in PREDICT_ALL]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("error: None of the cases can be predicted. Correct") and len(error) == 3
    assert "a_0000.nii.gz has 1 channels instead of 2 (T1, T2)" in error[1] and "b_0000.nii.gz has 1" in error[2]


def test_model_without_its_description(world, capsys):
    (world["model"] / "plans.json").unlink()
    for command, arguments in ((PREDICT, PREDICT_ALL), (REPORT, ["4"])):
        _fails(capsys, command, [argument.format(**world) for argument in arguments], "plans.json is missing")


@pytest.mark.parametrize("command, arguments", [
    (PLAN, []), (PLAN, ["-d", "4", "--expl"]), (TRAIN, ["4"]), (TRAIN, ["4", "0", "--epochs", "0"]),
    (TRAIN, ["4", "0", "--max_minutes", "-1"]), (PREDICT, [*PREDICT_ALL, "--samples", "many"]),
    (PREDICT, [*PREDICT_ALL, "--sample", "3"]), (TRAIN, ["4", "0", "-device", "gpu"]), (REPORT, []),
    (REPORT, ["4", "--cases", "0"]), (REPORT, ["4", "--case", "3"]),
    (EVALUATE, ["-i", "a"]), (EVALUATE, ["-i", "a", "-r", "b", "--tolerance", "0"]),
    (EVALUATE, ["-i", "a", "-r", "b", "--tolerance", "organ="]), (EVALUATE, ["-i", "a", "-r", "b", "-np", "0"]),
    (EVALUATE, ["-i", "a", "-r", "b", "-d", "4", "-djfile", "c"])])
def test_typing_errors_are_not_swallowed(command, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "1.5", str(2 ** 32)])
@pytest.mark.parametrize("command, arguments", [(TRAIN, ["4", "0"]), (PREDICT, PREDICT_ALL), (DEMO, ["-o", "{out}"])])
def test_impossible_seeds_are_refused(command, arguments, seed, world, capsys):
    with pytest.raises(SystemExit) as ended:
        command([*(a.format(**world) for a in arguments), "--seed", seed])
    assert ended.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_labels_with_gaps_are_refused(world, capsys):
    path = world["raw"] / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": {"background": 0, "organ": 255}}))
    _fails(capsys, PLAN, ["-d", "4"], "[0, 255]", "consecutive")
