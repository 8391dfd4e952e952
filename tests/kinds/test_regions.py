"""Overlapping regions of four channels around which all is zero, as in BraTS; one case holds nothing."""

import json
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
from worlds import Case, World, balls, write_case

REGIONS = {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
ORDER = [1, 2, 3]
SHAPE = (20, 22, 24)
BOTH = pytest.mark.parametrize("trainer", ["LDSegTrainer", pytest.param("LDSegTrainerPaper", marks=pytest.mark.slow)])


def make_case(index: int) -> Case:
    """A skull-stripped head; case 0 is healthy."""
    rng = np.random.default_rng(index)
    labels = balls(rng, SHAPE, (6, 4, 2.5)) if index else np.zeros(SHAPE, int)
    head = balls(np.random.default_rng(100), SHAPE, (8,)) > 0
    labels = labels * head
    contrast = rng.uniform(20, 60, (4, 4))
    image = np.stack([np.where(head, 200 + row[labels] + rng.normal(0, 5, SHAPE), 0) for row in contrast])
    return Case(image.astype(np.float32), labels)


@pytest.fixture(scope="module")
def tumours(make_world) -> World:
    """Planned; validated on a case with and the one without a tumour. `imagesTs` holds one more case, one of noise, and
    one that is zero but for a voxel (one that is constant is refused)."""
    world = make_world(21, "Tumours")
    for index in range(5):
        write_case(world.raw, f"case_{index}", make_case(index))
    rng = np.random.default_rng(0)
    unseen = make_case(5)
    empty = np.zeros_like(unseen.image)
    empty[:, 0, 0, 0] = 1
    for name, image in (("tumour", unseen.image), ("noise", rng.normal(0, 1, unseen.image.shape)),
                        ("empty", empty)):
        write_case(world.raw, name, Case(image.astype(np.float32), unseen.labels), labelled=False)
    world.describe({str(i): name for i, name in enumerate(("T1", "T1ce", "T2", "FLAIR"))},
                   {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}, 5,
                   regions_class_order=ORDER)
    world.plan("3d_fullres", validated=["case_0", "case_3"])
    return world


@pytest.fixture(scope="module")
def trained(tumours):
    """(trainer) -> the folder of its fold and the folder of its predictions, each made once."""
    made = {}

    def make(trainer):
        if trainer not in made:
            fold = tumours.train("3d_fullres", trainer)
            out = tumours.predict(tumours.root / f"out_{trainer}", "-tr", trainer, "--save_probabilities",
                                  "--uncertainty")
            made[trainer] = fold, out
        return made[trainer]
    return make


def by_order(probabilities):
    """As nnU-Net documents `regions_class_order`: later regions overwrite earlier ones."""
    segmentation = np.zeros(probabilities.shape[1:], np.uint8)
    for probability, label in zip(probabilities, ORDER, strict=True):
        segmentation[probability > 0.5] = label
    return segmentation


def test_planned_for_regions_and_for_what_is_not_zero(tumours):
    configuration = tumours.plans()["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["output"] == "sigmoid"
    assert configuration["use_mask_for_norm"] == [True] * 4
    assert list(configuration["ldseg"]["latent"]["candidates"][0]["per_class"]) == list(REGIONS)


def test_only_the_head_counts_in_the_normalisation(tumours):
    for case, (image, labels) in tumours.preprocessed("3d_fullres").items():
        outside = labels[0] < 0
        assert outside.any() and image.shape[1:] < SHAPE, case
        assert not image[:, outside].any()
        assert np.allclose(image[:, ~outside].mean(1), 0, atol=1e-2)
        assert np.allclose(image[:, ~outside].std(1), 1, atol=1e-2)


@BOTH
def test_validated(trained, trainer, read):
    """One score a region, from the segmentation that the probabilities make by the order of classes; the healthy case
    is a case."""
    fold, _ = trained(trainer)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2, 3)", "(2, 3)", "3"}
    assert len(summary["metric_per_case"]) == 2
    signs = json.loads((fold / "latent_signs.json").read_text())
    assert signs["cases"] == 2 and np.isfinite([signs["coding_dice"], signs["mean_of_samples_dice"]]).all()
    for case in ("case_0", "case_3"):
        probabilities = np.load(fold / "validation" / f"{case}.npz")["probabilities"]
        assert np.array_equal(read(fold / "validation" / f"{case}.nii.gz"), by_order(probabilities))


@BOTH
def test_predicted(trained, trainer, read):
    _, out = trained(trainer)
    probabilities = np.load(out / "tumour.npz")["probabilities"]
    assert probabilities.shape == (3, *SHAPE)
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    head = make_case(5).image[0] != 0
    total = probabilities.sum(0)[head]
    assert total.std() > 0 and np.abs(total - 1).max() > 0.05, "regions overlap: nothing need sum to one"
    assert np.array_equal(read(out / "tumour.nii.gz"), by_order(probabilities))
    figures = json.loads((out / "uncertainty" / "tumour.json").read_text())
    assert len(figures["classes"]) == 3


@BOTH
@pytest.mark.parametrize("case", ["noise", "empty"])
def test_images_of_nothing_are_predicted(trained, trainer, case, read):
    _, out = trained(trainer)
    probabilities = np.load(out / f"{case}.npz")["probabilities"]
    assert np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1
    assert np.array_equal(read(out / f"{case}.nii.gz"), by_order(probabilities))
    assert np.isfinite(read(out / "uncertainty" / f"{case}_entropy.nii.gz")).all()


def test_nnunets_ensemble_takes_the_predictions(trained, tumours, tmp_path, read):
    _, first = trained("LDSegTrainer")
    second = tumours.predict(tmp_path / "second", "--save_probabilities", "--seed", "1", "-tr", "LDSegTrainer")
    script, = entry_points(group="console_scripts", name="nnUNetv2_ensemble")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nnUNetv2_ensemble", "-i", str(first), str(second), "-o", str(tmp_path / "out"),
                                    "-np", "1", "--save_npz"])
        script.load()()
    for case in ("tumour", "noise", "empty"):
        parts = [np.load(folder / f"{case}.npz")["probabilities"].astype(np.float32) for folder in (first, second)]
        mean = np.load(tmp_path / "out" / f"{case}.npz")["probabilities"]
        assert np.allclose(mean, (parts[0] + parts[1]) / 2, atol=1e-3)
        assert np.array_equal(read(tmp_path / "out" / f"{case}.nii.gz"), by_order(mean))
    assert not np.allclose(*[np.load(folder / "tumour.npz")["probabilities"] for folder in (first, second)])
