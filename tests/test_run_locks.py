"""Two runs of a command on one folder: a real process holds what the first would, the second is the real command."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from ldseg_auto import run_locks
from ldseg_auto.cli import export, find_best_configuration, import_model, plan_and_preprocess, predict, train
from ldseg_auto.errors import LDSegError
from ldseg_auto.locks import held

ROOT = Path(__file__).resolve().parents[1]
NAME, MODEL = "Dataset007_Small", "LDSegTrainer__LDSegPlans__3d_fullres"
_HOLDER = """
import json, sys
from pathlib import Path
from ldseg_auto import locks, run_locks
arguments = {name: Path(value) if name == "model" else value for name, value in json.loads(sys.argv[2]).items()}
found = getattr(run_locks, sys.argv[1])(**arguments)
with locks.held(*(found if isinstance(found, list) else [found])):
    print("locked", flush=True)
    sys.stdin.read()
"""
FOLD = {"dataset": "7", "folds": [0], "configuration": "3d_fullres", "trainer_name": "LDSegTrainer",
        "plans_name": "LDSegPlans"}
OUT = {"output_folder": "{out}", "num_parts": 1, "part_id": 0}
PREDICT = ["-i", "{images}", "-o", "{out}", "-d", "7", "-c", "3d_fullres", "-device", "cpu", "-npp", "0", "-nps", "0",
           "--disable_tta", "--samples", "1", "--disable_progress_bar"]


@pytest.fixture
def first_run(in_small_world):
    """A process that has the locks of a command, called as (name of the function in run_locks, its arguments)."""
    started = []

    def start(name: str, arguments: dict) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", _HOLDER, name, json.dumps(arguments)], cwd=ROOT,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in started:
        with process:  # closes its pipes
            process.kill()


def _filled(content, values):
    if isinstance(content, dict):
        return {key: _filled(value, values) for key, value in content.items()}
    if isinstance(content, list):
        return [_filled(value, values) for value in content]
    return content.format(**values) if isinstance(content, str) else content


def _files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


SECOND_RUNS = {
    "training a fold": ("training", FOLD, train, ["7", "0", "-c", "3d_fullres", "--restart"], "training fold 0 of"),
    "training a fold of several": ("training", FOLD, train, ["7", "1", "0", "-c", "3d_fullres"], "Other folds can be"),
    "planning": ("planning", {"dataset_ids": ["7"]}, plan_and_preprocess, ["-d", "7"], "planning and preprocessing"),
    "predicting": ("prediction", OUT, predict, PREDICT, "another folder to -o"),
    "a part of what all predicts": ("prediction", OUT, predict, [*PREDICT, "-num_parts", "2", "-part_id", "1"],
                                    "predicting into"),
    "all while a part predicts": ("prediction", OUT | {"num_parts": 2, "part_id": 1}, predict, PREDICT, "part 1 of 2"),
    "the same part": ("prediction", OUT | {"num_parts": 2, "part_id": 1}, predict,
                      [*PREDICT, "-num_parts", "2", "-part_id", "1"], "part 1 of 2"),
    "other parts": ("prediction", OUT | {"num_parts": 2, "part_id": 1}, predict,
                    [*PREDICT, "-num_parts", "3", "-part_id", "0"], "the same -num_parts"),
    "choosing": ("choosing", {"dataset": "7"}, find_best_configuration, ["7"], "choosing how"),
    "exporting": ("exporting", {"output_file": "{out}.zip"}, export, ["-d", "7", "-o", "{out}.zip", "--overwrite"],
                  "another name to -o"),
}


@pytest.mark.parametrize("name", SECOND_RUNS)
def test_the_second_run_is_refused(name, first_run, in_small_world, tmp_path, capsys):
    function, arguments, command, flags, part = SECOND_RUNS[name]
    values = {"out": tmp_path / "out", "images": in_small_world["images"]}
    process = first_run(function, _filled(arguments, values))
    before = _files(in_small_world["nnUNet_raw"].parent) | _files(tmp_path)
    assert command.main(_filled(flags, values)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: Process {process.pid} on {socket.gethostname()} has been ")
    assert part in error and " since 20" in error and error.count("\n") == 1
    assert _files(in_small_world["nnUNet_raw"].parent) | _files(tmp_path) == before, "nothing was touched"


@pytest.mark.parametrize("first, second", [
    (("training", FOLD), ("training", FOLD | {"folds": [1, "all"]})),
    (("training", FOLD), ("training", FOLD | {"configuration": "2d"})),
    (("prediction", OUT | {"num_parts": 2}), ("prediction", OUT | {"num_parts": 2, "part_id": 1})),
    (("prediction", OUT), ("prediction", OUT | {"output_folder": "{out}_other"})),
    (("exporting", {"output_file": "{out}/a.zip"}), ("exporting", {"output_file": "{out}/b.zip"}))])
def test_what_may_run_side_by_side(first, second, first_run, tmp_path):
    first_run(first[0], _filled(first[1], {"out": tmp_path / "out"}))
    with held(*getattr(run_locks, second[0])(**_filled(second[1], {"out": tmp_path / "out"}))):
        pass


def test_one_part_predicts_beside_another(first_run, in_small_world, tmp_path):
    out = tmp_path / "out"
    first_run("prediction", {"output_folder": str(out), "num_parts": 2, "part_id": 0})
    flags = _filled(PREDICT, {"out": out, "images": in_small_world["images"]})
    assert predict.main([*flags, "-num_parts", "2", "-part_id", "1"]) == 0
    assert [path.name for path in out.glob("case_*")] == ["case_11.nii.gz"]
    assert [path.name for path in out.glob(".*")] == [".ldseg_predict_2_0.lock"], "its own lock is gone"


def test_cases_are_not_preprocessed_while_a_training_reads_them(first_run, in_small_world, monkeypatch, capsys):
    from ldseg_auto.folders import load_plans
    from ldseg_auto.planners import api

    plans, preprocessed = load_plans(NAME), []
    for name in ("_fingerprint", "_report"):
        monkeypatch.setattr(api, name, lambda *_: None)
    monkeypatch.setattr(api, "plan_experiment_dataset", lambda *_, **__: (plans, "LDSegPlans"))
    monkeypatch.setattr(api, "preprocess_dataset", lambda number, identifier, names, *_: preprocessed.extend(names))
    process = first_run("training", FOLD)
    assert plan_and_preprocess.main(["-d", "7", "-c", "3d_fullres"]) == 1
    error = capsys.readouterr().err
    assert f"Process {process.pid}" in error and "has been training with the cases" in error
    assert plan_and_preprocess.main(["-d", "7", "-c", "2d"]) == 0 and preprocessed == ["2d"]
    process.communicate("")
    assert plan_and_preprocess.main(["-d", "7", "-c", "3d_fullres"]) == 0 and preprocessed == ["2d", "3d_fullres"]


@pytest.fixture
def model_zip(in_small_world, tmp_path, monkeypatch) -> Path:
    """Of the 2D model, with an empty folder of results to import it to."""
    assert export.main(["-d", "7", "-c", "2d", "-o", str(tmp_path / "model.zip")]) == 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "model.zip"


def test_an_import_waits_for_another(model_zip, first_run, capsys):
    process = first_run("importing", {"dataset": NAME})
    seen = []

    def end() -> None:
        seen.extend(Path(os.environ["nnUNet_results"]).glob("Dataset*"))
        process.stdin.close()

    Timer(1, end).start()
    assert import_model.main([str(model_zip)]) == 0
    assert f"Waiting: Process {process.pid} on" in capsys.readouterr().out and not seen


def test_validations_are_merged_by_one_after_the_other(in_small_world, first_run, capsys):
    process = first_run("merging", {"model": str(in_small_world["model"])})
    Timer(1, process.stdin.close).start()
    assert train.main(["7", "0", "-c", "3d_fullres", "-device", "cpu"]) == 0
    assert f"Waiting: Process {process.pid} on" in capsys.readouterr().out


def test_a_model_in_training_is_not_replaced(model_zip, first_run, capsys):
    assert import_model.main([str(model_zip)]) == 0
    process = first_run("training", FOLD | {"configuration": "2d"})
    before = _files(Path(os.environ["nnUNet_results"]))
    assert import_model.main([str(model_zip), "--overwrite"]) == 1
    assert f"Process {process.pid}" in (error := capsys.readouterr().err) and "training fold 0" in error
    assert _files(Path(os.environ["nnUNet_results"])) == before


def test_locks_are_no_cases_and_no_data_sets(in_small_world, tmp_path):
    """Hidden files that no folder command takes for a case, whatever they end in."""
    from batchgenerators.utilities.file_and_folder_operations import subfiles
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

    from ldseg_auto.checks.prediction import find_inputs
    from ldseg_auto.folders import find_models, preprocessed_cases, trained_folds

    images, preprocessed = in_small_world["images"], in_small_world["preprocessed"]
    cases = preprocessed / "LDSegPlans_3d_fullres"

    def listed():
        plans = json.loads((preprocessed / "LDSegPlans.json").read_text())
        description = json.loads((preprocessed / "dataset.json").read_text())
        return (find_inputs(images, description), subfiles(str(images), suffix=".nii.gz"),
                list(get_identifiers_from_splitted_dataset_folder(str(images), ".nii.gz")),
                preprocessed_cases(NAME, plans, "3d_fullres"),
                sorted(infer_dataset_class(str(cases)).get_identifiers(str(cases))),
                find_models(NAME), trained_folds(in_small_world["model"]))

    before = listed()
    locks = [*run_locks.prediction(str(images), 1, 0), *run_locks.training(**FOLD), *run_locks.planning(["7"]),
             *run_locks.choosing("7"), *run_locks.exporting(str(images / "model.nii.gz")), run_locks.importing(NAME),
             run_locks.merging(in_small_world["model"])]
    with held(*locks):
        assert all(lock.file.is_file() and lock.file.name.startswith(".") for lock in locks)
        assert listed() == before


def test_errors_of_the_command_come_first(nnunet_folders):
    """A lock is asked for by what exists, or else says what does not."""
    with pytest.raises(LDSegError, match="no data set 7"), held(*run_locks.training(**FOLD)):
        pass


def _start(command: str, *flags: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", f"import sys; from ldseg_auto.cli import {command} as c; "
                             "sys.exit(c.main(sys.argv[1:]))", *flags], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_real_trainings_of_one_fold(own_small_world):
    flags = ("7", "1", "-c", "3d_fullres", "-device", "cpu", "--epochs", "2", "--iterations_per_epoch", "2")
    runs = [_start("train", *flags) for _ in range(2)]
    ended = [(run.communicate(), run.returncode)[::-1] for run in runs]
    assert sorted(code for code, _ in ended) == [0, 1]
    refused, = (error for code, (_, error) in ended if code)
    assert "has been training fold 1 of" in refused and "Traceback" not in refused
    fold = own_small_world["model"] / "fold_1"
    assert (fold / "validation" / "summary.json").is_file() and not (fold / "previous_validation").exists()
    assert not list(own_small_world["nnUNet_results"].rglob(".ldseg_*"))


@pytest.mark.slow
def test_two_real_parts_of_one_prediction(in_small_world, tmp_path):
    flags = _filled(PREDICT, {"out": tmp_path / "out", "images": in_small_world["images"]})
    runs = [_start("predict", *flags, "-num_parts", "2", "-part_id", str(part)) for part in range(2)]
    assert [(run.communicate(), run.returncode)[1] for run in runs] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case_10.nii.gz", "case_11.nii.gz"]
    assert not list((tmp_path / "out").glob(".*"))
