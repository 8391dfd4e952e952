"""Models of the kinds that nnU-Net's users have, made from a trained one: two folds of random weights each."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

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
    """A model of the kind that is asked for (plain, regions, transposed or pictures), and a folder with one image for
    it."""
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
    if request.param in ("regions", "pictures"):
        change(model / "plans.json", lambda plans: plans["configurations"][source.name.split("__")[-1]]["architecture"][
            "arch_kwargs"].update(output="sigmoid"))
    write_folds(model, source, 2 if request.param in ("regions", "pictures") else 3)
    return model, images
