"""Folders scored through the command: files, figures, and every mistake."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ldseg_auto.cli import evaluate as command
from ldseg_auto.evaluation import evaluate
from ldseg_auto.evaluation.evaluate import compare_folders, evaluate_folder
from ldseg_auto.evaluation.scores import METRICS

DIAGONAL = np.linalg.norm([16, 12, 12])


def _run(folders, *flags: object) -> int:
    return command.main(["-i", str(folders["predictions"]), "-r", str(folders["references"]), *map(str, flags)])


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_and_table(folders, capsys):
    assert _run(folders) == 0
    out = folders["predictions"] / "evaluation"
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.csv", "evaluation.json"]
    written = json.loads((out / "evaluation.json").read_text())
    lesion = written["classes"]["lesion"]
    assert [lesion[k] for k in ("n", "n_missed", "n_spurious", "n_absent")] == [2, 1, 0, 1]
    assert lesion["dice"]["mean"] == 0.5 and lesion["hd95_mm"]["mean"] == pytest.approx(DIAGONAL / 2)
    assert written["cases"]["b"]["classes"]["lesion"] == {
        "presence": "missed", "dice": 0.0, "nsd": 0.0, "hd95_mm": pytest.approx(DIAGONAL),
        "assd_mm": pytest.approx(DIAGONAL), "prediction_ml": 0.0, "reference_ml": pytest.approx(0.032),
        "difference_ml": pytest.approx(-0.032)}
    assert written["cases"]["c"]["classes"]["lesion"]["presence"] == "absent"
    organ = written["cases"]["c"]["classes"]["organ"]  # 6 x 6 against 7 x 7
    assert organ["dice"] == pytest.approx(2 * 36 / (36 + 49)) and organ["hd95_mm"] == 1 and organ["nsd"] == 1
    assert written["mean"]["dice"]["mean"] == pytest.approx((written["classes"]["organ"]["dice"]["mean"] + 0.5) / 2)
    assert "the image's diagonal" in written["policy"]["missed (only the reference has it)"]
    assert written["tolerance_mm"] == {"organ": 2.0, "lesion": 2.0} and written["size_unit"] == "ml"
    assert {"monai", "scipy", "nnunetv2", "ldseg_auto"} <= set(written["versions"])
    assert written["bootstrap"]["resamples"] == 2000
    rows = _rows(out / "evaluation.csv")
    assert len(rows) == 6 and list(rows[0]) == ["case", "class", "presence", *METRICS, "prediction_ml",
                                                "reference_ml", "difference_ml"]
    assert {(r["case"], r["class"]): r["presence"] for r in rows}["b", "lesion"] == "missed"
    printed = capsys.readouterr().out
    assert "0.500 (0.000, 1.000)" in printed and "Tolerance of the NSD: 2 mm (largest median" in printed


def test_the_function_returns_what_is_written(folders):
    returned = evaluate_folder(folders["predictions"], folders["references"], output_folder=folders["out"])
    assert json.loads((folders["out"] / "evaluation.json").read_text()) == json.loads(json.dumps(returned))
    assert not (folders["predictions"] / "evaluation").exists()
    shutil.rmtree(folders["out"])
    assert evaluate_folder(folders["predictions"], folders["references"], write=False) == returned
    assert not (folders["predictions"] / "evaluation").exists()


def test_tolerance(folders, capsys):
    assert _run(folders, "--tolerance", "0.1") == 0
    strict = json.loads((folders["predictions"] / "evaluation" / "evaluation.json").read_text())
    assert strict["cases"]["c"]["classes"]["organ"]["nsd"] < 1
    assert _run(folders, "--tolerance", "0.1", "organ=3") == 0
    mixed = json.loads((folders["predictions"] / "evaluation" / "evaluation.json").read_text())
    assert mixed["cases"]["c"]["classes"]["organ"]["nsd"] == 1
    assert mixed["tolerance_mm"] == {"organ": 3.0, "lesion": 0.1} and mixed["tolerance_from"] == "as given"
    assert "organ 3 mm, lesion 0.1 mm (as given)" in capsys.readouterr().out


def test_regions_and_the_ignore_label(folders, cubes, write_map, write_json):
    """Scores as nnU-Net counts them, where it gives a figure."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    write_json(folders["predictions"] / "dataset.json", {"labels": labels, "regions_class_order": [1, 2],
                                                         "file_ending": ".nii.gz"})
    reference = cubes(lesion=(3, 6))
    reference[:, 5:] = 3
    write_map(folders["references"] / "a.nii.gz", reference)
    evaluation = evaluate_folder(folders["predictions"], folders["references"], write=False)
    scored = evaluation["cases"]["a"]
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    theirs = compute_metrics(scored["reference_file"], scored["prediction_file"], SimpleITKIO(), [(1, 2), 2], 3)
    for name, region in (("whole", (1, 2)), ("core", 2)):
        counts = theirs["metrics"][region]
        assert scored["classes"][name]["dice"] == counts["Dice"]
        assert scored["classes"][name]["prediction_ml"] == pytest.approx(counts["n_pred"] * 0.002)
    assert scored["ignored_voxels"] == 8 * 7 * 12 and evaluation["ignore_label"] == 3
    assert 0 < scored["classes"]["core"]["dice"] < 1


def test_2d_images(tmp_path, cubes, write_json):
    from skimage.io import imsave

    for name, edges in (("references", (2, 8)), ("predictions", (2, 9))):
        (tmp_path / name).mkdir()
        for case in "ab":
            imsave(tmp_path / name / f"{case}.png", cubes(organ=edges)[3], check_contrast=False)
    write_json(tmp_path / "predictions" / "dataset.json", {"labels": {"background": 0, "organ": 1},
                                                           "file_ending": ".png"})
    evaluation = evaluate_folder(tmp_path / "predictions", tmp_path / "references", write=False)
    organ = evaluation["cases"]["a"]["classes"]["organ"]
    assert (organ["prediction_mm2"], organ["reference_mm2"], organ["hd95_mm"]) == (49.0, 36.0, 1.0)
    assert evaluation["tolerance_mm"] == {"organ": 1.0}


def test_comparison(folders, capsys):
    assert _run(folders, "--compare", folders["other"], "-o", folders["out"]) == 0
    assert sorted(path.name for path in folders["out"].iterdir()) == \
        ["comparison.csv", "comparison.json", "evaluation.csv", "evaluation.json"]
    written = json.loads((folders["out"] / "comparison.json").read_text())
    lesion = written["classes"]["lesion"]["dice"]
    assert (lesion["n"], lesion["n_equal"], lesion["p"]) == (3, 1, 1.0)
    assert lesion["first"] == lesion["second"] == pytest.approx(2 / 3), "one missed, the other made one up"
    assert written["classes"]["organ"]["dice"]["difference"] == pytest.approx(
        np.mean([a - b for a, b in (written["cases"][case]["organ"]["dice"] for case in "abc")]))
    assert (written["first"], written["second"]) == (str(folders["predictions"]), str(folders["other"]))
    rows = _rows(folders["out"] / "comparison.csv")
    assert [(r["class"], r["metric"]) for r in rows] == [(c, m) for c in ("organ", "lesion") for m in METRICS]
    assert {"n", "n_equal", "first", "second", "difference", "interval_low", "interval_high", "p", "p_holm"} < set(
        rows[0])
    printed = capsys.readouterr().out
    assert "p (Holm)" in printed and f"second: {folders['other']}" in printed


def test_comparison_of_other_cases(folders, capsys):
    (folders["other"] / "b.nii.gz").unlink()
    assert _run(folders, "--compare", folders["other"], "--chill") == 1
    assert "(1 cases): b" in capsys.readouterr().err
    (folders["predictions"] / "b.nii.gz").unlink()
    assert _run(folders, "--compare", folders["other"], "--chill") == 0


def test_comparison_without_writing(folders):
    evaluation, comparison = compare_folders(folders["predictions"], folders["other"], folders["references"],
                                             write=False)
    assert evaluation == evaluate_folder(folders["predictions"], folders["references"], write=False)
    assert set(comparison["cases"]) == {"a", "b", "c"}
    assert not (folders["predictions"] / "evaluation").exists()


def test_a_class_that_no_case_has(folders, write_map, cubes, capsys):
    for name in ("predictions", "other", "references"):
        for case in "abc":
            write_map(folders[name] / f"{case}.nii.gz", cubes())
    assert _run(folders, "--compare", folders["other"]) == 0
    out = folders["predictions"] / "evaluation"
    assert json.loads((out / "evaluation.json").read_text())["classes"]["lesion"]["dice"]["mean"] is None
    assert json.loads((out / "comparison.json").read_text())["classes"]["lesion"]["dice"] is None
    assert {row["class"] for row in _rows(out / "comparison.csv")} == {"organ"}
    assert any(line.split() == ["lesion", "0", "0", "0", "3", "-", "-", "-", "-"]
               for line in capsys.readouterr().out.splitlines())


def test_one_case_has_no_interval(folders, capsys):
    for case in "bc":
        (folders["predictions"] / f"{case}.nii.gz").unlink()
        (folders["other"] / f"{case}.nii.gz").unlink()
    assert _run(folders, "--chill", "--compare", folders["other"]) == 0
    row, *_ = _rows(folders["predictions"] / "evaluation" / "comparison.csv")
    assert (row["n"], row["p"], row["interval_low"]) == ("1", "1.0", "")
    assert any(line.split()[5:] == ["1.000", "1.000", "0.00", "0.00"] for line in capsys.readouterr().out.splitlines())


def test_nnunets_command_does_not_mind(folders, tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2

    assert _run(folders) == 0
    (folders["predictions"] / "plans.json").write_text(json.dumps({
        "image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}))
    compute_metrics_on_folder2(
        str(folders["references"]), str(folders["predictions"]), str(folders["predictions"] / "dataset.json"),
        str(folders["predictions"] / "plans.json"), str(tmp_path / "summary.json"), 1)
    assert len(json.loads((tmp_path / "summary.json").read_text())["metric_per_case"]) == 3


def test_cases_left_out(folders):
    (folders["predictions"] / "a.nii.gz").unlink()
    assert _run(folders, "--chill") == 0
    written = json.loads((folders["predictions"] / "evaluation" / "evaluation.json").read_text())
    assert written["left_out"] == {"without_prediction": ["a"], "without_reference": []}
    assert set(written["cases"]) == {"b", "c"}


def _drop(folders):
    (folders["predictions"] / "b.nii.gz").unlink()


def _drop_all(folders):
    for file in folders["references"].iterdir():
        file.unlink()


def _rename_all(folders):
    for file in folders["references"].iterdir():
        file.rename(file.with_name(f"other_{file.name}"))


def _forget(folders):
    (folders["predictions"] / "dataset.json").unlink()


def _damage_two(folders):
    (folders["predictions"] / "a.nii.gz").write_bytes(b"no image")
    (folders["references"] / "c.nii.gz").write_bytes(b"")


def _damage_other(folders):
    (folders["other"] / "a.nii.gz").write_bytes(b"no image")


def _relabel(folders):
    file = folders["predictions"] / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}))


def _break(folders):
    (folders["predictions"] / "dataset.json").write_text("{")


def _shorten(folders):
    (folders["predictions"] / "dataset.json").write_text("{}")


def _number(folders):
    (folders["predictions"] / "dataset.json").write_text("7")


def _empty_plans(folders):
    (folders["predictions"] / "plans.json").write_text("{}")


def _occupy(folders):
    folders["out"].write_text("")


MISTAKES = {
    "missing prediction": (_drop, [], "without prediction (1): b", "--chill"),
    "no files": (_drop_all, [], "references holds no .nii.gz files", "file_ending in dataset.json"),
    "other names": (_rename_all, [], "No file of", "(a, b, c, ...)", "other_a", "CASE.nii.gz"),
    "no dataset.json": (_forget, [], "no dataset.json in", "-d", "-djfile"),
    "unreadable": (_damage_two, [], "2 of 3 cases cannot be scored: a: ", "c: ", "cannot be read"),
    "unreadable other": (_damage_other, ["--compare", "{other}"], "1 of 6 cases", "other/a.nii.gz is cut off"),
    "unknown label": (_relabel, [], "2 of 3 cases cannot be scored: a: ", "a.nii.gz holds 2; its labels are [0, 1]"),
    "broken": (_break, [], "not valid JSON"), "incomplete": (_shorten, [], "lacks labels, file_ending"),
    "number": (_number, [], "lacks labels, file_ending"),
    "plans": (_empty_plans, [], "plans.json lacks image_reader_writer"),
    "class": (None, ["--tolerance", "liver=2"], "no class liver", "organ, lesion"),
    "djfile": (None, ["-djfile", "no.json"], "no file no.json", "-djfile"),
    "pfile": (None, ["-pfile", "no.json"], "no file no.json", "-pfile"),
    "output": (_occupy, ["-o", "{out}"], "cannot be made", "-o"),
    "itself": (None, ["--compare", "{predictions}"], "compared with itself", "--compare"),
    "nothing to compare": (None, ["--compare", "{out}"], "does not exist", "-i"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, folders, capsys):
    damage, flags, *parts = MISTAKES[name]
    if damage is not None:
        damage(folders)
    assert _run(folders, *(flag.format(**folders) for flag in flags)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    for part in parts:
        assert part in error
    out = folders["predictions"] / "evaluation"
    assert not out.exists() or not list(out.iterdir())


def test_2d_and_3d_are_not_mixed(folders, cubes, write_map):
    for name in ("predictions", "references"):
        write_map(folders[name] / "b.nii.gz", cubes()[3])
    with pytest.raises(evaluate.LDSegError, match="2D, others 3D"):
        evaluate_folder(folders["predictions"], folders["references"], write=False)


def test_a_full_disk_leaves_the_old_files(folders, monkeypatch, capsys):
    assert _run(folders) == 0
    before = (folders["predictions"] / "evaluation" / "evaluation.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert _run(folders, "--tolerance", "9") == 1
    assert "evaluation.json cannot be written: No space left" in capsys.readouterr().err
    out = folders["predictions"] / "evaluation"
    assert (out / "evaluation.json").read_text() == before
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.csv", "evaluation.json"]


def test_a_trained_model(in_small_world, tmp_path):
    """The validation of a real training: the Dice of nnU-Net's own summary, and the other configuration beside it."""
    first, second = (in_small_world[name] / "fold_0" / "validation" for name in ("model", "model_2d"))
    references = in_small_world["preprocessed"] / "gt_segmentations"
    evaluation, comparison = compare_folders(first, second, references, chill=True, output_folder=tmp_path)
    summary = json.loads((first / "summary.json").read_text())
    assert len(evaluation["cases"]) == len(summary["metric_per_case"])
    for theirs in summary["metric_per_case"]:
        ours = evaluation["cases"][Path(theirs["prediction_file"]).name[:-len(".nii.gz")]]["classes"]
        for name, label in (("shell", "1"), ("core", "2")):
            dice = theirs["metrics"][label]["Dice"]
            assert ours[name]["dice"] == pytest.approx(1.0 if np.isnan(dice) else dice)
    assert evaluation["tolerance_mm"] == {"shell": 1.0, "core": 1.0} and "plans.json" in evaluation["tolerance_from"]
    assert set(comparison["cases"]) == set(evaluation["cases"])
    assert set(evaluation["left_out"]["without_prediction"]).isdisjoint(evaluation["cases"])
    by_name = evaluate_folder(first, references, dataset="7", chill=True, write=False)
    assert by_name["classes"] == evaluation["classes"]
