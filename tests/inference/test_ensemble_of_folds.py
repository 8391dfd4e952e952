"""ldseg_predict without -c and -f is the mean of the folds' probabilities: for regions, transposed axes and pictures.

`tests/trainers/test_crossval.py` shows the same of two folds that were really trained.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ldseg_auto.cli import predict
from ldseg_auto.demo.phantom import write_dataset
from ldseg_auto.trainers import checkpoint
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
PICTURES = {"labels": {"background": 0, "whole": [1, 2, 3], "vessel": [3]}, "regions_class_order": [1, 3],
            "channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def write_folds(model: Path, source: Path, heads: int) -> None:
    """Two folds of random weights, whose predictions differ from voxel to voxel."""
    plans = PlansManager(str(model / "plans.json"))
    channels = len(json.loads((model / "dataset.json").read_text())["channel_names"])
    content = checkpoint.load(str(source / "fold_0" / "checkpoint_final.pth"), torch.device("cpu"))
    for fold in (0, 1):
        torch.manual_seed(fold)
        network = LDSegTrainer.build_network_architecture(
            plans, plans.get_configuration(model.name.split("__")[-1]), channels, heads, False)
        for weights in (network.denoiser.from_latent.weight, network.denoiser.out[-1].weight):  # zero at first
            torch.nn.init.normal_(weights, std=0.3)
        (model / f"fold_{fold}").mkdir()
        checkpoint.save({**content, "network_weights": network.state_dict()},
                        str(model / f"fold_{fold}" / "checkpoint_final.pth"))


@pytest.fixture
def model(request, in_small_world, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A model of the kind that is asked for, and a folder with one image for it."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    images = tmp_path / "images"
    images.mkdir()
    source = in_small_world["model_2d" if request.param == "pictures" else "model"]
    model = tmp_path / "results" / "Dataset008_Other" / source.name
    shutil.copytree(source, model, ignore=shutil.ignore_patterns("fold_*"))
    if request.param == "pictures":
        raw = write_dataset(tmp_path / "raw", 8, "Other", num_train=1, num_test=0, seed=0, dims="2d_rgb")
        shutil.copy(next((raw / "imagesTr").iterdir()), images / "case_0000.png")
        change(model / "dataset.json", lambda description: description.update(PICTURES))
        change(model / "plans.json", lambda plans: (
            plans.update(image_reader_writer="NaturalImage2DIO"),
            plans["foreground_intensity_properties_per_channel"].update(
                dict.fromkeys("12", plans["foreground_intensity_properties_per_channel"]["0"])),
            plans["configurations"]["2d"].update(normalization_schemes=["RGBTo01Normalization"] * 3,
                                                 use_mask_for_norm=[False] * 3)))
    else:
        shutil.copy(in_small_world["images"] / "case_11_0000.nii.gz", images / "case_0000.nii.gz")
    if request.param == "transposed":
        change(model / "plans.json",
               lambda plans: plans.update(transpose_forward=[1, 2, 0], transpose_backward=[2, 0, 1]))
    if request.param == "regions":
        change(model / "dataset.json", lambda description: description.update(REGIONS))
    if request.param != "transposed":
        change(model / "plans.json", lambda plans: plans["configurations"][source.name.split("__")[-1]]["architecture"][
            "arch_kwargs"].update(output="sigmoid"))
    write_folds(model, source, 3 if request.param == "transposed" else 2)
    return model, images


@pytest.mark.parametrize("model", ["regions", "transposed", "pictures"], indirect=True)
def test_the_mean_of_the_folds(request, model, tmp_path, capsys):
    folder, images = model
    image, = images.iterdir()
    quicker = [] if image.suffix == ".png" else ["--disable_tta"]

    def probabilities(name: str, *flags: str) -> np.ndarray:
        assert predict.main(["-i", str(images), "-o", str(tmp_path / name), "-d", "8", "-npp", "0", "-nps", "0",
                             "--samples", "1", "--save_probabilities", "-device", "cpu", "--disable_progress_bar",
                             *quicker, *flags]) == 0
        return np.load(tmp_path / name / "case.npz")["probabilities"].astype(np.float32)

    single = [probabilities(fold, "-f", fold) for fold in "01"]
    assert np.abs(single[0] - single[1]).max() > 0.01 and all(part.std(axis=(1, 2, 3)).min() > 0.003 for part in single)
    both = probabilities("both")
    assert f"Predicting with {folder.name}, fold 0 1" in capsys.readouterr().out
    assert np.abs(both - (single[0] + single[1]) / 2).max() < 1e-3
    written = tmp_path / "both" / f"case{image.name.removeprefix('case_0000')}"
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
    size = sitk.ReadImage(str(image)).GetSize()
    assert segmentation.shape == size[::-1] and both[0].size == segmentation.size
    if "transposed" in request.node.name:
        expected = both.argmax(0)
    else:  # the later region of the order lies over the earlier one
        expected = np.where(both[1] > 0.5, 3 if "pictures" in request.node.name else 2, both[0] > 0.5)
    assert np.array_equal(segmentation, expected.reshape(segmentation.shape))
