"""A trained model's folder from a stranger, through the real commands: refused in one line, and no code of it runs."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from payload import Payload

from ldseg_auto.cli import (
    evaluate,
    export,
    find_best_configuration,
    plan_and_preprocess,
    predict,
    report,
    train,
)

CHECKPOINT, PLANS, DESCRIPTION = "fold_0/checkpoint_final.pth", "plans.json", "dataset.json"
OPEN = {
    "predict": (predict, ["-i", "{images}", "-o", "{out}", "-d", "7", "-c", "3d_fullres", "-device", "cpu", "-npp", "0",
                          "-nps", "0", "--disable_tta", "--samples", "1", "--disable_progress_bar"]),
    "report": (report, ["7", "-c", "3d_fullres", "-o", "{out}/report.html", "-device", "cpu"]),
    "find_best": (find_best_configuration, ["7", "-c", "3d_fullres", "-device", "cpu", "--disable_progress_bar"]),
    "export": (export, ["-d", "7", "-c", "3d_fullres", "-o", "{out}/model.zip"]),
}
TRAIN = {
    "train": (train, ["7", "1", "-c", "3d_fullres", "-device", "cpu"]),
    "train --c": (train, ["7", "0", "-c", "3d_fullres", "-device", "cpu", "--c"]),
    "train --val": (train, ["7", "0", "-c", "3d_fullres", "-device", "cpu", "--val"]),
    "find_best": OPEN["find_best"],
}


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """What a payload makes, and the module evil_module when it is imported; it must not be there at the end."""
    path = tmp_path / "made_by_the_payload"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil_module.py").write_text(f"import os\nos.mkdir({str(path)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield path
    assert not path.exists()


@pytest.fixture
def change(in_small_world):
    """Replace files of the world until the end of the test."""
    before: dict[Path, bytes | None] = {}

    def replace(file: Path, content: bytes) -> None:
        before.setdefault(file, file.read_bytes() if file.exists() else None)
        file.write_bytes(content)

    yield replace
    for file, content in before.items():
        file.unlink() if content is None else file.write_bytes(content)


@pytest.fixture
def refused(in_small_world, tmp_path, capsys):
    """Run a command of the tables above: what its lines say."""

    def run(command, flags, lines=1) -> str:
        values = {**in_small_world, "out": tmp_path / "out"}
        assert command.main([flag.format(**values) for flag in flags]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == lines
        return error

    return run


def _with(file: Path, path: tuple, value) -> bytes:
    content = json.loads(file.read_text())
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return json.dumps(content).encode()


CONFIGURATION = ("configurations", "3d_fullres")
ARCHITECTURE = (*CONFIGURATION, "architecture")
NAMES = {
    "network": ((*ARCHITECTURE, "network_class_name"), "evil_module.Network"),
    "layer": ((*ARCHITECTURE, "arch_kwargs", "conv_op"), "evil_module.Layer"),
    "more to import": ((*ARCHITECTURE, "_kw_requires_import"), ["conv_op", "norm_op", "nonlin", "encoder"]),
    "resampling of images": ((*CONFIGURATION, "resampling_fn_data"), "os.system"),
    "resampling of labels": ((*CONFIGURATION, "resampling_fn_seg"), "os.system"),
    "resampling of probabilities": ((*CONFIGURATION, "resampling_fn_probabilities"), "os.system"),
    "preprocessor": ((*CONFIGURATION, "preprocessor_name"), "shutil"),
    "normalization": ((*CONFIGURATION, "normalization_schemes"), ["evil_module"]),
    "reader": (("image_reader_writer",), "os"),
    "label manager": (("label_manager",), "np"),
    "planner": (("experiment_planner_used",), "os.system"),
    "folder": ((*CONFIGURATION, "data_identifier"), "../../elsewhere"),
    "inheritance without end": ((*CONFIGURATION, "inherits_from"), "3d_fullres"),
}


@pytest.mark.parametrize("name", NAMES)
def test_code_that_plans_name_is_refused_by_every_command(name, in_small_world, change, refused, made):
    path, value = NAMES[name]
    file = in_small_world["model"] / PLANS
    change(file, _with(file, path, value))
    for command, flags in OPEN.values():
        error = refused(command, flags)
        assert str(path[-1]) in error or "inherits from" in error or "encoder" in error
    file = in_small_world["preprocessed"] / "LDSegPlans.json"
    change(file, _with(file, path, value))
    for command, flags in TRAIN.values():
        refused(command, flags)


@pytest.mark.parametrize("path, value, part", [
    ((*ARCHITECTURE, "arch_kwargs", "conv_bias"), None, "do not describe the network whose weights are there"),
    ((*ARCHITECTURE, "arch_kwargs", "kernel_sizes"), None, "do not describe the network whose weights are there"),
    (("training_images",), None, "training_images in the model's plans.json is not what planning writes"),
    (("training_images",), {"orientations": 5}, "training_images in the model's plans.json is not what planning")])
def test_plans_that_do_not_fit_the_weights(path, value, part, in_small_world, change, refused):
    file = in_small_world["model"] / PLANS
    change(file, _with(file, path, value))
    assert part in refused(*OPEN["predict"])


@pytest.mark.parametrize("opened", [*OPEN, "train --val", "train --c"])
def test_checkpoints_that_run_code_are_refused_by_every_command(opened, in_small_world, change, refused, made,
                                                                tmp_path):
    file = in_small_world["model"] / CHECKPOINT
    torch.save(torch.load(file) | {"extra": Payload(made)}, tmp_path / "evil.pth")
    change(file, (tmp_path / "evil.pth").read_bytes())
    command, flags = (OPEN | TRAIN)[opened]
    assert "checkpoint_final.pth cannot be read" in (error := refused(command, flags)) and "mkdir" in error


@pytest.mark.parametrize("flag", ["-pretrained_weights", "--encoder_weights"])
def test_pretrained_weights_that_run_code_are_refused(flag, in_small_world, refused, made, tmp_path):
    content = torch.load(in_small_world["model"] / CHECKPOINT)
    for changes in ({"extra": Payload(made)}, {"network_weights": Payload(made)}):
        torch.save(content | changes, tmp_path / "evil.pth")
        for flags in ([], ["--cluster", "local"]):
            error = refused(train, ["7", "1", "-c", "3d_fullres", "-device", "cpu", *flags,
                                    flag, str(tmp_path / "evil.pth")])
            assert "evil.pth cannot be read" in error and "mkdir" in error


def test_a_trainer_that_is_none_is_refused(in_small_world, change, refused, made, tmp_path):
    file = in_small_world["model"] / CHECKPOINT
    torch.save(torch.load(file) | {"trainer_name": "evil_module"}, tmp_path / "evil.pth")
    change(file, (tmp_path / "evil.pth").read_bytes())
    assert "evil_module" in refused(*OPEN["predict"])


@pytest.mark.parametrize("content, part", [
    (b"[" * 100_000, "not valid JSON"), (b"\xff\xfe{}", "not valid JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"), (b"[]", "not a table"), (b"null", "not a table")])
@pytest.mark.parametrize("name", [PLANS, DESCRIPTION])
def test_tables_made_to_break_the_reader(name, content, part, in_small_world, change, refused):
    change(in_small_world["model"] / name, content)
    for command, flags in OPEN.values():
        assert part in refused(command, flags)


def test_pickles_and_object_arrays_beside_a_model_are_not_opened(in_small_world, change, made, tmp_path, capsys):
    """Wherever nnU-Net would look for one: case properties, postprocessing, probabilities."""
    model, evil = in_small_world["model"], pickle.dumps(Payload(made))
    np.savez(tmp_path / "evil.npz", probabilities=np.array([Payload(made)], dtype=object))
    validation = model / "fold_0" / "validation"
    cases = [path.name.removesuffix(".nii.gz") for path in validation.glob("*.nii.gz")]
    for file in (model / "postprocessing.pkl", *(validation / f"{case}.pkl" for case in cases)):
        change(file, evil)
    for case in cases:
        change(validation / f"{case}.npz", (tmp_path / "evil.npz").read_bytes())
    values = {**in_small_world, "out": tmp_path / "out"}
    for command, flags in (OPEN["report"], OPEN["export"]):
        assert command.main([flag.format(**values) for flag in flags]) == 0
    assert "allow_pickle" in (tmp_path / "out" / "report.html").read_text(), "the report says what it left out"


@pytest.mark.parametrize("ending", [".pkl", ".npz"])
def test_parts_of_an_ensemble_that_run_code_are_not_opened(ending, in_small_world, made, tmp_path, refused,
                                                           monkeypatch):
    """They lie in the folder of -o, which may be anybody's."""
    from ldseg_auto.inference import run

    flags = [*OPEN["predict"][1], "-c", "3d_fullres", "2d"]
    original = run._predict_members

    def tampered(*arguments):
        members, failures = original(*arguments)
        for file in members[0].glob(f"*{ending}"):
            if ending == ".pkl":
                file.write_bytes(pickle.dumps({"spacing": Payload(made)}))
            else:
                np.savez(file, probabilities=np.array([Payload(made)], dtype=object))
        return members, failures

    monkeypatch.setattr(run, "_predict_members", tampered)
    assert {".pkl": "would call", ".npz": "allow_pickle=False"}[ending] in refused(predict, flags, lines=3)


@pytest.mark.parametrize("name, changes", [(PLANS, {"image_reader_writer": "os"}),
                                           (DESCRIPTION, {"overwrite_image_reader_writer": "os"})])
def test_tables_beside_predictions_and_raw_data(name, changes, in_small_world, change, refused):
    folder = in_small_world["model"] / "fold_0" / "validation"
    change(folder / PLANS, (in_small_world["model"] / PLANS).read_bytes())
    change(folder / DESCRIPTION, (in_small_world["model"] / DESCRIPTION).read_bytes())
    change(folder / name, json.dumps(json.loads((folder / name).read_text()) | changes).encode())
    labels = in_small_world["nnUNet_raw"] / "Dataset007_Small" / "labelsTr"
    error = refused(evaluate, ["-i", str(folder), "-r", str(labels), "--chill", "-o", "{out}"])
    assert "'os', which is not among what a shared model may name" in error
    if name == DESCRIPTION:
        file = labels.parent / DESCRIPTION
        change(file, json.dumps(json.loads(file.read_text()) | changes).encode())
        assert "overwrite_image_reader_writer" in refused(plan_and_preprocess, ["-d", "7"])


def test_networks_of_ones_own_are_named_once_and_used(in_small_world, change, refused, tmp_path, monkeypatch):
    """Somebody who extends the product lists the module; the error says how."""
    (tmp_path / "own_networks.py").write_text(
        "import os\nfrom ldseg_auto.networks.ldseg_net import LDSegNet\nclass OwnNet(LDSegNet):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = in_small_world["model"] / PLANS
    change(file, _with(file, NAMES["network"][0], "own_networks.OwnNet"))
    assert "export LDSEG_TRUSTED_MODULES=own_networks" in refused(*OPEN["predict"])
    monkeypatch.setenv("LDSEG_TRUSTED_MODULES", "own_networks")
    command, flags = OPEN["predict"]
    assert command.main([flag.format(**in_small_world, out=tmp_path / "out") for flag in flags]) == 0
    assert len(list((tmp_path / "out").glob("case_*.nii.gz"))) == 2
    change(file, _with(file, NAMES["network"][0], "own_networks.os.system"))
    assert "own_networks.os" in refused(*OPEN["predict"])
