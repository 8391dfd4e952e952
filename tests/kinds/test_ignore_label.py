"""Sparse annotation of a CT beside a second modality: trained on scribbles, scored where labels are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from worlds import Case, World, balls, write_case

from ldseg_auto.cli import evaluate
from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.inference import search
from ldseg_auto.inference.finish import Cases

IGNORE = 3
LABELS = {"background": 0, "shell": 1, "core": 2, "ignore": IGNORE}
SHAPE = (14, 18, 16)
VALIDATED = ["case_1", "case_2"]
BOTH = pytest.mark.parametrize("trainer", ["LDSegTrainer", pytest.param("LDSegTrainerPaper", marks=pytest.mark.slow)])


def make_case(index: int) -> tuple[Case, np.ndarray]:
    """A case, labelled in some of its rows, and the labels that nobody wrote down; case 0 is labelled throughout, as
    background."""
    rng = np.random.default_rng(index)
    truth = balls(rng, SHAPE, (5.5, 3)) if index else np.zeros(SHAPE, int)
    image = np.stack([truth * 100 - 50 + rng.normal(0, 30, SHAPE), 1000 - truth * 70 + rng.normal(0, 30, SHAPE)])
    rows = rng.random(SHAPE[:2]) < (0.3 if index else 2)
    return Case(image.astype(np.float32), np.where(rows[..., None], truth, IGNORE).astype(np.uint8)), truth


@pytest.fixture(scope="module")
def scribbles(make_world) -> World:
    world = make_world(22, "Scribbles")
    for index in range(5):
        write_case(world.raw, f"case_{index}", make_case(index)[0])
    world.describe({"0": "CT", "1": "MRI"}, LABELS, 5)
    world.plan("3d_fullres", validated=VALIDATED)
    return world


@pytest.fixture(scope="module")
def trained(scribbles):
    """(trainer) -> the folder of its fold, trained once."""
    folds = {}

    def make(trainer):
        if trainer not in folds:
            folds[trainer] = scribbles.train("3d_fullres", trainer)
        return folds[trainer]
    return make


def test_planned(scribbles):
    configuration = scribbles.plans()["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["ignore_label"] == IGNORE
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    ceilings = [each["mean"] for each in configuration["ldseg"]["latent"]["candidates"]]
    assert min(ceilings) < 0.99 and max(ceilings) > 0.5, "rows alone would look perfect at any stride, or at none"


def test_ct_is_scaled_by_the_data_set_and_the_other_channel_by_itself(scribbles):
    of_ct = scribbles.plans()["foreground_intensity_properties_per_channel"]["0"]
    images = [make_case(index)[0].image for index in range(5)]
    for image, (found, _) in zip(images, scribbles.preprocessed("3d_fullres").values(), strict=True):
        ct = (image[0].clip(of_ct["percentile_00_5"], of_ct["percentile_99_5"]) - of_ct["mean"]) / of_ct["std"]
        assert np.allclose(found[0], ct, atol=1e-3)
        assert np.allclose(found[1], (image[1] - image[1].mean()) / image[1].std(), atol=1e-3)


@BOTH
def test_scores_are_those_of_known_voxels(trained, trainer, read, scribbles, tmp_path):
    """nnU-Net's of the validation, and those of ldseg_evaluate."""
    validation = trained(trainer) / "validation"
    summary = json.loads((validation / "summary.json").read_text())
    by_case = {case["prediction_file"].split("/")[-1].split(".")[0]: case for case in summary["metric_per_case"]}
    assert evaluate.main(["-d", "22", "-i", str(validation), "-r", str(scribbles.raw / "labelsTr"), "-o",
                          str(tmp_path), "--chill", "-np", "1"]) == 0
    ours = json.loads((tmp_path / "evaluation.json").read_text())["cases"]
    for index in (1, 2):
        prediction, case = read(validation / f"case_{index}.nii.gz"), make_case(index)[0]
        known = case.labels != IGNORE
        for label, name in ((1, "shell"), (2, "core")):
            expected = dice(np.where(known, prediction, 0), np.where(known, case.labels, 0), label)
            metrics = by_case[f"case_{index}"]["metrics"][str(label)]
            assert metrics["n_ref"] == ((case.labels == label) & known).sum()
            if metrics["n_ref"] + metrics["n_pred"]:
                assert metrics["Dice"] == pytest.approx(expected)
                assert ours[f"case_{index}"]["classes"][name]["dice"] == pytest.approx(expected)
    signs = json.loads((trained(trainer) / "latent_signs.json").read_text())
    assert signs["cases"] == 2 and 0 <= signs["coding_dice"] <= 1


@BOTH
def test_predicted(trained, scribbles, trainer, tmp_path, read):
    """Every voxel gets a label, none the ignore label."""
    trained(trainer)
    rng = np.random.default_rng(0)
    flat = np.full((2, *SHAPE), 30.0)  # but for a voxel: a constant image is refused
    flat[:, 0, 0, 0] = 31
    for name, image in (("unseen", make_case(7)[0].image), ("noise", rng.normal(0, 100, (2, *SHAPE))),
                        ("flat", flat)):
        write_case(tmp_path, name, Case(image.astype(np.float32), np.zeros(SHAPE)), labelled=False)
    out = scribbles.predict(tmp_path / "out", "-tr", trainer, "--save_probabilities", images=tmp_path / "imagesTs")
    for name in ("unseen", "noise", "flat"):
        probabilities = np.load(out / f"{name}.npz")["probabilities"]
        assert probabilities.shape == (3, *SHAPE) and np.allclose(probabilities.sum(0), 1, atol=1e-2)
        assert set(np.unique(read(out / f"{name}.nii.gz"))) <= {0, 1, 2}


def test_the_choice_scores_what_is_known():
    """The scores by which ldseg_find_best_configuration chooses: other predictions under ignored voxels change none."""
    case, truth = make_case(3)
    known = case.labels != IGNORE
    labels = LabelManager(LABELS, None)
    predictor = SimpleNamespace(label_manager=labels, configuration_manager=SimpleNamespace(spacing=[1, 1, 1]))
    probabilities = np.eye(3, dtype=np.float32)[truth].transpose(3, 0, 1, 2) * 0.8 + 0.05
    other = np.where(known, probabilities, probabilities[::-1])
    scores = [search._score(predictor, torch.from_numpy(each), case.labels) for each in (probabilities, other)]
    assert scores[0] == scores[1] and scores[0][0] == 1
    wrong = np.where(known, probabilities[::-1], probabilities)
    assert search._score(predictor, torch.from_numpy(wrong), case.labels)[0] < 0.6
    cases = Cases.__new__(Cases)
    cases.labels, cases.structures = labels, [1, 2]
    segmentations = [each.argmax(0) for each in (probabilities, other)]
    assert not np.array_equal(*segmentations)
    assert [cases.dice(each, case.labels).tolist() for each in segmentations] == [[1, 1]] * 2
