"""The commands' help, and that every flag reaches the function behind the command."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldseg_auto.checks.prediction import check_inputs, find_inputs
from ldseg_auto.cli import common, evaluate, plan_and_preprocess, predict, report, train
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.ensemble import open_parts
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.uncertainty import uncertainty_files
from ldseg_auto.trainers.run import _leave_cores
from ldseg_auto.trainers.splits import make_splits
from ldseg_auto.trainers.validation import into_validation_best

COMMANDS = ("plan_and_preprocess", "train", "predict", "evaluate", "demo", "export", "import_model", "report",
            "find_best_configuration")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    code = ("import sys\n"
            f"from ldseg_auto.cli.{command} import main\n"
            "try:\n    main(['-h'])\n"
            "except SystemExit as ended:\n"
            "    heavy = {'torch', 'nnunetv2', 'SimpleITK', 'scipy', 'matplotlib', 'monai'} & set(sys.modules)\n"
            "    sys.exit(f'imported {heavy}' if heavy else ended.code)\n")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           cwd=Path(__file__).resolve().parents[2])
    assert ended.returncode == 0, ended.stderr
    assert "usage:" in ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_python_m_runs_the_command(command):
    """It must not do nothing and report success."""
    ended = subprocess.run([sys.executable, "-m", f"ldseg_auto.cli.{command}", "--no_such_flag"], capture_output=True,
                           text=True, cwd=Path(__file__).resolve().parents[2])
    assert ended.returncode == 2 and "usage:" in ended.stderr


@pytest.mark.parametrize("command, flags, message", [
    ("predict", ["-i", "nowhere", "-o", "out", "-d", "4"], "nowhere does not exist"),
    ("plan_and_preprocess", ["-d", "4"], "lacks channel_names")])
def test_a_mistake_is_named_before_anything_heavy_is_imported(command, flags, message, world):
    (world["raw"] / "dataset.json").write_text('{"labels": {"background": 0}, "numTraining": 1, "file_ending": ".a"}')
    code = ("import sys\n"
            f"from ldseg_auto.cli.{command} import main\n"
            f"assert main({flags}) == 1\n"
            "sys.exit(bool({'torch', 'nnunetv2', 'SimpleITK', 'scipy', 'numpy'} & set(sys.modules)))\n")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           cwd=Path(__file__).resolve().parents[2])
    assert ended.returncode == 0 and message in ended.stderr, ended.stderr


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize("error, code, printed", [
    (LDSegError("Two\nlines.", "Cure."), 1, "error: Two lines. Cure.\n"), (KeyboardInterrupt(), 130, "interrupted\n"),
    (OSError(errno.ENOSPC, "No space left on device", "a.json"), 1,
     "error: a.json could not be written: No space left on device. Make room, then run the same command again.\n")])
def test_how_commands_end(error, code, printed, capsys):
    assert common.run(lambda _: _raise(error), common.parser("A command."), []) == code
    assert capsys.readouterr().err == printed


def test_loaders_leave_the_cores_to_a_cpu_training(monkeypatch):
    monkeypatch.delenv("nnUNet_n_proc_DA")
    _leave_cores("cuda")
    assert "nnUNet_n_proc_DA" not in os.environ
    _leave_cores("cpu")
    assert os.environ["nnUNet_n_proc_DA"] == "1"
    monkeypatch.setenv("nnUNet_n_proc_DA", "6")
    _leave_cores("cpu")
    assert os.environ["nnUNet_n_proc_DA"] == "6", "what the user says stays"


def test_a_list_has_a_line_for_each(capsys):
    error = LDSegError("Three.", "Cure:", ["one\ntwo", "three"])
    assert common.run(lambda _: _raise(error), common.parser("A command."), []) == 1
    assert capsys.readouterr().err == "error: Three. Cure:\n  one two\n  three\n"
    assert str(error).splitlines()[0] == "Three. Cure:" and str(error).endswith("\n  three")


def test_bugs_are_not_hidden():
    with pytest.raises(FileNotFoundError):
        common.run(lambda _: _raise(FileNotFoundError(errno.ENOENT, "", "a")), common.parser("A command."), [])
    with pytest.raises(ZeroDivisionError):
        common.run(lambda _: _raise(ZeroDivisionError()), common.parser("A command."), [])


class Recorder:
    def __init__(self, result):
        self.result = result

    def __call__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        return self.result


def test_plan_passes_on_whose_plans_are_taken_over(world, monkeypatch):
    called = Recorder({})
    monkeypatch.setattr("ldseg_auto.planners.api.plan_and_preprocess", called)
    assert plan_and_preprocess.main(["-d", "4", "-s", "7", "-sp", "P"]) == 0
    assert (called.options["plans_of"], called.options["plans_of_name"]) == ("7", "P")


def test_plan_passes_its_flags(world, monkeypatch, capsys):
    latent = {"warnings": ["class core is thin"]}
    called = Recorder({"Dataset004_Small": {"plans_name": "P", "dataset_name": "Dataset004_Small", "configurations": {
        "2d": {"ldseg": {"latent": latent}}, "custom": {"inherits_from": "2d"}}}})
    monkeypatch.setattr("ldseg_auto.planners.api.plan_and_preprocess", called)
    monkeypatch.setattr("ldseg_auto.planners.explain.explain", lambda plans: f"because of {plans['plans_name']}")
    assert plan_and_preprocess.main(["-d", "4"]) == 0
    assert called.arguments == ([4],)
    assert called.options == {"verify_dataset_integrity": False, "clean": False, "no_preprocessing": False,
                              "skip_bad_cases": False, "verbose": False}
    out = capsys.readouterr().out
    assert "because" not in out and "Dataset004_Small, 2d: WARNING: class core is thin" in out
    flags = ("-d Dataset004_Small -c 2d 3d_fullres -np 2 3 -npfp 4 -gpu_memory_target 8 -overwrite_target_spacing 1 2 3"
             " -pl LDSegPlannerResEncL -overwrite_plans_name P"
             " --verify_dataset_integrity --clean --no_pp --skip_bad_cases --explain --verbose")
    assert plan_and_preprocess.main(flags.split()) == 0
    assert called.options == {
        "configurations": ["2d", "3d_fullres"], "num_processes": [2, 3], "num_processes_fingerprint": 4,
        "gpu_memory_target_in_gb": 8.0, "overwrite_target_spacing": [1.0, 2.0, 3.0], "plans_name": "P",
        "planner": "LDSegPlannerResEncL",
        "verify_dataset_integrity": True, "clean": True, "no_preprocessing": True, "skip_bad_cases": True,
        "verbose": True}
    assert "because of P" in capsys.readouterr().out


class FakeTrainer:
    """Records what `train_folds` does with a trainer."""

    def __init__(self, folder: Path):
        self.output_folder = str(folder)
        self.calls: list = []
        folder.mkdir(parents=True, exist_ok=True)

    def run_training(self):
        self.calls.append("train")

    def load_checkpoint(self, path):
        self.calls.append(Path(path).name)

    def perform_actual_validation(self, save_probabilities):
        self.calls.append(("validate", save_probabilities))
        (Path(self.output_folder) / "validation").mkdir(exist_ok=True)
        (Path(self.output_folder) / "validation" / "of").write_text(str(self.calls))


@pytest.fixture
def trainers(world, monkeypatch):
    made = []

    def get_trainer(dataset, configuration, fold, trainer_name, plans_name, continue_training, device):
        made.append(FakeTrainer(world["model"] / f"fold_{fold}"))
        made[-1].made_with = (dataset, configuration, fold, trainer_name, plans_name, continue_training, device.type)
        return made[-1]

    monkeypatch.setattr("nnunetv2.run.run_training.get_trainer_from_args", get_trainer)
    return made


def test_train_passes_its_flags(trainers, world):
    flags = "--epochs 7 --iterations_per_epoch 20 --max_minutes 1.5 --seed 3 --npz --restart"
    assert train.main(["4", "0", "all", "0", "-device", "cpu", *flags.split()]) == 0
    assert [trainer.made_with[2] for trainer in trainers] == [0, "all"]
    first = trainers[0]
    assert first.made_with == ("Dataset004_Small", "3d_fullres", 0, "LDSegTrainer", "LDSegPlans", False, "cpu")
    assert (first.num_epochs, first.num_iterations_per_epoch, first.num_val_iterations_per_epoch) == (7, 20, 4)
    assert (first.max_minutes, first.seed, first.disable_checkpointing) == (1.5, 3, False)
    assert first.calls == ["train", ("validate", True)]


def test_train_goes_on_where_it_was(trainers, world, capsys):
    """Fold 0 is trained but not validated, fold 1 interrupted, fold 2 finished, fold 3 new."""
    splits = make_splits([f"case_{number}" for number in range(10)])
    (world["model"] / "fold_1").mkdir()
    (world["model"] / "fold_1" / "checkpoint_latest.pth").write_bytes(b"")
    validation = world["model"] / "fold_2" / "validation"
    validation.mkdir()
    for name in [f"{case}.nii.gz" for case in splits[2]["val"]] + ["summary.json"]:
        (validation / name).write_bytes(b"")
    assert train.main(["4", "0", "1", "2", "3", "-device", "cpu"]) == 0
    assert {trainer.made_with[2]: trainer.calls for trainer in trainers} == {
        0: ["checkpoint_final.pth", ("validate", False)],
        1: ["checkpoint_latest.pth", "train", ("validate", False)],
        3: ["train", ("validate", False)]}
    assert "Fold 2 is finished and left as it is" in capsys.readouterr().out
    assert json.loads((world["preprocessed"] / "splits_final.json").read_text()) == splits
    assert train.main(["4", "2", "--npz", "-device", "cpu"]) == 0
    assert trainers[-1].calls == ["checkpoint_final.pth", ("validate", True)], "its probabilities were missing"
    assert train.main(["4", "2", "--restart", "-device", "cpu"]) == 0
    assert trainers[-1].calls == ["train", ("validate", False)]
    assert (world["model"] / "fold_2" / "previous_checkpoint_final.pth").is_file()


def test_train_leaves_the_rest_to_the_trainer(trainers, world):
    assert train.main(["4", "1", "-c", "2d", "-device", "cpu", "--disable_checkpointing"]) == 0
    assert trainers[0].made_with[1] == "2d" and trainers[0].disable_checkpointing
    assert not {"num_epochs", "num_iterations_per_epoch", "max_minutes", "seed"} & set(vars(trainers[0]))


def test_train_continues_and_validates(trainers, world):
    assert train.main(["4", "0", "--c", "-device", "cpu"]) == 0
    assert trainers[0].calls == ["checkpoint_final.pth", ("validate", False)], "finished: nothing is left to train"
    assert train.main(["4", "0", "--c", "--epochs", "2000", "-device", "cpu"]) == 0
    assert trainers[1].calls == ["checkpoint_final.pth", "train", ("validate", False)]
    assert train.main(["4", "0", "--val", "-device", "cpu"]) == 0
    assert trainers[2].calls == ["checkpoint_final.pth", ("validate", False)]


def test_val_best_keeps_the_final_validation(trainers, world):
    fold = world["model"] / "fold_0"
    (fold / "checkpoint_best.pth").write_bytes(b"")
    (fold / "validation").mkdir()
    (fold / "validation" / "of").write_text("final")
    assert train.main(["4", "0", "--val", "--val_best", "-device", "cpu"]) == 0
    assert trainers[0].calls[-2] == "checkpoint_best.pth"
    assert (fold / "validation" / "of").read_text() == "final"
    assert "checkpoint_best" in (fold / "validation_best" / "of").read_text()


def test_failed_validation_keeps_the_final_one(tmp_path):
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "of").write_text("final")
    trainer = FakeTrainer(tmp_path)
    with pytest.raises(ValueError, match="broken"), into_validation_best(trainer):
        trainer.perform_actual_validation(False)
        raise ValueError("broken")
    assert (tmp_path / "validation" / "of").read_text() == "final" and trainer.output_folder == str(tmp_path)
    assert not (tmp_path / "validation_best").exists()


class FakePredictor:
    made: list = []
    forget = 0  # cases it fails to write

    def __init__(self, **options):
        self.options = options
        self.predicted = None
        FakePredictor.made.append(self)

    def initialize_from_trained_model_folder(self, folder, folds, checkpoint_name):
        self.model = (Path(folder).name, folds, checkpoint_name)

    def predict_from_files(self, files, outputs, **options):
        self.predicted, self.files_options = (files, outputs), options
        for output in outputs[self.forget:]:
            Path(output).parent.mkdir(exist_ok=True)
            Path(f"{output}.nii.gz").write_bytes(gzip.compress(b"labels"))
            if options["save_probabilities"]:
                Path(f"{output}.npz").write_bytes(b"PK\5\6" + bytes(18))
                Path(f"{output}.pkl").write_bytes(b"geometry")
            for file in uncertainty_files(Path(output), ["organ"]) if self.options["export"].maps else []:
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(gzip.compress(b"map"))


@pytest.fixture
def predictors(world, monkeypatch):
    monkeypatch.setattr("ldseg_auto.inference.predictor.LDSegPredictor", FakePredictor)
    monkeypatch.setattr(FakePredictor, "made", [])
    return FakePredictor.made


def _predict(world, *flags: str) -> int:
    return predict.main(["-i", str(world["images"]), "-o", str(world["out"]), "-d", "4", "-device", "cpu", *flags])


def test_predict_chooses_model_and_folds(predictors, world, capsys):
    assert _predict(world) == 0
    made = predictors[0]
    assert made.model == ("LDSegTrainer__LDSegPlans__3d_fullres", (0, 2), "checkpoint_final.pth")
    assert [[Path(f).name for f in files] for files in made.predicted[0]] == \
        [["a_0000.nii.gz", "a_0001.nii.gz"], ["b_0000.nii.gz", "b_0001.nii.gz"]]
    assert {k: made.options[k] for k in ("steps", "samples", "eta", "seed", "export", "use_mirroring",
                                         "tile_step_size")} == \
        {"steps": None, "samples": None, "eta": None, "seed": 0, "export": ExportOptions(), "use_mirroring": True,
         "tile_step_size": 0.5}
    assert made.files_options["overwrite"] and not made.files_options["save_probabilities"]
    assert "fold 0 2" in capsys.readouterr().out


def test_predict_passes_its_flags(predictors, world):
    flags = ("-f 2 -step_size 0.7 --disable_tta --continue_prediction --save_probabilities -npp 1 -nps 2 --steps 4"
             " --samples 6 --eta 0.5 --seed 9 --uncertainty --disable_progress_bar --verbose -num_parts 2 -part_id 1")
    assert _predict(world, *flags.split()) == 0
    made = predictors[0]
    assert made.model[1] == (2,)
    assert {k: made.options[k] for k in ("steps", "samples", "eta", "seed", "export", "use_mirroring",
                                         "tile_step_size", "allow_tqdm", "verbose")} == \
        {"steps": 4, "samples": 6, "eta": 0.5, "seed": 9, "export": ExportOptions(maps=True), "use_mirroring": False,
         "tile_step_size": 0.7, "allow_tqdm": False, "verbose": True}
    assert made.files_options == {"save_probabilities": True, "overwrite": True, "num_processes_preprocessing": 1,
                                  "num_processes_segmentation_export": 2,
                                  "folder_with_segs_from_prev_stage": None}
    assert [Path(output).name for output in made.predicted[1]] == ["b"]


def test_several_configurations_are_predicted_with_all_and_then_averaged(predictors, world, monkeypatch):
    averaged = []
    monkeypatch.setattr("ldseg_auto.inference.run.average_members",
                        lambda members, cases, out, *flags: averaged.append((members, cases, flags)) or [
                            (out / f"{case}.nii.gz").write_bytes(b"") for case in cases])
    second = world["model"].with_name("LDSegTrainer__LDSegPlans__2d")
    shutil.copytree(world["model"], second)
    assert _predict(world, "-c", "2d", "3d_fullres", "-f", "2") == 0
    assert [made.model[:2] for made in predictors] == [(second.name, (2,)), (world["model"].name, (2,))]
    assert all(made.files_options["save_probabilities"] for made in predictors)
    (members, cases, flags), = averaged
    assert members == [world["out"] / "members_0" / name for name in (second.name, world["model"].name)]
    assert (cases, flags) == (["a", "b"], (False, ExportOptions(), True))


def test_parts_of_an_ensemble_are_kept_only_where_they_fit(tmp_path):
    for keep, options, kept in ((False, {"seed": 1}, False), (True, {"seed": 1}, True), (True, {"seed": 2}, False),
                                (False, {"seed": 2}, False)):
        folder = open_parts(tmp_path / "members_0", keep, options)
        assert (folder / "part").exists() == kept
        (folder / "part").touch()


def test_an_empty_variable_is_no_number_of_processes(predictors, world, monkeypatch):
    monkeypatch.setenv("nnUNet_npp", "")
    monkeypatch.setenv("nnUNet_nps", "2")
    assert _predict(world) == 0
    assert (predictors[0].files_options["num_processes_preprocessing"],
            predictors[0].files_options["num_processes_segmentation_export"]) == (3, 2)


def test_continued_prediction_also_writes_what_an_earlier_one_did_not(predictors, world):
    assert _predict(world) == 0
    assert _predict(world, "--continue_prediction", "--uncertainty") == 0
    assert len(predictors[1].predicted[0]) == 2
    assert _predict(world, "--continue_prediction", "--uncertainty") == 0
    assert len(predictors) == 2, "nothing left to predict, no model to load"


def test_one_bad_image_does_not_stop_the_others(predictors, world, capsys):
    (world["images"] / "a_0001.nii.gz").write_bytes(b"")
    record = world["out"] / "data_check.json"
    for flags, code in (([], 1), (["--skip_bad_cases"], 0)):
        assert _predict(world, *flags) == code
        assert [Path(output).name for output in predictors[-1].predicted[1]] == ["b"]
        assert json.loads(record.read_text())["left_out"] == ["a"]
        errors = capsys.readouterr().err
        assert "not predicted: " in errors and "a_0001.nii.gz is empty" in errors
        assert ("error: 1 cases were not predicted" in errors) == (code == 1)
    shutil.copy(world["images"] / "b_0000.nii.gz", world["images"] / "a_0001.nii.gz")
    assert _predict(world, "--continue_prediction") == 0
    assert [Path(output).name for output in predictors[-1].predicted[1]] == ["a"]
    assert not record.exists()


def test_commands_that_share_the_work_record_apart(predictors, world):
    (world["images"] / "a_0001.nii.gz").write_bytes(b"")
    assert _predict(world, "-num_parts", "2", "-part_id", "1") == 0, "b is good"
    assert _predict(world, "-num_parts", "2", "-part_id", "0") == 1
    assert [path.name for path in world["out"].glob("data_check*")] == ["data_check_0.json"]


def test_predict_fails_unless_all_is_written(predictors, world, monkeypatch, capsys):
    monkeypatch.setattr(FakePredictor, "forget", 1)
    assert _predict(world) == 1
    assert "1 of 2 files were not written: a.nii.gz" in capsys.readouterr().err


def test_evaluate_passes_its_flags(monkeypatch, capsys):
    scored, compared = Recorder("scores"), Recorder(("scores", "differences"))
    monkeypatch.setattr("ldseg_auto.evaluation.evaluate.evaluate_folder", scored)
    monkeypatch.setattr("ldseg_auto.evaluation.evaluate.compare_folders", compared)
    for table in ("evaluation_table", "comparison_table"):
        monkeypatch.setattr(f"ldseg_auto.evaluation.tables.{table}", lambda content: f"table of {content}")
    assert evaluate.main(["-i", "A", "-r", "R"]) == 0
    assert (scored.arguments, scored.options) == (("A", "R"), {"chill": False, "progress_bar": True})
    flags = "-o OUT -djfile D -pfile P --tolerance 2 a=b=1.5 --chill -np 3 --disable_progress_bar"
    options = {"output_folder": "OUT", "dataset_json": "D", "plans_json": "P",
               "tolerance_mm": {None: 2.0, "a=b": 1.5}, "chill": True, "num_processes": 3, "progress_bar": False}
    assert evaluate.main(["-i", "A", "-r", "R", *flags.split()]) == 0
    assert scored.options == options
    assert evaluate.main(["-i", "A", "-r", "R", "-d", "4"]) == 0
    assert scored.options["dataset"] == "4"
    assert evaluate.main(["-i", "A", "-r", "R", *flags.split(), "--compare", "B"]) == 0
    assert (compared.arguments, compared.options) == (("A", "B", "R"), options)
    printed = capsys.readouterr().out
    assert "table of scores\n\nWritten to A/evaluation\n" in printed
    assert "table of scores\n\ntable of differences\n\nWritten to OUT\n" in printed


def test_report_passes_its_flags(monkeypatch, capsys):
    called = Recorder("there.html")
    monkeypatch.setattr("ldseg_auto.report.run.write_report", called)
    assert report.main(["4"]) == 0
    assert called.arguments == () and called.options == {
        "dataset": "4", "trainer_name": "LDSegTrainer", "plans_name": "LDSegPlans",
        "checkpoint_name": "checkpoint_final.pth", "cases": 3}
    assert capsys.readouterr().out == "Report: there.html\n"
    flags = "-c 2d -tr T -p P -f 0 all -chk checkpoint_best.pth -o x.html --cases 5 -device cpu"
    assert report.main(["4", *flags.split()]) == 0
    assert called.options == {
        "dataset": "4", "configuration": "2d", "trainer_name": "T", "plans_name": "P", "folds": ["0", "all"],
        "checkpoint_name": "checkpoint_best.pth", "output": "x.html", "cases": 5, "device": "cpu"}


def test_colour_images_hold_their_channels_in_one_file(tmp_path):
    from ldseg_auto.demo.phantom import write_dataset

    folder = write_dataset(tmp_path, 8, "Photo", num_train=1, num_test=2, seed=0, dims="2d_rgb")
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    cases = find_inputs(folder / "imagesTs", description)
    good, problems = check_inputs(cases, description, {"image_reader_writer": "NaturalImage2DIO"})
    assert list(good) == ["case_001", "case_002"] and problems == []
