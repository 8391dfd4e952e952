"""The choice of sampler and configuration: its rules, and once on the tiny models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.cli import find_best_configuration, predict
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference import find_best, search
from ldseg_auto.inference.choice import Best, Choice, Finish, Sampler, load_best, load_choice, save_best, save_choice
from ldseg_auto.inference.finish import coverage_on_others
from ldseg_auto.inference.search import Measured, choose, select_cases


def measured(seconds, dice, samples=1):
    zeros = np.zeros(len(dice))
    return Measured(Sampler(samples, 1, 0.0, False), zeros + seconds, np.array(dice), zeros, zeros)


def test_the_quickest_of_those_as_good_as_the_best():
    rng = np.random.default_rng(0)
    cases = rng.uniform(0.5, 0.9, 40)  # cases differ far more than samplers
    best = measured(9, cases + 0.01, 20)
    nearly = measured(2, cases + 0.01 + rng.normal(-0.0001, 0.005, 40), 5)
    worse = measured(1, cases, 1)
    assert choose([worse, nearly, best]) is nearly
    assert choose([worse, best]) is best, "a relevant difference that all cases show counts, however cases differ"
    assert choose([measured(3, [np.nan, 0.5]), measured(1, [np.nan, 0.5])]).seconds[0] == 1
    assert choose([measured(3, [0.9]), measured(1, [0.5])]).seconds[0] == 3
    assert choose([measured(3, [np.nan]), measured(1, [np.nan])]).seconds[0] == 1


def test_what_no_user_would_notice_costs_no_time():
    """The means and seconds of a real search on eight cases, in all of which ten samples were a little better."""
    cases = np.linspace(0.70, 0.90, 8)
    plain, mirrored, ten = (measured(seconds, cases - cases.mean() + dice, number) for seconds, dice, number in (
        (0.4, 0.7983, 1), (2.3, 0.8057, 2), (10.6, 0.8062, 10)))
    assert choose([plain, mirrored, ten]) is mirrored
    assert choose([plain, ten]) is ten, "0.0079 in every case is worth it"
    assert choose([measured(1, [0.8, 0.8]), measured(9, [0.8021, 0.8021])]).seconds[0] == 9
    assert choose([measured(1, [0.8, 0.8]), measured(9, [0.8019, 0.8019])]).seconds[0] == 1
    noisy = [measured(1, [0.70, 0.90, 0.80]), measured(9, [0.80, 0.85, 0.80])]  # 0.017 better, standard error 0.044
    assert choose(noisy).seconds[0] == 1


def test_the_docs_state_the_rule():
    text = (Path(__file__).parents[2] / "docs" / "uncertainty.md").read_text()
    assert search.RULE in " ".join(text.split())
    assert "0.002" in search.RULE and "10%" in search.RULE


def test_times_that_hardly_differ_decide_nothing():
    a, b = measured(1.0, [0.8, 0.8]), measured(1.05, [0.801, 0.801])
    assert choose([a, b]) is b and choose([b, a]) is b
    assert choose([a, measured(1.2, [0.801, 0.801])]) is a
    warming_up = measured([30, 1, 1], [0.8] * 3)
    assert choose([measured(2, [0.8] * 3), warming_up]) is warming_up and warming_up.row()["seconds"] == 1


def test_something_made_up_in_an_empty_case_counts_against_a_sampler():
    made_up, right = measured(1, [0.9, 0.9, 0.0, 0.0]), measured(2, [0.9, 0.9, np.nan, np.nan])
    assert choose([made_up, right]) is right
    assert choose([measured(1, [0.9, 0.9, np.nan]), measured(2, [0.9, 0.9, np.nan])]).seconds[0] == 1


def test_cases_of_the_search_are_spread_over_folds_and_sizes():
    folds = {0: [f"a{n}" for n in range(10)], 1: [f"b{n}" for n in range(3)]}
    size = {case: int(case[1:]) for cases in folds.values() for case in cases}
    assert select_cases(folds, size, 6) == {0: ["a0", "a4", "a9"], 1: ["b0", "b1", "b2"]}
    assert select_cases(folds, size, 40) == folds
    assert select_cases(folds, size, 1) == {0: ["a0"], 1: []}


CHOICE = Choice(Sampler(5, 2, 0.0, False), Finish(1.25, (1, (1, 2)), (2.0, 3.5)))


def test_a_choice_is_read_as_it_was_written(tmp_path):
    assert load_choice(tmp_path) is None and load_best(tmp_path, "T", "P") is None
    save_choice(tmp_path, CHOICE, {"search": [{"dice": float("nan")}]})
    assert load_choice(tmp_path) == CHOICE
    assert "NaN" not in (tmp_path / "ldseg_inference.json").read_text()
    results = tmp_path / "results"
    results.mkdir()
    save_best(results, "T", "P", Best(("2d", "3d_fullres"), CHOICE.finish), {})
    save_best(results, "Other", "P", Best(("2d",), Finish()), {})
    assert load_best(results, "T", "P") == Best(("2d", "3d_fullres"), CHOICE.finish)
    assert load_best(results, "Other", "P") == Best(("2d",), Finish())
    assert load_best(results, "T", "Q") is None


@pytest.mark.parametrize("edit, message", [
    (lambda c: c.update(ldseg_inference_format=99), "format 99"),
    (lambda c: c.pop("ldseg_inference_format"), "format None"),
    (lambda c: c["sampler"].update(samples=0), "damaged"),
    (lambda c: c["sampler"].update(steps="2"), "damaged"),
    (lambda c: c["sampler"].update(eta=1.5), "damaged"),
    (lambda c: c["sampler"].update(mirroring=1), "damaged"),
    (lambda c: c["sampler"].update(more=1), "damaged"),
    (lambda c: c.pop("sampler"), "damaged"),
    (lambda c: c["finish"].update(temperature=0), "damaged"),
    (lambda c: c["finish"].update(largest_component=["liver"]), "damaged"),
    (lambda c: c["finish"].update(interval_scales=[-1.0]), "damaged"),
    (lambda c: c["finish"].update(temperature=float("inf")), "damaged"),
    (lambda c: c["finish"].update(largest_component=[[]]), "damaged"),
    (lambda c: c["finish"].update(expected_dice_lines=[[0.1, -1.0]]), "damaged"),
    (lambda c: c["finish"].update(expected_dice_lines=[0.1]), "damaged"),
    (lambda c: c.update(finish=[]), "damaged"),
])
def test_a_choice_that_cannot_be_used(tmp_path, edit, message):
    save_choice(tmp_path, CHOICE, {})
    content = json.loads((tmp_path / "ldseg_inference.json").read_text())
    edit(content)
    (tmp_path / "ldseg_inference.json").write_text(json.dumps(content))
    with pytest.raises(LDSegError, match=message):
        load_choice(tmp_path)


def test_a_choice_of_the_first_format_is_read(tmp_path):
    save_choice(tmp_path, CHOICE, {})
    content = json.loads((tmp_path / "ldseg_inference.json").read_text()) | {"ldseg_inference_format": 1}
    del content["finish"]["expected_dice_lines"]
    (tmp_path / "ldseg_inference.json").write_text(json.dumps(content))
    assert load_choice(tmp_path) == Choice(CHOICE.sampler, replace(CHOICE.finish, expected_dice_lines=()))


def test_a_choice_of_a_model_with_other_classes(tmp_path):
    """The data set's labels were changed since: its intervals would be those of other classes."""
    model = tmp_path / "T__P__2d"
    model.mkdir()
    labels = {"background": 0, "a": 1, "b": 2, "ignore": 3}
    (model / "dataset.json").write_text(json.dumps({"labels": labels}))
    save_choice(model, CHOICE, {})
    save_best(tmp_path, "T", "P", Best(("2d",), CHOICE.finish), {})
    assert load_choice(model) == CHOICE and load_best(tmp_path, "T", "P") == Best(("2d",), CHOICE.finish)
    (model / "dataset.json").write_text(json.dumps({"labels": {**labels, "c": 4}}))
    for load in (lambda: load_choice(model), lambda: load_best(tmp_path, "T", "P")):
        with pytest.raises(LDSegError, match="2 intervals of 3 classes"):
            load()


def test_coverage_is_counted_on_cases_that_were_not_fitted():
    rng = np.random.default_rng(0)
    units = rng.uniform(1, 5, 400)
    assert coverage_on_others(rng.normal(0, 1, 400) * units, units) == pytest.approx(0.9, abs=0.03)
    assert coverage_on_others(np.ones(10), np.ones(10)) is None


@pytest.fixture
def world(own_small_world, monkeypatch):
    """The small world, and few samplers to search."""
    monkeypatch.setattr(search, "STEPS", (1, 2))
    monkeypatch.setattr(search, "SAMPLES", (1, 3))
    monkeypatch.setattr(search, "_FIRST_SAMPLES", (1,))
    return own_small_world


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_one_configuration(world, tmp_path, capsys):
    assert find_best_configuration.main(["7", "-c", "3d_fullres", "-device", "cpu", "--disable_progress_bar"]) == 0
    content = json.loads((world["model"] / "ldseg_inference.json").read_text())
    rows = content["evidence"]["search"]
    assert sum(row["chosen"] for row in rows) == 1 and {row["cases"] for row in rows} == {2}
    assert {(row["steps"], row["eta"]) for row in rows} == {(1, 0.0), (2, 0.0), (2, 1.0)}
    assert {(row["samples"], row["mirroring"]) for row in rows} == {(1, False), (1, True), (3, False), (3, True)}
    confirmed = content["evidence"]["confirmed"]
    assert confirmed["cases"] == 2 and set(confirmed["dice_per_class"]) == {"shell", "core"}
    chosen = world["nnUNet_results"] / "Dataset007_Small" / "crossval_chosen_LDSegTrainer__LDSegPlans"
    assert len(list(chosen.glob("*.nii.gz"))) == 2 and not list(chosen.glob("*.npz"))
    assert "3d_fullres" in (world["nnUNet_results"] / "Dataset007_Small" / "ldseg_inference.html").read_text()

    def run(name, *flags):
        assert predict.main(["-i", str(world["images"]), "-o", str(tmp_path / name), "-d", "7", "-device", "cpu",
                             "-npp", "0", "-nps", "0", "--disable_progress_bar", "--save_probabilities", *flags]) == 0
        return np.load(tmp_path / name / "case_10.npz")["probabilities"], capsys.readouterr().out
    sampler = load_choice(world["model"]).sampler
    probabilities, printed = run("default")
    assert f"Sampler chosen by ldseg_find_best_configuration for {world['model'].name}: {sampler}" in printed
    flags = ["-c", "3d_fullres", "--samples", str(sampler.samples), "--steps", str(sampler.steps), "--eta",
             str(sampler.eta), *(["--disable_tta"] * (not sampler.mirroring)), "--plans_defaults"]
    named, printed = run("named", *flags)
    assert "chosen" not in printed
    temperature = load_choice(world["model"]).finish.temperature
    expected = named ** (1 / temperature)
    assert probabilities == pytest.approx(expected / expected.sum(0), abs=2e-3)
    other, _ = run("other", "--samples", str(sampler.samples + 1))
    assert not np.allclose(other, probabilities, atol=1e-4), "what is asked for comes first"


def test_a_pair_may_win(world, tmp_path, monkeypatch, capsys):
    """Whatever the weights: the pair is made the best, and is what ldseg_predict then uses."""
    compare = find_best._compare

    def pair_is_best(models, *args):
        finalists = compare(models, *args)
        assert [[m.name for m in f.models] for f in finalists] == [["2d"], ["3d_fullres"], ["2d", "3d_fullres"]]
        assert len({tuple(f.dice) for f in finalists}) == 3
        return [find_best._Finalist(f.models, f.seconds, f.dice + (len(f.models) == 2)) for f in finalists]
    monkeypatch.setattr(find_best, "_compare", pair_is_best)
    assert find_best_configuration.main(["7", "-device", "cpu", "--disable_progress_bar"]) == 0
    best = load_best(world["nnUNet_results"] / "Dataset007_Small", "LDSegTrainer", "LDSegPlans")
    assert best.configurations == ("2d", "3d_fullres")
    assert not (world["nnUNet_results"] / "Dataset007_Small" / "search").exists()
    capsys.readouterr()
    assert predict.main(["-i", str(world["images"]), "-o", str(tmp_path / "out"), "-d", "7", "-device", "cpu", "-npp",
                         "0", "-nps", "0", "--disable_progress_bar", "--uncertainty"]) == 0
    assert "Configurations chosen by ldseg_find_best_configuration: 2d and 3d_fullres" in capsys.readouterr().out
    assert read(tmp_path / "out" / "case_10.nii.gz").shape == (14, 40, 16)
    models = read(tmp_path / "out" / "uncertainty" / "case_10_mutual_information_models.nii.gz")
    assert models.max() > 0.01


def test_a_choice_that_is_not_there_is_not_used(world, tmp_path, capsys):
    results = world["nnUNet_results"] / "Dataset007_Small"
    save_best(results, "LDSegTrainer", "LDSegPlans", Best(("3d_lowres", "3d_fullres"), Finish()), {})
    save_choice(world["model"], Choice(Sampler(1, 1, 0.0, False), Finish()), {})
    assert predict.main(["-i", str(world["images"]), "-o", str(tmp_path / "out"), "-d", "7", "-device", "cpu", "-npp",
                         "0", "-nps", "0", "--disable_progress_bar"]) == 0
    printed = capsys.readouterr().out
    assert "chose 3d_lowres, which is not trained here" in printed and "1 x 1 (samples x steps)" in printed


@pytest.mark.parametrize("arguments, message", [
    (["7", "-f", "1"], "no trained fold 1"),
    (["7", "-f", "all"], "no trained fold all"),
    (["7", "-c", "3d_lowres"], "no checkpoint_final.pth"),
    (["7", "-tr", "NoTrainer"], "NoTrainer__LDSegPlans"),
])
def test_mistakes(in_small_world, capsys, arguments, message):
    assert find_best_configuration.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_each_case_is_searched_once(own_small_world, capsys):
    """Folds that share validation cases, and a case that is gone, are found before the search begins."""
    shutil.copytree(own_small_world["model"] / "fold_0", own_small_world["model"] / "fold_1", dirs_exist_ok=True)
    splits_file = own_small_world["preprocessed"] / "splits_final.json"
    splits = json.loads(splits_file.read_text())
    splits_file.write_text(json.dumps([splits[0], splits[0], *splits[2:]]))
    assert find_best_configuration.main(["7", "-c", "3d_fullres", "-device", "cpu"]) == 1
    assert "would be validated by several folds" in capsys.readouterr().err
    splits[0]["val"].append("gone")
    splits_file.write_text(json.dumps(splits))
    assert find_best_configuration.main(["7", "-c", "3d_fullres", "-f", "0", "-device", "cpu"]) == 1
    assert "gt_segmentations: gone." in capsys.readouterr().err
    splits[0]["val"].remove("gone")
    splits_file.write_text(json.dumps(splits))
    (own_small_world["preprocessed"] / "gt_segmentations" / f"{splits[0]['val'][0]}.nii.gz").unlink()
    assert find_best_configuration.main(["7", "-c", "3d_fullres", "-f", "0", "-device", "cpu"]) == 1
    assert f"gt_segmentations: {splits[0]['val'][0]}." in capsys.readouterr().err
    splits_file.write_text("{}")
    assert find_best_configuration.main(["7", "-c", "3d_fullres", "-f", "0", "-device", "cpu"]) == 1
    assert "is not a split" in capsys.readouterr().err
    assert not (own_small_world["model"] / "ldseg_inference.json").exists()


def test_what_was_fitted_is_valid_json(tmp_path, monkeypatch):
    """A class that no case holds has no Dice."""
    def predict(model, sampler, cases, out, *_):
        out.mkdir()
        (out / "case.npz").touch()
        return {"case": 1.5}

    monkeypatch.setattr(find_best, "_predict", predict)
    monkeypatch.setattr(find_best.finish, "fit", lambda *_: (Finish(), {"dice_per_class": {"never": float("nan")}}))
    model = find_best._Model("2d", tmp_path, {0: ["case"]}, tmp_path)
    find_best._confirm([model], {"2d": CHOICE.sampler}, tmp_path / "out", None, False)
    assert json.loads((tmp_path / "out" / "fitted.json").read_text()) == {"dice_per_class": {"never": None},
                                                                         "seconds": 1.5}
