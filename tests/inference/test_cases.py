"""One bad case does not stop the others; what is unfinished counts as nothing."""

import errno
import os
import shutil
import signal
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ldseg_auto.cli import predict
from ldseg_auto.inference import cases as module
from ldseg_auto.inference.export import export_case
from ldseg_auto.inference.failures import CasesFailed, Failure, failure_of
from ldseg_auto.inference.predictor import LDSegPredictor

COMMAND = ["-d", "7", "-device", "cpu", "--disable_tta", "--disable_progress_bar", "--samples", "1",
           "-npp", "1", "-nps", "1"]


@pytest.fixture
def predictor(in_small_world):
    predictor = LDSegPredictor(device=torch.device("cpu"), samples=1, steps=1, allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(in_small_world["model"]), [0])
    return predictor


def images_of(world, out):
    return {out / path.name.removesuffix("_0000.nii.gz"): [str(path)] for path in sorted(world["images"].iterdir())}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("processes", [(0, 0), (1, 1), (3, 2)])
def test_a_case_that_cannot_be_read_does_not_stop_the_others(predictor, in_small_world, tmp_path, processes, capsys):
    (tmp_path / "bad_0000.nii.gz").write_bytes(b"no image")
    cases = {tmp_path / "bad": [str(tmp_path / "bad_0000.nii.gz")]} | images_of(in_small_world, tmp_path)
    expected = r"1 of 3 cases failed: bad\.(.|\n)*\n  bad: Preprocessing failed: RuntimeError"
    with pytest.raises(CasesFailed, match=expected) as error:
        predictor.predict_from_files(list(cases.values()), [str(case) for case in cases], True, True, *processes)
    assert [failure.case for failure in error.value.failures] == ["bad"]
    (tmp_path / "bad_0000.nii.gz").unlink()
    assert names(tmp_path) == sorted(
        ["dataset.json", "plans.json", "predict_from_raw_data_args.json",
         *(f"case_{n}{end}" for n in (10, 11) for end in (".nii.gz", ".npz", ".pkl"))])
    assert "bad failed: Preprocessing failed" in capsys.readouterr().out


@pytest.mark.parametrize("step, patched", [("prediction", "_predict"), ("writing", "export_case")])
def test_every_step_may_fail(predictor, in_small_world, tmp_path, monkeypatch, step, patched):
    done = getattr(module, patched)

    def fails_for_one(*arguments):
        if any(getattr(argument, "name", "") == "case_10" for argument in arguments):
            raise OSError(errno.ENOSPC, "No space left on device")
        return done(*arguments)

    monkeypatch.setattr(module, patched, fails_for_one)
    failures = module.predict_cases(predictor, images_of(in_small_world, tmp_path), False, 1, 1)
    assert failures == [Failure("case_10", f"The disk is full ({step}).",
                                "Free space, or give another folder to -o.")]
    assert names(tmp_path) == ["case_11.nii.gz"]


def test_the_command_lists_what_failed_and_continues_with_it(in_small_world, tmp_path, monkeypatch, capsys):
    def fails_for_one(*arguments):
        if arguments[6].name == "case_11":
            raise MemoryError
        return export_case(*arguments)

    command = ["-i", str(in_small_world["images"]), "-o", str(tmp_path), *COMMAND]
    with monkeypatch.context() as patch:
        patch.setattr(module, "export_case", fails_for_one)
        assert predict.main(command) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == ("  case_11: Memory did not suffice for writing. Free memory, or predict with fewer processes "
                        "(-npp 1 -nps 1).")
    assert said[-2].startswith("error: 1 of 2 cases failed: case_11.")
    assert "--continue_prediction" in said[-2]
    written = (tmp_path / "case_10.nii.gz").stat().st_mtime_ns
    assert predict.main([*command, "--continue_prediction"]) == 0
    assert (tmp_path / "case_11.nii.gz").is_file()
    assert (tmp_path / "case_10.nii.gz").stat().st_mtime_ns == written


def test_a_case_that_fails_with_one_configuration_leaves_the_others_of_the_ensemble(in_small_world, tmp_path,
                                                                                   monkeypatch, capsys):
    def fails_for_one(*arguments):
        if arguments[6].name == "case_11" and "2d" in str(arguments[6]):
            raise MemoryError
        return export_case(*arguments)

    command = ["-i", str(in_small_world["images"]), "-o", str(tmp_path), *COMMAND, "-c", "3d_fullres", "2d"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "export_case", fails_for_one)
        assert predict.main(command) == 1
    assert "1 of 2 cases failed: case_11" in capsys.readouterr().err
    assert (tmp_path / "case_10.nii.gz").is_file() and not (tmp_path / "case_11.nii.gz").exists()
    assert (tmp_path / "members_0" / "LDSegTrainer__LDSegPlans__3d_fullres" / "case_11.npz").is_file(), "kept for later"
    assert predict.main([*command, "--continue_prediction"]) == 0
    assert (tmp_path / "case_11.nii.gz").is_file() and not (tmp_path / "members_0").exists()


def test_remains_of_a_killed_run_are_removed(predictor, in_small_world, tmp_path):
    (tmp_path / "case_10.part" / "files").mkdir(parents=True)
    (tmp_path / "case_10.part" / "files" / "case_10.nii.gz").write_bytes(b"half")
    assert module.predict_cases(predictor, images_of(in_small_world, tmp_path), False, 0, 0) == []
    assert names(tmp_path) == ["case_10.nii.gz", "case_11.nii.gz"]


def test_an_interruption_leaves_nothing(predictor, in_small_world, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.predict_cases(predictor, images_of(in_small_world, tmp_path), False, 1, 1)
    assert names(tmp_path) == []


@pytest.mark.processes
def test_a_dead_process_is_named_with_its_case(tmp_path, monkeypatch):
    """In a process that imports nothing heavy: what is predicted is left out."""
    (tmp_path / "killed_while_reading.py").write_text(textwrap.dedent("""
        import os, signal
        def preprocess(case, *arguments):
            if case.name == "a":
                os.kill(os.getpid(), signal.SIGKILL)
            return "image", "properties"
        """))
    monkeypatch.syspath_prepend(str(tmp_path))
    import killed_while_reading
    monkeypatch.setattr(module, "_preprocess", killed_while_reading.preprocess)
    monkeypatch.setattr(module, "_predict", lambda *_: (None, []))
    monkeypatch.setattr(module, "export_case", lambda *arguments: arguments[6].touch())
    predictor = SimpleNamespace(verbose=False, verbose_preprocessing=False, plans_manager=None,
                                configuration_manager=None, dataset_json={}, export=None)
    out = tmp_path / "out"
    out.mkdir()
    failure, = module.predict_cases(predictor, {out / name: [] for name in "abc"}, False, 1, 0)
    assert failure.case == "a"
    assert failure.cause.startswith("Its process was ended by the system during preprocessing")
    assert "-npp 1" in failure.cure
    assert names(out) == ["b", "c"]
    del sys.modules["killed_while_reading"]


def test_what_was_not_foreseen_shows_its_traceback_on_demand(capsys):
    assert failure_of("a", "writing", KeyError("x")).cause == "Writing failed: KeyError: 'x'."
    assert not capsys.readouterr().err
    failure_of("a", "writing", KeyError("x"), verbose=True)
    assert "KeyError: 'x'" in capsys.readouterr().err


def test_arrays_and_iterators_as_nnunet_takes_them(predictor, in_small_world, tmp_path):
    path = in_small_world["images"] / "case_10_0000.nii.gz"
    data, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(path)])
    returned = predictor.predict_single_npy_array(data, dict(properties))
    preprocessed, _, properties = predictor.configuration_manager.preprocessor_class(verbose=False).run_case(
        [str(path)], None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
    item = {"data": torch.from_numpy(preprocessed), "data_properties": properties, "ofile": None}
    segmentation, = predictor.predict_from_data_iterator(iter([item]))
    assert np.array_equal(returned, segmentation)
    np.save(tmp_path / "data.npy", preprocessed)  # nnU-Net's way to hand on large arrays
    predictor.predict_from_data_iterator(iter([item | {"data": str(tmp_path / "data.npy"),
                                                       "ofile": str(tmp_path / "a")}]))
    assert names(tmp_path) == ["a.nii.gz"]
    predictor.predict_from_files([[str(path)]], [str(tmp_path / "b")], False, True, 0, 0)
    written = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))) for name in "ab"]
    assert np.array_equal(*written)
    assert (written[0] != returned).mean() < 0.01, "logits are resampled there, probabilities here"


def test_what_was_cut_off_since_does_not_count_as_done(in_small_world, tmp_path, capsys):
    """By a power cut, or a copy that was interrupted."""
    arguments = ["-i", str(in_small_world["images"]), "-o", str(tmp_path), *COMMAND, "--save_probabilities"]
    assert predict.main(arguments) == 0
    for name, bytes_left in (("case_10.nii.gz", 60), ("case_11.npz", 100), ("case_10.pkl", 0)):
        whole = (tmp_path / name).read_bytes()
        os.truncate(tmp_path / name, bytes_left)
        capsys.readouterr()
        assert predict.main([*arguments, "--continue_prediction"]) == 0
        assert (tmp_path / name).read_bytes() == whole
        assert capsys.readouterr().out.count("Predicting case") == 1, "the other one is kept"


@pytest.mark.slow
def test_a_killed_command_is_continued(in_small_world, tmp_path):
    """SIGKILL at several moments of the real command with its processes; then --continue_prediction."""
    import subprocess
    import time

    expected = tmp_path / "expected"
    script = "import sys; from ldseg_auto.cli.predict import main; sys.exit(main(sys.argv[1:]))"
    flags = ["-i", str(in_small_world["images"]), *COMMAND, "--save_probabilities", "--uncertainty"]

    def start(out, *more):
        return subprocess.Popen([sys.executable, "-c", script, "-o", str(out), *flags, *more], start_new_session=True,
                                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    began = time.monotonic()
    assert start(expected).wait() == 0
    took = time.monotonic() - began
    for share in (0.5, 0.7, 0.85, 0.95):
        out = tmp_path / str(share)
        running = start(out)
        time.sleep(share * took)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        ended = start(out, "--continue_prediction")
        assert ended.wait() == 0, ended.stderr.read()
        for file in (path for path in expected.rglob("*") if path.suffix in (".gz", ".npz")):
            assert (out / file.relative_to(expected)).read_bytes() == file.read_bytes()
        assert not list(out.glob("*.part"))
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_so_in_one_line(number, in_small_world, tmp_path):
    import subprocess

    script = "import sys; from ldseg_auto.cli.predict import main; sys.exit(main(sys.argv[1:]))"
    running = subprocess.Popen([sys.executable, "-c", script, "-i", str(in_small_world["images"]), "-o", str(tmp_path),
                                *COMMAND, "--samples", "200"], start_new_session=True, stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.PIPE,
                               text=True)
    while "Predicting case" not in running.stdout.readline():
        pass
    os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert said.strip().splitlines()[-1] == (f"interrupted by {number.name}. Run the same command again with "
                                             "--continue_prediction: cases that are written are kept.")
    assert "Traceback" not in said and not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".ldseg*"))
