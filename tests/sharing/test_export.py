import json
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from ldseg_auto.cli import export, import_model
from ldseg_auto.sharing.export import NO_LICENCE

NAME = "Dataset004_Small"
MODEL = f"{NAME}/LDSegTrainer__LDSegPlans__3d_fullres"


@pytest.fixture
def exported(tmp_path, tools):
    """Export with these flags: what the zip holds."""

    def run(*flags: str) -> dict[str, bytes]:
        out = tmp_path / "out" / "model.zip"
        assert export.main(["-d", "4", "-o", str(out), "--overwrite", *flags]) == 0
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        return tools["read_zip"](out)

    return run


def _manifest(files: dict[str, bytes]) -> dict:
    return json.loads(files[f"{NAME}/manifest.json"])


def test_what_the_zip_holds(model, exported):
    (model / "dataset_fingerprint.json").write_text("{}")
    (model / "fold_0" / "latent_signs.json").write_text("{}")
    (model / "ldseg_inference.json").write_text("{}")
    (model.parent / "ldseg_inference.json").write_text('{"samples": 3}')
    (model / "postprocessing.pkl").write_bytes(b"pickled")
    files = exported()
    folds = {f"{MODEL}/fold_{fold}/{name}" for fold in (0, 1)
             for name in ("weights.safetensors", "checkpoint.json", "progress.png", "validation/summary.json")}
    assert set(files) == folds | {f"{NAME}/manifest.json", f"{NAME}/ldseg_inference.json"} | {
        f"{MODEL}/{name}" for name in ("plans.json", "dataset.json", "dataset_fingerprint.json", "LICENSE",
                                       "ldseg_inference.json", "fold_0/latent_signs.json")}
    manifest = _manifest(files)
    assert {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()} == {
        name: (sha256(content).hexdigest(), len(content)) for name, content in files.items()
        if name != f"{NAME}/manifest.json"}
    assert (manifest["dataset"], manifest["trainer"], manifest["plans"]) == (NAME, "LDSegTrainer", "LDSegPlans")
    assert manifest["configurations"] == {"3d_fullres": [0, 1]} and manifest["checkpoint"] == "checkpoint_final.pth"
    assert set(manifest["versions"]) == {"ldseg_auto", "nnunetv2", "torch", "python"}
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert files[f"{NAME}/ldseg_inference.json"] == b'{"samples": 3}'


def test_nothing_of_the_training_or_of_this_machine_is_in_it(model, exported):
    content = b"".join(exported().values())
    for private in (b"optimizer", b"secret", b"/home/someone", b"hostname", str(model.parent.parent).encode()):
        assert private not in content
    assert b'"case_1.nii.gz"' in content, "which case has which score stays"


def test_tables_too_large_to_be_imported_are_left_out(model, exported, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("ldseg_auto.sharing.export.MAX_TABLE_BYTES", 2000)
    (model / "dataset_fingerprint.json").write_text(2001 * " ")
    assert f"{MODEL}/dataset_fingerprint.json" not in exported()
    assert "Left out" in (out := capsys.readouterr().out) and "fingerprint" in out
    (model / "dataset.json").write_text((model / "dataset.json").read_text() + 2000 * " ")
    assert export.main(["-d", "4", "-o", str(tmp_path / "model.zip")]) == 1
    assert "lacks" in capsys.readouterr().err and not (tmp_path / "model.zip").exists()


def test_configurations(second_model, exported):
    assert _manifest(exported())["configurations"] == {"3d_fullres": [0, 1], "3d_lowres": [0]}
    assert _manifest(exported("-c", "3d_lowres"))["configurations"] == {"3d_lowres": [0]}


def test_folds(model, exported):
    assert _manifest(exported("-f", "1"))["configurations"] == {"3d_fullres": [1]}


def test_checkpoint(model, exported, tools):
    tools["write_fold"](model / "fold_0", name="checkpoint_best.pth", value=7)
    files = exported("-chk", "checkpoint_best.pth")
    assert _manifest(files)["checkpoint"] == "checkpoint_best.pth"
    assert _manifest(files)["configurations"] == {"3d_fullres": [0]}
    weights = f"{MODEL}/fold_0/weights.safetensors"
    assert files[weights] != exported()[weights]


def test_trainer_and_plans(model, exported, tools):
    other = model.with_name("LDSegTrainerPaper__Others__3d_fullres")
    shutil.copytree(model, other)
    for fold in (0, 1):
        tools["write_fold"](other / f"fold_{fold}", trainer="LDSegTrainerPaper")
    manifest = _manifest(exported("-tr", "LDSegTrainerPaper", "-p", "Others"))
    assert (manifest["trainer"], manifest["plans"]) == ("LDSegTrainerPaper", "Others")


def test_licence(model, exported, tmp_path, capsys):
    assert exported()[f"{MODEL}/LICENSE"].decode() == NO_LICENCE
    assert "No licence was given" in capsys.readouterr().out
    (tmp_path / "terms.txt").write_text("Do what you like.")
    assert exported("--licence", str(tmp_path / "terms.txt"))[f"{MODEL}/LICENSE"] == b"Do what you like."
    assert "No licence" not in capsys.readouterr().out


def test_a_model_that_was_imported_can_be_exported_again(model_zip, exported, change_zip, tools):
    changed = change_zip(lambda files: files.update({f"{MODEL}/LICENSE": b"Be kind."}))
    assert import_model.main([str(changed)]) == 0
    first, second = tools["read_zip"](changed), exported()
    assert second[f"{MODEL}/LICENSE"] == b"Be kind."
    assert {name for name in first if first[name] != second.get(name)} == {f"{NAME}/manifest.json"}


def test_an_existing_zip_is_replaced_only_when_asked_for(model, tmp_path, capsys):
    out = tmp_path / "model.zip"
    out.write_bytes(b"precious")
    assert export.main(["-d", "4", "-o", str(out)]) == 1
    assert "model.zip exists" in (error := capsys.readouterr().err) and "--overwrite" in error
    assert out.read_bytes() == b"precious"
    assert export.main(["-d", "4", "-o", str(out), "--overwrite"]) == 0
    assert zipfile.is_zipfile(out)


def _fail(error: BaseException):
    def fail(*arguments, **options):
        raise error
    return fail


@pytest.mark.parametrize("error, code", [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_a_full_disk_or_an_interruption_keeps_the_old_zip(error, code, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "model.zip"
    out.write_bytes(b"precious")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", _fail(error))
    assert export.main(["-d", "4", "-o", str(out), "--overwrite"]) == code
    assert out.read_bytes() == b"precious" and not list(tmp_path.glob("*.part"))
    assert capsys.readouterr().err.count("\n") == 1


def _rewrite(file: str, **changes):
    def damage(model: Path):
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return damage


def _recheckpoint(**changes):
    def damage(model: Path):
        path = model / "fold_1" / "checkpoint_final.pth"
        content = torch.load(path) | changes
        torch.save({key: value for key, value in content.items() if value is not None}, path)
    return damage


MISTAKES = {
    "unknown ID": (None, ["-d", "77"], "no data set 77"),
    "configuration": (None, ["-c", "2d"], "no checkpoint_final.pth of LDSegTrainer__LDSegPlans__2d"),
    "trainer": (None, ["-tr", "Other"], "Other__LDSegPlans__*"),
    "fold": (None, ["-f", "0", "4"], "Fold 4 of"),
    "checkpoint": (None, ["-chk", "checkpoint_best.pth"], "no checkpoint_best.pth"),
    "output": (None, ["-o", "{folder}"], "is a folder"),
    "licence": (None, ["--licence", "none.txt"], "no file none.txt"),
    "damaged": (lambda model: (model / "fold_1" / "checkpoint_final.pth").write_bytes(b"x"), [], "is damaged"),
    "other checkpoint": (_recheckpoint(network_weights=None), [], "lacks network_weights"),
    "renamed": (_recheckpoint(trainer_name="LDSegTrainerPaper"), [],
                "trained as LDSegTrainerPaper__LDSegPlans__3d_fullres"),
    "no plans": (lambda model: (model / "plans.json").unlink(), [], "plans.json is missing"),
    "no description": (lambda model: (model / "dataset.json").unlink(), [], "dataset.json is missing"),
    "code of the user's own": (_rewrite("plans.json", image_reader_writer="MyReader"), [], "image_reader_writer"),
    "plans of another model": (_rewrite("plans.json", configurations={}), [], "no configuration 3d_fullres"),
    "trainer's name": (lambda model: shutil.copytree(model, model.with_name("My:Trainer__LDSegPlans__3d_fullres")),
                       ["-tr", "My:Trainer"], "'My:Trainer' is not the name of a trainer that can be shared"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, model, tmp_path, capsys):
    damage, flags, part = MISTAKES[name]
    if damage:
        damage(model)
    (tmp_path / "folder").mkdir()
    flags = [flag.format(folder=tmp_path / "folder") for flag in flags]
    assert export.main(["-d", "4", "-o", str(tmp_path / "model.zip"), *flags]) == 1
    error = capsys.readouterr().err
    assert part in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "model.zip").exists() and not list(tmp_path.glob("*.part"))


def test_variable_not_set(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert export.main(["-d", "4", "-o", "model.zip"]) == 1
    assert "nnUNet_results is not set" in capsys.readouterr().err
