"""Whole reports of a trained model: what they hold, what is left out and said, and that nothing old is lost."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ldseg_auto.cli import report
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.choice import Choice, Finish, Sampler, save_choice
from ldseg_auto.inference.uncertainty import write_map
from ldseg_auto.report import page
from ldseg_auto.report.run import write_report
from ldseg_auto.trainers import checkpoint


def write(tmp_path: Path, page_of, **options):
    return page_of(write_report("7", output=str(tmp_path / "page.html"), device="cpu", **options))


def data_of(made) -> dict:
    return json.loads(made.by_id["data"])


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_section_has_its_content(reported, page_of):
    made = page_of(reported)
    for key, name in page.SECTIONS.items():
        assert ("section", {"id": key}) in made.tags and ("a", {"href": f"#{key}"}) in made.tags
        assert name in made.words
    for part in ("over 2 validation cases and 2 classes", "Signs of latent diffusion, fold 0", "voxels of 2 cases",
                 "5 samples of 2 steps", "Latent: stride 2x4x4, 16 channels", "NiiVue",
                 "Configuration 3d_fullres", "thickness in mm", "use of the latent (at least 25%)"):
        assert part in made.text, part
    assert "Configuration 2d" not in made.text and "Left out" not in made.text
    plots = [attributes for tag, attributes in made.tags if attributes.get("role") == "img"]
    assert len(plots) == sum(tag == "svg" for tag, _ in made.tags) == 11
    assert all(attributes["aria-label"] for attributes in plots)


def test_the_data_are_those_of_the_summary(reported, page_of, small_world):
    data = data_of(page_of(reported))
    measured = json.loads((small_world["model"] / "fold_0/validation/summary.json").read_text())["metric_per_case"]
    assert [case["case"] for case in data["cases"]] == ["case_00", "case_07"]
    for case, expected in zip(data["cases"], measured, strict=True):
        assert case["dice"] == pytest.approx([expected["metrics"][key]["Dice"] for key in "12"], abs=1e-4)
        assert case["volumes"] == [[expected["metrics"][key]["n_ref"] / 1000, expected["metrics"][key]["n_pred"] / 1000]
                                   for key in "12"]
        assert case["slices"] and case["embedded"] == ["image", "truth", "prediction", "entropy"]
    assert data["unit"] == "ml" and sorted(data["worst"] + data["best"]) == [0, 1]
    assert [entry["name"] for entry in data["legend"]] == ["shell", "core"] and data["classes"] == ["shell", "core"]


def test_nothing_is_loaded_and_only_our_scripts_run(reported, page_of):
    made = page_of(reported)
    for tag, attributes in made.tags:
        for key in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert not re.findall(r"url\((?!#|data:)", made.source)
    licences = made.source.index("<pre>"), made.source.index("</pre>")
    assert "http" not in made.source[:licences[0]].replace("http-equiv", "") + made.source[licences[1]:]
    policy = next(attributes["content"] for _, attributes in made.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    script_src = re.search(r"script-src ([^;]+)", policy).group(1)
    scripts = re.findall(r"<script>(.*?)</script>", made.source, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2 and script_src.split()[:2] == [f"'sha256-{each}'" for each in hashes]
    assert "unsafe-inline" not in script_src


def test_the_viewer_is_the_one_that_its_note_names(reported, page_of):
    import gzip

    unpacked = hashlib.sha256(gzip.decompress(base64.b64decode(page_of(reported).by_id["viewer-code"])))
    folder = Path(page.__file__).parent
    assert unpacked.hexdigest() in (folder / "niivue.md").read_text()
    policy = re.search(r"script-src ([^;]+)", reported.read_text()).group(1)
    assert base64.b64encode(unpacked.digest()).decode() in policy
    assert "Copyright (c) 2021, Niivue" in page_of(reported).text


def test_the_default_file_and_its_bytes(reported, own_model, capsys):
    assert report.main(["7", "--cases", "1", "-device", "cpu"]) == 0
    assert (own_model / "report.html").read_bytes() == reported.read_bytes()
    assert f"Report: {own_model / 'report.html'}" in capsys.readouterr().out
    assert not list(own_model.glob("*.part"))


def test_an_old_report_survives_a_failure(in_small_world, quick, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report("7", configuration="2d", output=str(tmp_path / "page.html"), device="cpu")
    assert (tmp_path / "page.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_slices_one_by_one(in_small_world, quick, tmp_path, page_of):
    made = write(tmp_path / "new folder", page_of, configuration="2d")
    data = data_of(made)
    assert "configuration 2d" in made.text and all(case["slices"][0]["of"] == 14 for case in data["cases"])
    assert all(case["embedded"] for case in data["cases"]), "a 2D model of volumes has something to scroll"


@pytest.mark.parametrize("preprocessed", [True, False])
def test_without_raw_data(preprocessed, in_small_world, quick, tmp_path, page_of, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    if not preprocessed:
        monkeypatch.delenv("nnUNet_preprocessed")
    made = write(tmp_path, page_of)
    assert "nnUNet_raw is not set: pictures, the viewer and the reverse diffusion" in made.text
    assert "There is no image to sample" in made.text and "There are no images to show" in made.text
    assert ("voxels of 2 cases" in made.text) == preprocessed, "the truth is kept among the preprocessed data"
    assert ("have no truth in nnUNet_raw" in made.text) != preprocessed
    assert ("label_fingerprint.json" in made.text) != preprocessed
    assert "viewer-code" not in made.by_id and not any(case["slices"] for case in data_of(made)["cases"])


def test_raw_data_of_others(in_small_world, quick, tmp_path, page_of, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert "nnUNet_raw holds no images of Dataset007_Small" in write(tmp_path, page_of).text


def test_several_folds_one_without_probabilities_one_unfinished(own_model, quick, tmp_path, page_of):
    shutil.copytree(own_model / "fold_0", own_model / "fold_1")
    for file in (own_model / "fold_1" / "validation").glob("*.npz"):
        file.unlink()
    (own_model / "fold_2").mkdir()
    (own_model / "fold_1" / "latent_signs.json").unlink()
    made = write(tmp_path, page_of)
    assert "Fold 2 has no checkpoint_final.pth (still in training?)" in made.text
    assert "Fold 1 was validated without probabilities" in made.text and "7 1 -c 3d_fullres" in made.text
    assert "1 in fold 0, 1 in fold 1" in made.text and "Signs of latent diffusion, fold 1" in made.text
    cases = data_of(made)["cases"]
    assert [case["fold"] for case in cases] == ["0", "0", "1", "1"]
    assert [case["slices"][0]["entropy"] is None for case in cases] == [False, False, True, True]
    chosen = write(tmp_path, page_of, folds=["0"])
    assert "still in training" not in chosen.text and len(data_of(chosen)["cases"]) == 2


def test_fold_all_says_little(own_model, quick, tmp_path, page_of):
    shutil.copytree(own_model / "fold_0", own_model / "fold_all")
    assert "Ask for it with -f all" in write(tmp_path, page_of).text
    assert "validated on cases that it was trained on" in write(tmp_path, page_of, folds=["all"]).text


def test_without_validation_and_another_checkpoint(own_model, quick, tmp_path, page_of):
    fold = own_model / "fold_0"
    shutil.copy(fold / "checkpoint_final.pth", fold / "checkpoint_best.pth")
    made = write(tmp_path, page_of, checkpoint_name="checkpoint_best.pth")
    assert "Fold 0 has no validation_best/summary.json" in made.text and "--val --val_best --npz" in made.text
    assert "No case was validated." in made.text and "Training loss (solid)" in made.text
    (fold / "validation").rename(fold / "validation_best")
    assert len(data_of(write(tmp_path, page_of, checkpoint_name="checkpoint_best.pth"))["cases"]) == 2


def test_the_choice_of_the_sampler_is_told(own_model, quick, tmp_path, page_of):
    assert "ldseg_find_best_configuration has not been run" in write(tmp_path, page_of).text
    row = {"samples": 5, "steps": 2, "eta": 0.0, "mirroring": True, "cases": 2, "seconds": 1.5, "dice": 0.8765,
           "nsd": None, "calibration_error": 0.1, "chosen": True}
    save_choice(own_model, Choice(Sampler(5, 2, 0.0, True), Finish(1.5)), {"search": [row]})
    text = write(tmp_path, page_of).text
    assert "5 x 2 (samples x steps), eta 0, mirroring; temperature 1.50" in text and "0.8765" in text
    for evidence in ({}, {"search": []}, {"search": "all"}, {"search": [row, {"dice": 1}]}):  # from strangers
        save_choice(own_model, Choice(Sampler(5, 2, 0.0, True), Finish(1.5)), evidence)
        text = write(tmp_path, page_of).text
        assert "mirroring; temperature 1.50" in text and "0.8765" not in text


def test_more_cases_are_shown(own_model, quick, tmp_path, page_of):
    shutil.copytree(own_model / "fold_0", own_model / "fold_1")
    for number in (1, 2):
        data = data_of(write(tmp_path, page_of, cases=number))
        assert len(data["worst"]) == len(data["best"]) == number
        assert sum(bool(case["embedded"]) for case in data["cases"]) == 2 * number


def test_large_volumes_are_thinned_and_that_is_said(in_small_world, quick, tmp_path, page_of, monkeypatch):
    assert "are too many" not in write(tmp_path, page_of).text
    monkeypatch.setattr("ldseg_auto.report.embedded.MAX_VOXELS", 2000)
    assert "case_00 every 1x2x2 voxels (x, y, z)" in write(tmp_path, page_of).text


def test_damaged_files(own_model, quick, tmp_path, page_of):
    (own_model / "fold_0" / "validation" / "case_00.npz").write_bytes(b"PK")
    made = write(tmp_path, page_of)
    assert "Case case_00 of fold 0 cannot be read" in made.text and data_of(made)["cases"][1]["slices"]
    assert "film of case_07" in made.text, "it is of a case that can be read"
    summary = own_model / "fold_0" / "validation" / "summary.json"
    kept = summary.read_text()
    for content in ("{}", "[]", kept.replace('"Dice"', '"Dise"')):
        summary.write_text(content)
        with pytest.raises(LDSegError, match=r"summary.json is damaged or of other classes.*--val --npz"):
            write(tmp_path, page_of)
    summary.write_text(kept)
    (own_model / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK")
    with pytest.raises(LDSegError, match="checkpoint_final.pth is damaged"):
        write(tmp_path, page_of)


def test_names_are_text_not_markup(own_model, quick, tmp_path, page_of, monkeypatch):
    bad = "</script><img src=x onerror=alert(1)>$<!--"

    def rename(description):
        description["labels"] = {"background": 0, bad: 1, "core": 2}

    edit(own_model / "dataset.json", rename)
    edit(own_model / "dataset.json", lambda description: description["channel_names"].update({"1": "T2"}))
    validation = own_model / "fold_0" / "validation"
    evil = "<img src=x onerror=alert(2)><script>"
    for file in validation.glob("case_00.*"):
        file.rename(validation / f"{evil}{file.name.removeprefix('case_00')}")
    edit(validation / "summary.json", lambda summary: summary["metric_per_case"][0].update(
        prediction_file=f"/old/{evil}.nii.gz"))
    made = write(tmp_path, page_of)
    data = data_of(made)
    assert data["classes"] == [bad, "core"] and data["cases"][0]["case"] == evil
    assert not [attributes for _, attributes in made.tags if "onerror" in attributes]
    assert sum(tag == "script" for tag, _ in made.tags) == 1 + 4 + 1 + 2, "data, volumes, viewer, ours"
    assert "1 of 2 cases, such as <img src=x" in made.text, "it has no truth under that name"
    assert "Pictures show the first of 2 channels, MRI." in made.text


def test_a_trainer_of_ones_own_is_pointed_out(own_model, quick, tmp_path, page_of):
    name = "LDSegTrainer_20epochs"
    shutil.move(own_model, own_model.with_name(own_model.name.replace("LDSegTrainer", name)))
    assert f"{name} may have replaced" in write(tmp_path, page_of, trainer_name=name).text


def test_files_listed_in_the_description(in_small_world, quick, tmp_path, page_of, monkeypatch):
    """nnU-Net lets dataset.json say where the files of each case lie."""
    raw = tmp_path / "raw" / "Dataset007_Small"
    shutil.copytree(in_small_world["nnUNet_raw"] / raw.name, raw)
    (raw / "imagesTr").rename(raw / "pictures")
    edit(raw / "dataset.json", lambda description: description.update(dataset={
        "case_00": {"images": ["pictures/case_00_0000.nii.gz"], "label": "labelsTr/case_00.nii.gz"}}))
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    made = write(tmp_path, page_of)
    assert [bool(case["slices"]) for case in data_of(made)["cases"]] == [True, False]
    assert "1 of 2 cases, such as case_07, have no truth" in made.text


@pytest.fixture
def flat_model(in_small_world, tmp_path, monkeypatch) -> Path:
    """An untrained model of colour pictures with overlapping regions, and the validation of one picture."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from ldseg_auto.demo.phantom import write_dataset
    from ldseg_auto.inference.predictor import LDSegPredictor
    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

    for variable in ("nnUNet_raw", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = write_dataset(tmp_path / "nnUNet_raw", 8, "Flat", num_train=1, num_test=0, seed=0, dims="2d_rgb")
    edit(raw / "dataset.json", lambda description: description.update(
        labels={"background": 0, "whole": [1, 2, 3], "vessel": [3]}, regions_class_order=[1, 3]))
    model = tmp_path / "nnUNet_results" / raw.name / "LDSegTrainer__LDSegPlans__2d"
    shutil.copytree(in_small_world["model_2d"], model, ignore=shutil.ignore_patterns("fold_0"))
    shutil.copy(raw / "dataset.json", model)
    channel = json.loads((model / "plans.json").read_text())["foreground_intensity_properties_per_channel"]["0"]

    def adapt(plans):
        plans.update(dataset_name=raw.name, image_reader_writer="NaturalImage2DIO",
                     foreground_intensity_properties_per_channel=dict.fromkeys("012", channel))
        plans["configurations"]["2d"].update(normalization_schemes=["RGBTo01Normalization"] * 3,
                                             use_mask_for_norm=[False] * 3)
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["output"] = "sigmoid"

    edit(model / "plans.json", adapt)
    plans = PlansManager(str(model / "plans.json"))
    network = LDSegTrainer.build_network_architecture(plans, plans.get_configuration("2d"), 3, 2, False)
    fold = model / "fold_0"
    (fold / "validation").mkdir(parents=True)
    content = checkpoint.load(str(in_small_world["model_2d"] / "fold_0" / "checkpoint_final.pth"), torch.device("cpu"))
    checkpoint.save({**content, "network_weights": network.state_dict()}, str(fold / "checkpoint_final.pth"))
    predictor = LDSegPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), [0])
    image, = (raw / "imagesTr").iterdir()
    predictor.predict_from_files_sequential([[str(image)]], [str(fold / "validation" / "case_000")],
                                            save_probabilities=True)
    compute_metrics_on_folder2(str(raw / "labelsTr"), str(fold / "validation"), str(model / "dataset.json"),
                               str(model / "plans.json"), num_processes=1)
    return model


def data_size(model: Path) -> tuple[int, int]:
    """(y, x) of the only picture."""
    return np.load(model / "fold_0" / "validation" / "case_000.npz")["probabilities"].shape[2:]


def test_flat_colour_pictures_and_regions(flat_model, tmp_path, page_of):
    maps = flat_model / "fold_0" / "validation" / "uncertainty"
    maps.mkdir()
    size = data_size(flat_model)
    values = np.linspace(0, 0.5, size[0] * size[1], dtype=np.float32).reshape(1, *size)
    write_map(values, maps / "case_000_mutual_information.nii.gz", None, {"spacing": (999, 1, 1)})
    made = page_of(write_report("8", output=str(tmp_path / "page.html"), device="cpu"))
    data = data_of(made)
    assert data["unit"] == "voxels" and data["classes"] == ["whole", "vessel"]
    assert [entry["name"] for entry in data["legend"]] == ["whole (1)", "whole (2)", "whole, vessel"]
    case, = data["cases"]
    assert case["slices"][0]["of"] == 1 and case["slices"][0]["entropy"] and case["embedded"] == []
    assert case["slices"][0]["mutual_information"] and case["slices"][0]["most_mutual_information"] == 0.5
    assert "nothing to scroll" in made.text and "Each region of each voxel" in made.text
    assert data["highest_entropy"] == pytest.approx(0.69) and "Case case_000, fold 0: the tile" in made.text
    assert "viewer-code" not in made.by_id and "dataset_fingerprint.json" not in made.text
