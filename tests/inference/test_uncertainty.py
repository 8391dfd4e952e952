"""Maps and figures of uncertainty against their definitions."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.special import entr

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.export import ExportOptions, at_temperature, keep_largest_components
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.uncertainty import (
    case_figures,
    class_names,
    maps_of,
    predictive_entropy,
    spread_of,
    spread_of_ensemble,
    torch_entropy,
    uncertainty_files,
    voxel_size_of,
)


def draws(regions, number=6, classes=3, models=2):
    """(models, draws of each, K, 1, 1, 5) probabilities."""
    logits = torch.randn(models, number // models, classes, 1, 1, 5, generator=torch.Generator().manual_seed(0)) * 2
    return (logits.sigmoid() if regions else logits.softmax(2)).numpy()


def entropy(p, regions):
    return (entr(p) + entr(1 - p)).mean(-4) if regions else entr(p).sum(-4)


def spread(p, regions):
    """`spread_of` (models, draws, K, *S)."""
    flat, of_models = p.reshape(-1, *p.shape[2:]), p.mean(1)
    return spread_of(*map(torch.from_numpy, (flat.mean(0), (flat ** 2).mean(0), entropy(flat, regions).mean(0),
                                             entropy(of_models, regions).mean(0))), regions).numpy()


@pytest.mark.parametrize("regions", [False, True])
def test_maps_of_draws(regions):
    p = draws(regions)
    flat = p.reshape(-1, *p.shape[2:])
    names = ["a", "b", "c"] if regions else ["b", "c"]
    maps = maps_of(spread(p, regions), names)
    assert set(maps) == {"mutual_information", "mutual_information_samples", "mutual_information_models",
                         *(f"std_{name}" for name in names)}
    total = entropy(flat.mean(0), regions) - entropy(flat, regions).mean(0)
    assert maps["mutual_information"] == pytest.approx(total, abs=1e-6) and total.min() > 0
    assert maps["mutual_information_samples"] + maps["mutual_information_models"] == pytest.approx(total, abs=1e-6)
    within = [entropy(model.mean(0), regions) - entropy(model, regions).mean(0) for model in p]
    assert maps["mutual_information_samples"] == pytest.approx(np.mean(within, axis=0), abs=1e-6)
    for name, channel in zip(names[::-1], (2, 1, 0), strict=False):
        assert maps[f"std_{name}"] == pytest.approx(flat.std(0)[channel], abs=1e-6)


def test_a_probability_that_exceeds_one_by_rounding():
    """As the weighted mean of tiles that are all sure of a region does; its entropy is none, not infinite."""
    p = np.full((2, 1, 1, 1), np.nextafter(np.float32(1), np.float32(2)))
    assert predictive_entropy(p, regions=True).ravel().tolist() == [0]
    zero, mean = torch.zeros(1, 1, 1), torch.from_numpy(p)
    made = maps_of(spread_of(mean, mean ** 2, zero, torch_entropy(mean, regions=True), regions=True).numpy(), "ab")
    assert all((values == 0).all() for values in made.values())


@pytest.mark.parametrize("regions", [False, True])
def test_the_spread_of_an_ensemble_is_that_of_all_its_draws(regions):
    p = draws(regions, models=4, number=12)
    members = p[:2], p[2:]
    together = spread_of_ensemble([m.mean((0, 1)) for m in members], [spread(m, regions) for m in members], regions)
    assert together == pytest.approx(spread(p, regions), abs=1e-5)


@pytest.mark.parametrize("labels, expected", [
    ({"background": 0, "b": 2, "a": 1}, ["a", "b"]),
    ({"background": 0, "whole": [1, 2], "core": [2]}, ["whole", "core"]),
    ({"background": 0, "left lung": 1, "ignore": 2}, ["left_lung"]),
    ({"background": 0, "a/b": 1}, ["a_b"]),
])
def test_names_are_in_the_order_of_the_probabilities(labels, expected):
    assert class_names({"labels": labels}) == expected


def test_names_that_files_cannot_tell_apart():
    with pytest.raises(LDSegError, match="a_b, a_b"):
        class_names({"labels": {"background": 0, "a/b": 1, "a b": 2}})


def test_figures_of_a_case():
    mask = np.zeros((4, 5, 5), bool)
    mask[:2] = True
    probability = np.where(mask, 0.8, 0.1)
    samples = np.array([[40.0], [60.0]])  # ml
    fitted = case_figures([mask], probability[None], samples, 1.0, "ml", ["organ"], [2.0])["classes"]["organ"]
    deviation = (10 ** 2 + 0.5 ** 2 + 1) ** 0.5
    assert fitted["volume"] == 50 and fitted["calibrated"]
    assert fitted["interval_90"] == pytest.approx([50 - 2 * deviation, 50 + 2 * deviation])
    assert fitted["expected_dice"] == pytest.approx(2 * 40 / (45 + 50))
    by_line = case_figures([mask], probability[None], samples, 1.0, "ml", ["organ"], [], [(0.1, 0.5)])
    assert by_line["classes"]["organ"]["expected_dice"] == pytest.approx(0.1 + 40 / (45 + 50))
    unfitted = case_figures([mask], probability[None], samples, 1.0, "ml", ["organ"])["classes"]["organ"]
    assert not unfitted["calibrated"]
    assert unfitted["interval_90"][1] == pytest.approx(50 + 1.645 * deviation)
    nothing = case_figures([mask & False], probability[None] * 0, samples * 0, 1.0, "ml", ["organ"], [3.0])
    nothing = nothing["classes"]["organ"]
    assert nothing["expected_dice"] == 1 and nothing["interval_90"] == [0, 3]


@pytest.mark.parametrize("spacing, expected", [
    ((2.0, 0.5, 10.0), (0.01, "ml")),  # a volume in any format
    ((999, 1, 1), (1.0, "pixels")),  # what nnU-Net's reader of pictures makes up
])
def test_only_pictures_are_measured_in_pixels(spacing, expected):
    assert voxel_size_of({"spacing": spacing}) == expected


def test_temperature_keeps_the_order_and_is_undone_by_its_inverse():
    for regions in (False, True):
        p = draws(regions)[0, 0]
        soft = at_temperature(p, 2.0, regions)
        assert np.array_equal(soft.argsort(0), p.argsort(0)) or regions
        assert (soft > 0.5).tolist() == (p > 0.5).tolist() if regions else soft.sum(0) == pytest.approx(1)
        assert entropy(soft, regions).mean() > entropy(p, regions).mean()
        assert at_temperature(soft, 0.5, regions) == pytest.approx(p, abs=1e-5)
        assert at_temperature(p, 1.0, regions) is p


def test_small_components_go():
    segmentation = np.array([[1, 1, 1, 0, 1, 0, 2, 0, 2, 2]])[None]
    assert keep_largest_components(segmentation, (1,)).tolist() == [[[1, 1, 1, 0, 0, 0, 2, 0, 2, 2]]]
    assert keep_largest_components(segmentation, (1, 2)).tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0, 2, 2]]]
    assert keep_largest_components(segmentation, ((1, 2),)).tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]]]
    assert keep_largest_components(segmentation, ()) is segmentation


@pytest.fixture
def predict(in_small_world, tmp_path):
    """case_10 (oblique, of another spacing than the target's) with these options: where its files lie."""
    image = str(in_small_world["images"] / "case_10_0000.nii.gz")

    def predict(name, folds=("0",), model="model", **options):
        predictor = LDSegPredictor(device=torch.device("cpu"), samples=3, steps=2, allow_tqdm=False,
                                   use_mirroring=False, **options)
        predictor.initialize_from_trained_model_folder(str(in_small_world[model]), list(folds))
        (tmp_path / name).mkdir()
        predictor.predict_from_files_sequential([[image]], [str(tmp_path / name / "case_10")], save_probabilities=True)
        return tmp_path / name

    return predict


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.mark.parametrize("model", ["model", "model_2d"])
def test_maps_and_figures_are_written_in_the_images_geometry(predict, model):
    out = predict("maps", model=model, export=ExportOptions(maps=True, interval_scales=(2.0, 3.0)))
    files = uncertainty_files(out / "case_10", ["shell", "core"])
    assert sorted(files) == sorted((out / "uncertainty").iterdir())
    probabilities = np.load(out / "case_10.npz")["probabilities"]
    maps = {file.name[len("case_10_"):-len(".nii.gz")]: read(file) for file in files[:-1]}
    assert all(values.shape == probabilities.shape[1:] for values in maps.values())
    assert maps["entropy"] == pytest.approx(entr(probabilities).sum(0), abs=1e-3)
    assert maps["mutual_information"].max() > 0
    assert (maps["mutual_information"] <= maps["entropy"] + 1e-3).all()
    assert maps["mutual_information_models"].max() < 1e-3, "there is one fold"
    assert 0 < maps["std_shell"].max() < 0.5
    figures = json.loads(files[-1].read_text())
    segmentation, voxel_size = read(out / "case_10.nii.gz"), 1.1 * 0.9 * 1.6 / 1000
    for name, label, scale in (("shell", 1, 2.0), ("core", 2, 3.0)):
        figure = figures["classes"][name]
        assert figure["volume"] == pytest.approx((segmentation == label).sum() * voxel_size)
        low, high = figure["interval_90"]
        assert high - figure["volume"] == pytest.approx(scale * figure["deviation"])
        assert 0 <= low <= figure["volume"] and figure["samples_std"] > 0
    # samples are cut on the network's grid, the segmentation on the image's
    total = sum(figure["samples_mean"] for figure in figures["classes"].values())
    assert total == pytest.approx((segmentation > 0).sum() * voxel_size, rel=0.35)
    assert figures["samples"] == 3


def test_options_change_the_files(predict):
    plain, soft, cleaned = (predict(name, export=options) for name, options in (
        ("plain", ExportOptions()), ("soft", ExportOptions(temperature=2.0)),
        ("cleaned", ExportOptions(largest_component=((1, 2),)))))
    p, softer = (np.load(out / "case_10.npz")["probabilities"] for out in (plain, soft))
    assert softer == pytest.approx(at_temperature(p, 2.0, False), abs=1e-3)
    assert np.array_equal(read(plain / "case_10.nii.gz"), read(soft / "case_10.nii.gz"))
    segmentation = read(plain / "case_10.nii.gz")
    assert np.array_equal(read(cleaned / "case_10.nii.gz"), keep_largest_components(segmentation, ((1, 2),)))
    assert not (plain / "uncertainty").exists()
