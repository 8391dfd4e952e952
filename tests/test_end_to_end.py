"""From raw files to written segmentations, through the commands' real entry points."""

import json
import os
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto import nnunet_ext
from ldseg_auto.cli import plan_and_preprocess, predict, train
from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.inference.uncertainty import predictive_entropy

ALONE = ["-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar"]
ONE_PROCESS = ["-npp", "1", "-nps", "1", "-device", "cpu", "--disable_progress_bar"]


def link_images(source: Path, cases: list[str], folder: Path, ending: str = ".nii.gz") -> Path:
    folder.mkdir()
    for case in cases:
        shutil.copy(source / f"{case}_0000{ending}", folder)
    return folder


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_predict_agrees_with_the_validation(in_small_world, tmp_path):
    validation = in_small_world["model"] / "fold_0" / "validation"
    cases = sorted(json.loads((in_small_world["preprocessed"] / "splits_final.json").read_text())[0]["val"])
    images = link_images(in_small_world["nnUNet_raw"] / "Dataset007_Small" / "imagesTr", cases, tmp_path / "images")
    out = tmp_path / "out"
    assert predict.main(["-i", str(images), "-o", str(out), "-d", "7", "-c", "3d_fullres", "-f", "0",
                         "--save_probabilities", *ALONE]) == 0
    for case in cases:
        ours, theirs = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (out, validation))
        assert np.abs(ours.astype(float) - theirs).max() < 1e-3
        assert np.array_equal(read(out / f"{case}.nii.gz"), read(validation / f"{case}.nii.gz"))


def test_same_seed_same_bytes_whole_or_in_parts_other_seed_other_probabilities(in_small_world, tmp_path):
    """Parts predict each case without the others: a case's result depends on neither."""
    written = []
    for name, seed, parts in (("whole", 1, [["-num_parts", "1"]]), ("other", 2, [["-num_parts", "2"]]),
                              ("parts", 1, [["-num_parts", "2", "-part_id", "1"], ["-num_parts", "2"]])):
        out = tmp_path / name
        for part in parts:
            assert predict.main(["-i", str(in_small_world["images"]), "-o", str(out), "-d", "7", "-c", "3d_fullres",
                                 "--seed", str(seed), "--save_probabilities", "--uncertainty", "--samples", "2",
                                 "--disable_tta", *part, *ALONE]) == 0
        written.append({path.relative_to(out): path for path in sorted(out.rglob("*.nii.gz"))}
                       | {"npz": np.load(out / "case_10.npz")["probabilities"]})
    whole, other, parts = written
    assert len(whole) == 15  # two segmentations, six maps of each, one array
    assert all(whole[key].read_bytes() == parts[key].read_bytes() for key in whole if key != "npz")
    assert np.array_equal(whole["npz"], parts["npz"])
    assert not np.allclose(whole["npz"], other["npz"], atol=1e-6)


def test_a_2d_and_a_3d_model_are_ensembled(in_small_world, tmp_path):
    def call(name, *flags):
        assert predict.main(["-i", str(in_small_world["images"]), "-o", str(tmp_path / name), "-d", "7", "--samples",
                             "1", "--disable_tta", *flags, *ALONE]) == 0
        return tmp_path / name

    single = [call(c, "-c", c, "--save_probabilities") for c in ("2d", "3d_fullres")]
    both = call("both", "-c", "2d", "3d_fullres", "--save_probabilities", "--uncertainty")
    assert sorted(p.name for p in both.iterdir() if p.is_dir()) == ["uncertainty"], "the parts are gone"
    for case in ("case_10", "case_11"):
        parts = [np.load(folder / f"{case}.npz")["probabilities"] for folder in single]
        mean = np.load(both / f"{case}.npz")["probabilities"]
        assert not np.allclose(parts[0], parts[1], atol=1e-3)
        assert np.allclose(mean, (parts[0].astype(np.float32) + parts[1]) / 2, atol=1e-6)
        assert np.array_equal(read(both / f"{case}.nii.gz"), mean.argmax(0))
        entropy = predictive_entropy(mean, regions=False)
        assert np.allclose(read(both / "uncertainty" / f"{case}_entropy.nii.gz"), entropy, atol=1e-4)


def test_an_interrupted_ensemble_goes_on_where_it_was(in_small_world, tmp_path, monkeypatch):
    from ldseg_auto.inference import run
    call = ["-i", str(in_small_world["images"]), "-o", str(tmp_path), "-d", "7", "--samples", "1", "--disable_tta",
            "-c", "2d", "3d_fullres", *ALONE]
    predict_cases, predicted = run._predict_cases, []

    def interrupted(cases, out, model, *args):
        predicted.append((sorted(cases), model.name.split("__")[-1]))
        if len(predicted) == 2:
            raise KeyboardInterrupt
        return predict_cases(cases, out, model, *args)
    monkeypatch.setattr(run, "_predict_cases", interrupted)
    assert predict.main(call) != 0
    assert predict.main([*call, "--continue_prediction"]) == 0
    cases = ["case_10", "case_11"]
    assert predicted == [(cases, "2d"), (cases, "3d_fullres"), (cases, "3d_fullres")]
    assert sorted(p.name for p in tmp_path.glob("*.nii.gz")) == ["case_10.nii.gz", "case_11.nii.gz"]


@pytest.mark.processes
def test_continue_prediction_leaves_what_is_there(in_small_world, tmp_path):
    out = tmp_path / "out"
    call = ["-i", str(in_small_world["images"]), "-o", str(out), "-d", "7", "-c", "3d_fullres", "--samples", "1",
            "--disable_tta"]
    assert predict.main([*call, *ALONE]) == 0
    before = (out / "case_10.nii.gz").stat().st_mtime_ns
    (out / "case_11.nii.gz").unlink()
    assert predict.main([*call, "--continue_prediction", *ONE_PROCESS]) == 0
    assert (out / "case_10.nii.gz").stat().st_mtime_ns == before
    assert (out / "case_11.nii.gz").is_file()


def test_rgb_pictures(nnunet_folders, tmp_path, capsys):
    """2D, three channels in one PNG: plan, train, predict, map."""
    from ldseg_auto.demo.phantom import write_dataset
    dataset = write_dataset(nnunet_folders["nnUNet_raw"], 8, "Pictures", num_train=5, num_test=1, seed=0,
                            dims="2d_rgb")
    assert plan_and_preprocess.main(["-d", "8", "-np", "1", "-npfp", "1", "--explain"]) == 0
    assert "flat pictures, median size" in (printed := capsys.readouterr().out) and "999 x" not in printed
    plans = json.loads((nnunet_folders["nnUNet_preprocessed"] / dataset.name / "LDSegPlans.json").read_text())
    # so few pictures would make batches of hundreds of patches
    plans["configurations"]["2d"]["batch_size"] = 2
    (nnunet_folders["nnUNet_preprocessed"] / dataset.name / "LDSegPlans.json").write_text(json.dumps(plans))
    assert train.main(["8", "0", "--epochs", "1", "--iterations_per_epoch", "1", "-device", "cpu"]) == 0
    out = tmp_path / "out"
    assert predict.main(["-i", str(dataset / "imagesTs"), "-o", str(out), "-d", "8", "--samples", "1",
                         "--disable_tta", "--uncertainty", *ALONE]) == 0
    image, = (dataset / "imagesTs").glob("*.png")
    case = image.name.removesuffix("_0000.png")
    size = sitk.ReadImage(str(image)).GetSize()
    assert sitk.ReadImage(str(out / f"{case}.png")).GetSize() == size
    assert sitk.ReadImage(str(out / "uncertainty" / f"{case}_entropy.nii.gz")).GetSize()[:2] == size
    figures = json.loads((out / "uncertainty" / f"{case}.json").read_text())
    segmentation = read(out / f"{case}.png")
    assert figures["unit"] == "pixels", "a picture has no millimetres"
    assert figures["classes"]["organ"]["volume"] == (segmentation == 1).sum()


@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    """Fold 0 of the data set that LDSEG_TEST_DATASET names (a folder in nnU-Net's raw format), trained for
    LDSEG_TEST_MINUTES (12): its number, folders, and the images of its validation cases."""
    source = os.environ.get("LDSEG_TEST_DATASET")
    if not source:
        pytest.skip("LDSEG_TEST_DATASET names no data set")
    dataset, root = Path(source).resolve(), tmp_path_factory.mktemp("real")
    number = str(int(dataset.name[7:10]))
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir()
            patch.setenv(variable, str(root / variable))
        patch.setenv("nnUNet_extTrainer", nnunet_ext.FOLDER)
        (root / "nnUNet_raw" / dataset.name).symlink_to(dataset)
        assert plan_and_preprocess.main(["-d", number, "-c", "3d_fullres", "--explain"]) == 0
        assert train.main([number, "0", "--max_minutes", os.environ.get("LDSEG_TEST_MINUTES", "12"), "--seed", "0",
                           "-device", "cpu"]) == 0
        splits = json.loads((root / "nnUNet_preprocessed" / dataset.name / "splits_final.json").read_text())
        ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
        cases = splits[0]["val"]
        images = link_images(dataset / "imagesTr", cases, root / "images", ending)
        yield {"number": number, "dataset": dataset, "root": root, "ending": ending, "cases": cases, "images": images,
               "fold": next((root / "nnUNet_results").glob("*/*/fold_0"))}


def mean_dice(model, predictions, label, cases):
    files = [f"{case}{model['ending']}" for case in cases]
    return np.mean([dice(read(predictions / file), read(model["dataset"] / "labelsTr" / file), label)
                    for file in files])


@pytest.mark.slow
def test_real_data(real_model, tmp_path):
    """The whole way: prediction and validation agree, and what was trained is a diffusion."""
    summary = json.loads((real_model["fold"] / "validation" / "summary.json").read_text())
    assert predict.main(["-i", str(real_model["images"]), "-o", str(tmp_path), "-d", real_model["number"], "-f", "0",
                         *ONE_PROCESS]) == 0
    for label, scores in summary["mean"].items():
        assert mean_dice(real_model, tmp_path, int(label), real_model["cases"]) == pytest.approx(
            scores["Dice"], abs=1e-3)
    assert json.loads((real_model["fold"] / "latent_signs.json").read_text())["use_of_latent_holds"]


@pytest.mark.slow
def test_nnunets_prediction_agrees_with_ours(real_model, tmp_path):
    cases = real_model["cases"][:10]
    images = link_images(real_model["dataset"] / "imagesTr", cases, tmp_path / "images", real_model["ending"])
    shared = ["-i", str(images), "-d", real_model["number"], "-c", "3d_fullres", "-f", "0", "--disable_tta", *ALONE]
    assert predict.main([*shared, "-o", str(tmp_path / "ours")]) == 0
    script, = entry_points(group="console_scripts", name="nnUNetv2_predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["nnUNetv2_predict", *shared, "-o", str(tmp_path / "stock"), "-tr", "LDSegTrainer",
                                   "-p", "LDSegPlans"])
        script.load()()
    for label in json.loads((real_model["fold"] / "validation" / "summary.json").read_text())["mean"]:
        ours, stock = (mean_dice(real_model, tmp_path / name, int(label), cases) for name in ("ours", "stock"))
        # samples of a model that has learned little disagree, and so do their means of logits and of probabilities
        assert ours > 0.6, "train longer: LDSEG_TEST_MINUTES"
        assert stock == pytest.approx(ours, abs=0.01)


@pytest.mark.slow
def test_real_data_in_2d(real_model, tmp_path):
    """The 2d configuration of the same data, for a moment; 2D and 3D are ensembled."""
    number = real_model["number"]
    assert plan_and_preprocess.main(["-d", number, "-c", "2d"]) == 0
    assert train.main([number, "0", "-c", "2d", "-tr", "LDSegTrainer_5iterations", "-device", "cpu"]) == 0
    two_d = real_model["fold"].parents[1] / "LDSegTrainer_5iterations__LDSegPlans__2d"
    shutil.copytree(two_d, two_d.with_name("LDSegTrainer__LDSegPlans__2d"))
    images = link_images(real_model["dataset"] / "imagesTr", real_model["cases"][:2], tmp_path / "images",
                         real_model["ending"])
    assert predict.main(["-i", str(images), "-o", str(tmp_path / "out"), "-d", number, "-c", "2d", "3d_fullres",
                         "--disable_tta", "--uncertainty", *ALONE]) == 0
    assert len(list((tmp_path / "out" / "uncertainty").glob("*_entropy.nii.gz"))) == 2
