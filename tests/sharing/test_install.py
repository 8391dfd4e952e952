import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from ldseg_auto.cli import import_model
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.choice import Best, Finish, load_best, load_choice, save_best
from ldseg_auto.sharing import install
from ldseg_auto.sharing.weights import to_bytes

NAME = "Dataset004_Small"
MODEL = f"{NAME}/LDSegTrainer__LDSegPlans__3d_fullres"
WEIGHTS, PLANS = f"{MODEL}/fold_0/weights.safetensors", f"{MODEL}/plans.json"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_installed(model_zip, results, tmp_path):
    assert install.import_model(str(model_zip)) == [results / MODEL]
    exported, imported = tmp_path / "exported", results / NAME
    assert [path.name for path in imported.iterdir()] == [Path(MODEL).name]
    for name in ("plans.json", "dataset.json", "fold_0/progress.png"):
        assert (results / MODEL / name).read_bytes() == (exported / Path(MODEL).name / name).read_bytes()
    assert set(_content(results / MODEL)) == {"plans.json", "dataset.json", "LICENSE", "manifest.json"} | {
        f"fold_{fold}/{name}" for fold in (0, 1)
        for name in ("checkpoint_final.pth", "progress.png", "validation/summary.json")}
    for fold in (0, 1):
        before, after = (torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)
                         for folder in (exported / Path(MODEL).name, results / MODEL))
        assert after["network_weights"].keys() == before["network_weights"].keys()
        assert all(torch.equal(after["network_weights"][name], before["network_weights"][name])
                   for name in before["network_weights"])
        assert after["trainer_name"] == "LDSegTrainer" and after["inference_allowed_mirroring_axes"] == (0, 2)
        assert after["init_args"] == {"configuration": "3d_fullres", "fold": fold}
        assert set(after) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}


def test_an_existing_model_is_replaced_only_when_asked_for(model_zip, results, tools, capsys):
    old = tools["write_model"](results, folds=(0, 3))
    before = _content(results)
    assert import_model.main([str(model_zip)]) == 1
    assert f"There is already {old}" in (error := capsys.readouterr().err) and "--overwrite" in error
    assert _content(results) == before
    assert import_model.main([str(model_zip), "--overwrite"]) == 0
    assert sorted(path.name for path in old.glob("fold_*")) == ["fold_0", "fold_1"], "all folds are replaced"
    assert [path.name for path in (results / NAME).iterdir()] == [old.name]


def test_other_models_of_the_data_set_stay(model_zip, results, tools):
    other = tools["write_model"](results, "3d_lowres", (0,))
    before = _content(other)
    assert import_model.main([str(model_zip)]) == 0
    assert _content(other) == before and (results / MODEL).is_dir()


def test_a_linked_model_is_replaced_and_what_it_points_to_stays(model_zip, results, tools, tmp_path):
    elsewhere = shutil.move(tools["write_model"](results), tmp_path / "elsewhere")
    (results / MODEL).symlink_to(elsewhere)
    before = _content(Path(elsewhere))
    assert import_model.main([str(model_zip)]) == 1
    assert import_model.main([str(model_zip), "--overwrite"]) == 0
    assert not (results / MODEL).is_symlink() and _content(Path(elsewhere)) == before


CHOICE = f"{NAME}/ldseg_inference.json"
TRAINER = ("LDSegTrainer", "LDSegPlans")


def _choice_of(*configurations: str, trainer: tuple[str, str] = TRAINER, folder: Path | None = None, **finish) -> bytes:
    """A data set's ldseg_inference.json, with what `folder` holds already."""
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary) if folder is None else folder
        save_best(where, *trainer, Best(configurations, Finish(**finish)), {})
        return (where / "ldseg_inference.json").read_bytes()


def test_a_choice_among_configurations_comes_with_the_models(change_zip, results, capsys):
    changed = change_zip(lambda files: files.update({CHOICE: _choice_of("3d_fullres", temperature=1.5)}))
    assert import_model.main([str(changed)]) == 0
    assert "Installed the choice among configurations" in capsys.readouterr().out
    assert load_best(results / NAME, *TRAINER) == Best(("3d_fullres",), Finish(1.5))
    assert import_model.main([str(changed), "--overwrite"]) == 0, "the same choice does not stand in the way"
    assert "choice among configurations" not in capsys.readouterr().out


def test_a_choice_that_is_here_stays(change_zip, results, capsys):
    """Of the same trainer and plans until it is asked for, of others in any case; theirs of others is not taken."""
    (results / NAME).mkdir()
    before = _choice_of("2d", "3d_lowres", folder=results / NAME)
    zipped = json.loads(_choice_of("3d_fullres")) | {"Stranger__Plans": {}}
    changed = change_zip(lambda files: files.update({CHOICE: json.dumps(zipped).encode()}))
    assert import_model.main([str(changed)]) == 0, "a model is added"
    assert "Kept the choice among configurations that is here (2d and 3d_lowres)" in capsys.readouterr().out
    assert (results / CHOICE).read_bytes() == before and (results / MODEL).is_dir()
    _choice_of("2d", trainer=("Mine", "LDSegPlans"), folder=results / NAME)
    assert import_model.main([str(changed), "--overwrite"]) == 0
    assert load_best(results / NAME, *TRAINER) == Best(("3d_fullres",), Finish())
    assert load_best(results / NAME, "Mine", "LDSegPlans") == Best(("2d",), Finish())
    assert "Stranger__Plans" not in (results / CHOICE).read_text()


def test_a_choice_of_other_models_is_joined(change_zip, results):
    (results / NAME).mkdir()
    _choice_of("2d", trainer=("Mine", "LDSegPlans"), folder=results / NAME)
    assert import_model.main([str(change_zip(lambda files: files.update({CHOICE: _choice_of("3d_fullres")})))]) == 0
    assert load_best(results / NAME, *TRAINER) == Best(("3d_fullres",), Finish())
    assert load_best(results / NAME, "Mine", "LDSegPlans") == Best(("2d",), Finish())


def test_a_damaged_choice_that_is_here_is_replaced_only_when_asked_for(change_zip, results, capsys):
    (results / NAME).mkdir()
    (results / CHOICE).write_text("{")
    changed = change_zip(lambda files: files.update({CHOICE: _choice_of("3d_fullres")}))
    assert import_model.main([str(changed)]) == 0
    assert "It was left as it is" in capsys.readouterr().out and (results / CHOICE).read_text() == "{"
    assert import_model.main([str(changed), "--overwrite"]) == 0
    assert load_best(results / NAME, *TRAINER) == Best(("3d_fullres",), Finish())


def _sampler(**changes) -> bytes:
    finish = {"temperature": 1.0, "largest_component": [], "interval_scales": []}
    sampler = {"samples": 5, "steps": 2, "eta": 0.0, "mirroring": True}
    return json.dumps({"ldseg_inference_format": 1, "sampler": {name: changes.pop(name, value) for name, value
                                                                in sampler.items()},
                       "finish": finish | changes, "evidence": {}}).encode()


def test_a_models_own_choice_is_installed(change_zip, results):
    changed = change_zip(lambda files: files.update({f"{MODEL}/ldseg_inference.json": _sampler(interval_scales=[2.0])}))
    assert import_model.main([str(changed)]) == 0
    choice = load_choice(results / MODEL)
    assert choice.sampler.samples == 5 and choice.finish.interval_scales == (2.0,)


@pytest.mark.parametrize("content, part", [
    (_sampler(samples=0), "not a sampler"), (_sampler(temperature=float("inf")), "not a way to finish"),
    (_sampler(interval_scales=[1.0, 2.0]), "2 intervals of 1 classes"), (_sampler(more=1), "keys"),
    (_sampler().replace(b'format": 1', b'format": 99'), "format 99"), (b"[]", "format None")])
def test_a_choice_that_prediction_would_refuse(content, part, change_zip, results, capsys):
    changed = change_zip(lambda files: files.update({f"{MODEL}/ldseg_inference.json": content}))
    assert import_model.main([str(changed)]) == 1
    error = capsys.readouterr().err
    assert part in error and f"{Path(MODEL).name}/ldseg_inference.json" in error and ".ldseg_import" not in error
    assert not list(results.iterdir())


@pytest.mark.parametrize("content, part", [
    (_choice_of("3d_fullres", interval_scales=(1.0, 2.0)), "2 intervals of 1 classes"),
    (_choice_of("3d_fullres", "..\u001b[31m"), "names the configurations"),
    (_choice_of().replace(b"[]", b'"2d"', 1), "not configurations"), (_choice_of(), "not configurations")])
def test_a_choice_among_configurations_that_prediction_would_refuse(content, part, change_zip, results, capsys):
    assert import_model.main([str(change_zip(lambda files: files.update({CHOICE: content})))]) == 1
    assert part in (error := capsys.readouterr().err) and "\x1b" not in error
    assert not list(results.iterdir())


def test_an_id_with_two_names_is_told(model_zip, nnunet_folders, capsys):
    (nnunet_folders["nnUNet_raw"] / "Dataset004_Other").mkdir()
    assert import_model.main([str(model_zip)]) == 0
    assert "the ID 4 now stands for Dataset004_Small, Dataset004_Other" in capsys.readouterr().out


def test_variable_not_set(model_zip, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    assert import_model.main([str(model_zip)]) == 1
    assert "nnUNet_results is not set" in capsys.readouterr().err


def _set(name: str, *path):
    """An edit that sets a value inside a table."""
    def edit(files):
        content = json.loads(files[name])
        inside = content
        for key in path[:-2]:
            inside = inside[key]
        inside[path[-2]] = path[-1]
        files[name] = json.dumps(content).encode()
    return edit


ARCHITECTURE = ("configurations", "3d_fullres", "architecture")
CHECKPOINT = f"{MODEL}/fold_1/checkpoint.json"


@pytest.mark.parametrize("edit, part", [
    (_set(PLANS, *ARCHITECTURE, "network_class_name", "os.system"), "network_class_name of '3d_fullres'"),
    (_set(PLANS, *ARCHITECTURE, "arch_kwargs", "conv_op", "os.system"), "conv_op of '3d_fullres'"),
    (_set(PLANS, "image_reader_writer", "os"), "image_reader_writer"),
    (_set(PLANS, "ldseg_plans_format", 99), "format 99"), (_set(PLANS, "ldseg_plans_format", "x"), "no number"),
    (_set(PLANS, "configurations", {}), "no configuration '3d_fullres'"),
    (lambda files: files.update({PLANS: b"{"}), "'plans.json' is not valid JSON"),
    (lambda files: files.update({f"{MODEL}/dataset.json": b"[]"}), "dataset.json is []"),
    (lambda files: files.update({f"{MODEL}/ldseg_inference.json": b"[" * 100_000}), "ldseg_inference.json"),
    (lambda files: files.update({f"{NAME}/ldseg_inference.json": b""}), "ldseg_inference.json"),
    (_set(CHECKPOINT, "trainer_name", "nnUNetTrainer"), "does not belong to LDSegTrainer"),
    (_set(CHECKPOINT, "configuration", "2d"), "fold 1 does not belong"),
    (_set(CHECKPOINT, "inference_allowed_mirroring_axes", ["os.system"]), "no axes"),
    (_set(CHECKPOINT, "inference_allowed_mirroring_axes", [3]), "no axes"),
    (_set(CHECKPOINT, "inference_allowed_mirroring_axes", [0, 0]), "no axes"),
    (lambda files: files.update({CHECKPOINT: b"[]"}), "does not belong"),
    (lambda files: files.update({WEIGHTS: files[WEIGHTS][:-3]}), "fold_0/weights.safetensors cannot be read"),
    (lambda files: files.update({WEIGHTS: b"\x80\x04cos\nsystem\n"}), "weights.safetensors cannot be read")])
def test_content_that_is_refused_leaves_nothing(edit, part, change_zip, results, capsys):
    assert import_model.main([str(change_zip(edit))]) == 1
    assert part in capsys.readouterr().err
    assert not list(results.iterdir())


@pytest.mark.parametrize("trainer, part", [("nnUNetPredictor", "not installed here"), ("torch", "not installed here"),
                                           ("NobodysTrainer", "nnUNet_extTrainer"), ("os.system", "name of a trainer")])
def test_trainers_must_be_installed(trainer, part, change_zip, results, capsys):
    def edit(files):
        for name in list(files):
            files[name.replace("LDSegTrainer__", f"{trainer}__")] = files.pop(name).replace(
                b'"LDSegTrainer"', f'"{trainer}"'.encode())

    assert import_model.main([str(change_zip(edit))]) == 1
    assert part in capsys.readouterr().err
    assert not list(results.iterdir())


def test_the_users_own_trainers_are_known(change_zip, results, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text("from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer\n"
                                              "class MyTrainer(LDSegTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "own"))

    def edit(files):
        for name in list(files):
            files[name.replace("LDSegTrainer__", "MyTrainer__")] = files.pop(name).replace(b'"LDSegTrainer"',
                                                                                         b'"MyTrainer"')
    assert import_model.main([str(change_zip(edit))]) == 0
    assert (results / MODEL.replace("LDSegTrainer", "MyTrainer")).is_dir()


def _no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def _torchs_no_space(*arguments, **options):
    raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file: no space")


class _FullFile:
    """A file that can be opened and not written to."""

    def __init__(self, path, mode):
        Path(path).touch()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    write = staticmethod(_no_space)


@pytest.mark.parametrize("name, replacement", [
    ("ldseg_auto.sharing.archive.open", _FullFile),
    ("torch.save", _no_space), ("torch.save", _torchs_no_space), ("shutil.copyfile", _no_space),
    ("tempfile.mkdtemp", _no_space), ("pathlib.Path.rename", _no_space)])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_what_was_there(name, replacement, existing, model_zip, results, tools, monkeypatch, capsys):
    if existing:
        tools["write_model"](results, folds=(3,))
    before = _content(results)
    monkeypatch.setattr(name, replacement, raising=False)
    assert import_model.main([str(model_zip), "--overwrite"]) == 1
    assert "cannot be written" in (error := capsys.readouterr().err) and "Nothing was changed" in error
    assert _content(results) == before and len(list(results.iterdir())) == existing
    assert len(list(results.glob(f"{NAME}/*"))) == existing


def test_room_is_asked_for_first(model_zip, results, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10 ** 9, 10 ** 9, 1000))
    assert import_model.main([str(model_zip)]) == 1
    assert "1000 are free" in capsys.readouterr().err
    assert not list(results.iterdir())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(1, 5))
def test_an_interruption_at_any_move_leaves_all_or_nothing(nth, when, change_zip, results, tools, monkeypatch):
    """Two new models and one that is replaced; interrupted before or after each of the moves."""
    def edit(files):
        manifest = f"{NAME}/manifest.json"
        content = json.loads(files[manifest])
        content["configurations"]["3d_lowres"] = [0, 1]
        files[manifest] = json.dumps(content).encode()
        for name in [name for name in files if "3d_fullres/" in name]:
            files[name.replace("3d_fullres", "3d_lowres")] = files[name].replace(
                b"3d_fullres", b"3d_lowres") if name.endswith("checkpoint.json") else files[name]

    changed = change_zip(edit)
    tools["write_model"](results, folds=(3,))
    before = _content(results)
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == nth and when == "before":
            raise KeyboardInterrupt
        rename(self, target)
        if len(calls) == nth:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    code = import_model.main([str(changed), "--overwrite"])
    assert code == (130 if nth <= 3 else 0)
    if code == 130:
        assert _content(results) == before
    assert not list(results.rglob(".ldseg_import_*"))


def test_what_cannot_be_moved_back_is_kept(model_zip, results, tools, monkeypatch, capsys):
    before = _content(tools["write_model"](results, folds=(3,)))
    rename, calls = Path.rename, []

    def breaks(self, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(self, target)

    monkeypatch.setattr(Path, "rename", breaks)
    assert import_model.main([str(model_zip), "--overwrite"]) == 1
    kept, = (results / NAME).glob(f".ldseg_import_*/replaced/{Path(MODEL).name}")
    assert _content(kept) == before and str(kept.parent) in capsys.readouterr().out


def test_results_below_a_file(model_zip, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file" / "results"))
    assert import_model.main([str(model_zip)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_no_results_folder_is_left_by_a_failure(model_zip, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "new"))
    for name in ("tempfile.mkdtemp", "torch.save"):
        with monkeypatch.context() as full:
            full.setattr(name, _no_space)
            assert import_model.main([str(model_zip)]) == 1
        assert not (tmp_path / "new").exists()


def test_a_results_folder_is_made_where_there_is_none(model_zip, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "new" / "results"))
    assert import_model.main([str(model_zip)]) == 0
    assert (tmp_path / "new" / "results" / PLANS).is_file()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new" / "results" / MODEL).stat().st_mode & 0o777 == 0o777 & ~umask


def test_wrong_tensors_are_found_when_the_network_is_built(change_zip, results):
    """Names and shapes of tensors are the network's to check: the import knows no network."""
    edit = {WEIGHTS: to_bytes({"other": torch.ones(1)})}
    install.import_model(str(change_zip(lambda files: files.update(edit))))
    assert set(torch.load(results / MODEL / "fold_0" / "checkpoint_final.pth")["network_weights"]) == {"other"}


def test_an_error_names_cause_and_cure(model_zip):
    install.import_model(str(model_zip))
    with pytest.raises(LDSegError) as error:
        install.import_model(str(model_zip))
    assert error.value.cause and error.value.cure
