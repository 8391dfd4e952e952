"""The choice of sampler and configurations that comes with a model, and the one that is there already."""

import json
import tempfile
from pathlib import Path

import pytest

from ldseg_auto.cli import import_model
from ldseg_auto.inference.choice import Best, Finish, load_best, load_choice, save_best

NAME = "Dataset004_Small"
MODEL = f"{NAME}/LDSegTrainer__LDSegPlans__3d_fullres"
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
