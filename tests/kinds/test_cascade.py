"""The cascade: a first stage at low resolution, whose segmentation the second gets as channels. With regions and an
ignore label, which must not get lost on the way."""

import json
import shutil

import numpy as np
import pytest
import torch
from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from worlds import Case, Geometry, World, balls, write_case, write_volume

from ldseg_auto.cli import export, find_best_configuration, predict, report, train
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import resolved
from ldseg_auto.inference import find_best, run, search
from ldseg_auto.inference.choice import Sampler
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.outputs import is_whole
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.preprocessing import preprocess
from ldseg_auto.inference.previous_stage import as_channels, read_handed_on
from ldseg_auto.planners.ldseg_planner import LDSegPlanner
from ldseg_auto.trainers import cascade as handing
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.run import prepare_training
from ldseg_auto.trainers.validation import into_validation_best

SHAPE = (16, 18, 16)
FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"
CASES = [f"case_{index}" for index in range(4)]


def make_case(index, shape=SHAPE, geometry=None):
    rng = np.random.default_rng(index)
    labels = balls(rng, shape, (6, 3.5))
    image = (labels * 100 + rng.normal(0, 20, shape)).astype(np.float32)
    labels[:2] = 3  # ignored
    return Case(image[None], labels, *([geometry] if geometry else []))


def planned(world):
    """By the planner, but for the low resolution: nnU-Net plans one for large volumes only (see
    tests/planners/test_ldseg_planner.py); two folds."""
    from ldseg_auto.planners.api import preprocess_dataset

    for index, case in enumerate(CASES):
        write_case(world.raw, case, make_case(index))
    write_case(world.raw, "unseen", make_case(9, (9, 20, 18), Geometry((1.1, 0.9, 1.6))), labelled=False)
    world.describe({"0": "CT"}, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, len(CASES),
                   regions_class_order=[1, 2])
    world.plan("3d_fullres")
    plans = world.plans()
    full = plans["configurations"]["3d_fullres"]
    full["architecture"]["arch_kwargs"]["sampler_samples"] = 1  # validations are quicker
    low = json.loads(json.dumps(full)) | {"data_identifier": f"LDSegPlans_{FIRST}", "spacing": [1.5] * 3,
                                          "next_stage": SECOND}
    second = {"inherits_from": "3d_fullres", "previous_stage": FIRST}
    LDSegPlanner(41)._write_second_stage(second, full)
    plans["configurations"] |= {FIRST: low, SECOND: second}
    (world.preprocessed_folder / "LDSegPlans.json").write_text(json.dumps(plans))
    preprocess_dataset(41, "LDSegPlans", [FIRST], [1])
    (world.preprocessed_folder / "splits_final.json").write_text(json.dumps([
        {"train": CASES[half::2], "val": CASES[1 - half::2]} for half in (0, 1)]))


def train_fold(world, configuration, *folds, more=()):
    return train.main([str(world.number), *folds, "-c", configuration, "--epochs", "1", "--iterations_per_epoch", "2",
                       "-device", "cpu", "--seed", "0", "--npz", *more])


def prepare(world, **changes):
    return prepare_training(world.name, ["0"], SECOND, **{
        "trainer_name": "LDSegTrainer", "plans_name": "LDSegPlans", "pretrained_weights": None, "encoder_weights": None,
        "num_gpus": 1,
        "restart": False, "continue_training": False, "only_validate": False, "validate_best": False,
        "save_probabilities": False, "disable_checkpointing": False, "group_by": None, "allow_unused_cases": False
    } | changes)


@pytest.fixture(scope="module")
def world(make_world) -> World:
    """The first stage trained in both folds, the second in fold 0; `refusal` of a training before."""
    made = make_world(41, "Cascade")
    planned(made)
    with pytest.raises(LDSegError) as refused:
        prepare(made)
    made.refusal = str(refused.value)
    assert train_fold(made, FIRST, "0", "1") == 0
    assert train_fold(made, SECOND, "0") == 0
    return made


def model_of(world, configuration):
    return world.results / f"LDSegTrainer__LDSegPlans__{configuration}"


def by_order(probabilities):
    segmentation = np.zeros(probabilities.shape[1:], np.uint8)
    for probability, label in zip(probabilities, (1, 2), strict=True):
        segmentation[probability > 0.5] = label
    return segmentation


def test_the_second_stage_waits_for_all_folds_of_the_first(world):
    assert f"{SECOND} needs the segmentation of every case by {FIRST}" in world.refusal
    assert f"ldseg_train {world.name} 0 1 -c {FIRST}" in world.refusal


def test_the_plans_say_what_the_second_stage_gets(world):
    plans = world.plans()
    second, full = resolved(plans, SECOND), plans["configurations"]["3d_fullres"]
    assert second["architecture"]["arch_kwargs"]["previous_stage_channels"] == 2  # labels, not the regions
    assert second["patch_size"] == full["patch_size"] and second["data_identifier"] == full["data_identifier"]
    assert second["ldseg"]["memory"]["training_tensors_gb"] >= full["ldseg"]["memory"]["training_tensors_gb"]


def test_what_is_handed_on_is_what_the_first_stage_predicts(world):
    """Of every case, by the fold that did not see it; by our predictor, resampled as probabilities."""
    folder = model_of(world, FIRST) / "predicted_next_stage" / SECOND
    shapes = {case: image.shape[1:] for case, (image, _) in world.preprocessed("3d_fullres").items()}
    for index, case in enumerate(CASES):
        segmentation = read_handed_on(folder, case)
        assert segmentation.shape == shapes[case]
        probabilities = np.load(model_of(world, FIRST) / f"fold_{1 - index % 2}" / "validation" / f"{case}.npz")[
            "probabilities"]
        assert segmentation.shape == probabilities.shape[1:], "these images are not resampled at full resolution"
        assert np.mean(segmentation == by_order(probabilities)) > 0.995
    assert read_handed_on(folder, "nobody") is None
    assert sorted(file.name for file in folder.iterdir()) == [f"{case}.b2nd" for case in CASES]


def test_a_validation_of_another_kind_hands_nothing_on(world, monkeypatch):
    """Fold all predicts what it was trained on; the best checkpoint is not the one that the first stage predicts
    with."""
    bound = []
    monkeypatch.setattr("ldseg_auto.trainers.ldseg_trainer.require_whole_references", lambda trainer: None)
    monkeypatch.setattr("ldseg_auto.trainers.ldseg_trainer.measure_on_cases", lambda *_: {})
    monkeypatch.setattr("ldseg_auto.trainers.ldseg_trainer.save_summary", lambda *_: None)
    monkeypatch.setattr(nnunet_trainer_module.nnUNetTrainer, "perform_actual_validation",
                        lambda self, save: bound.append(nnunet_trainer_module.resample_and_save))
    before = nnunet_trainer_module.resample_and_save
    description = json.loads((world.preprocessed_folder / "dataset.json").read_text())
    trainer = LDSegTrainer(world.plans() | {"continue_training": False}, FIRST, 0, description, torch.device("cpu"))
    trainer.initialize()
    trainer.perform_actual_validation()
    with pytest.raises(FileNotFoundError), into_validation_best(trainer):
        trainer.perform_actual_validation()
    trainer.perform_actual_validation()
    trainer.fold = "all"
    trainer.perform_actual_validation()
    assert bound == [handing.hand_on, handing.keep, handing.hand_on, handing.keep]
    assert nnunet_trainer_module.resample_and_save is before
    assert handing.keep(1, 2, 3) is None


@pytest.mark.parametrize("damage", ["cut off", "missing", "of another size"])
def test_a_damaged_segmentation_stops_the_training(world, damage, tmp_path):
    file = model_of(world, FIRST) / "predicted_next_stage" / SECOND / "case_1.b2nd"
    prepare(world)
    shutil.copy(file, tmp_path)
    try:
        if damage == "missing":
            file.unlink()
        elif damage == "cut off":
            file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
        else:
            import blosc2
            file.unlink()
            blosc2.asarray(np.zeros((3, 4, 5), np.uint8), urlpath=str(file))
        with pytest.raises(LDSegError, match=rf"case_1.*ldseg_train {world.name} 0 -c {FIRST}"):
            prepare(world)
        with pytest.raises(LDSegError, match="case_1"):
            find_best._find_models(world.name, [SECOND], "LDSegTrainer", "LDSegPlans", ["0"])
    finally:
        shutil.copy(tmp_path / file.name, file)
    prepare(world)


def load(world, **options):
    predictor = LDSegPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False, samples=1, **options)
    predictor.initialize_from_trained_model_folder(str(model_of(world, SECOND)), [0])
    return predictor


def test_the_second_stage_sees_the_first_even_where_it_is_the_same_all_over(world):
    predictor = load(world)
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    means = []
    for label in (0, 1, 2):
        first = as_channels(np.full(SHAPE, label), [1, 2])
        means.append(predictor.mean_probabilities(torch.cat([image, torch.from_numpy(first)]), 0))
    assert (means[0] - means[1]).abs().max() > 1e-3 < (means[1] - means[2]).abs().max()
    with pytest.raises(LDSegError, match=rf"1 channels, the network takes 3.*{FIRST}"):
        predictor.mean_probabilities(image, 0)


def test_predicted_by_one_command_as_by_two_and_as_arrays(world, tmp_path, read):
    """The first stage is predicted on the way; given, it makes the same result; and so do arrays."""
    flags = ["-c", SECOND, "-f", "0", "--save_probabilities"]
    once = world.predict(tmp_path / "once", *flags)
    first = world.predict(tmp_path / "first", "-c", FIRST, "-f", "0")
    twice = world.predict(tmp_path / "twice", *flags, "-prev_stage_predictions", str(first))
    expected = np.load(once / "unseen.npz")["probabilities"]
    assert np.array_equal(np.load(twice / "unseen.npz")["probabilities"], expected)
    assert np.array_equal(read(once / "unseen.nii.gz"), by_order(expected))
    assert not list(once.glob("prev_stage_*"))
    predictor = load(world)
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(world.raw / "imagesTs" / "unseen_0000.nii.gz")])
    segmentation = reader.read_seg(str(first / "unseen.nii.gz"))[0]
    streamed, _ = preprocess([str(world.raw / "imagesTs" / "unseen_0000.nii.gz")], tmp_path / "image",
                             predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json,
                             first_stage=str(first / "unseen.nii.gz"))
    adapter = PreprocessAdapterFromNpy([image], [segmentation], [properties], [None], predictor.plans_manager,
                                       predictor.dataset_json, predictor.configuration_manager, 1)
    array = next(adapter)["data"].numpy()
    assert np.allclose(streamed.mapped()[:1], array[:1], atol=1e-3)
    assert np.array_equal(streamed.mapped()[1:], array[1:]) and set(np.unique(array[1:])) == {0, 1}
    labels = predictor.predict_single_npy_array(image, properties, segmentation)
    assert np.mean(labels == by_order(expected)) > 0.97  # nnU-Net resamples logits of arrays
    other = predictor.predict_single_npy_array(image, properties, np.full_like(segmentation, 2))
    assert np.mean(labels == other) < 0.97
    whole = world.predict(tmp_path / "whole", *flags, "--whole_volume", "-prev_stage_predictions", str(first))
    assert np.load(whole / "unseen.npz")["probabilities"].shape == expected.shape


def command(world, out, *flags):
    return predict.main(["-i", str(world.raw / "imagesTs"), "-o", str(out), "-d", str(world.number), "--samples", "1",
                         "--disable_tta", "-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar", *flags])


def test_mistakes_are_named(world, tmp_path, capsys):
    def refused(*words, flags):
        assert command(world, tmp_path / "out", *flags) == 1
        said = capsys.readouterr().err
        assert all(word in said for word in words), said

    given = tmp_path / "given"
    refused("no folder", "given", flags=["-c", SECOND, "-prev_stage_predictions", str(given)])
    given.mkdir()
    refused("missing or cut off: unseen", flags=["-c", SECOND, "-prev_stage_predictions", str(given)])
    (given / "unseen.nii.gz").write_bytes(b"\x1f\x8b")
    refused("missing or cut off: unseen", flags=["-c", SECOND, "-prev_stage_predictions", str(given)])
    write_volume(np.zeros((3, 4, 5), np.uint8), given / "unseen.nii.gz", Geometry())
    refused("not the size of its image", flags=["-c", SECOND, "-prev_stage_predictions", str(given)])
    refused("no cascade's second stage", flags=["-c", FIRST, "-prev_stage_predictions", str(given)])
    first = model_of(world, FIRST)
    first.rename(first.with_name("away"))
    try:
        refused(f"needs the segmentation by {FIRST}", f"Train {FIRST}", flags=["-c", SECOND])
        assert export.main(["-d", str(world.number), "-c", SECOND, "-o", str(tmp_path / "model.zip")]) == 1
        assert "cascade's second stage" in capsys.readouterr().err
    finally:
        first.with_name("away").rename(first)


def test_what_others_left_is_not_taken_for_the_first_stage(world, tmp_path, monkeypatch):
    """--continue_prediction keeps what the same weights made in the same way, nothing else."""
    predicted = []

    def pretend(cases, out, model, *_, **__):
        predicted.append(sorted(cases))
        out.mkdir(parents=True, exist_ok=True)
        for case in cases:
            write_volume(np.zeros((3, 4, 5), np.uint8), out / f"{case}.nii.gz", Geometry())
        return []
    monkeypatch.setattr(run, "_predict_cases", pretend)
    model, first = model_of(world, SECOND), model_of(world, FIRST)
    stages = run.find_first_stages({model: world.plans()}, ["0"], "checkpoint_final.pth", None)
    cases = {"unseen": [world.raw / "imagesTs" / "unseen_0000.nii.gz"]}
    folder = tmp_path / "prev_stage_0"

    def again(keep=True, seed=0):
        predicted.clear()
        asked = {"use_mirroring": False, "samples": 1, "steps": None, "eta": None}
        options = {"checkpoint_name": "checkpoint_final.pth", "tile_step_size": 0.5, "seed": seed,
                   "whole_volume": False}
        run._predict_first_stages(cases, folder, stages, None, asked, False, keep, (0, 0), options)
        return predicted == [["unseen"]]

    (folder / first.name).mkdir(parents=True)
    write_volume(np.ones((3, 4, 5), np.uint8), folder / first.name / "unseen.nii.gz", Geometry())
    assert is_whole(folder / first.name / "unseen.nii.gz")
    assert again(), "nobody knows who made it"
    assert not again() and again(keep=False)
    assert again(seed=1), "made in another way"
    (folder / first.name / "unseen.nii.gz").write_bytes(b"\x1f\x8b")
    assert again(seed=1), "cut off"
    (first / "fold_0" / "checkpoint_final.pth").touch()
    assert again(seed=1), "by other weights"


def test_cross_validation_cases_come_with_the_first_stage(world, tmp_path):
    """As ldseg_find_best_configuration predicts them: once more what the validation wrote."""
    model, = find_best._find_models(world.name, [SECOND], "LDSegTrainer", "LDSegPlans", ["0"])
    find_best._predict(model, Sampler(1, 2, 0.0, False), {0: ["case_1"]}, tmp_path, ExportOptions(),
                       torch.device("cpu"), False)
    written, validated = (np.load(folder / "case_1.npz")["probabilities"] for folder in (
        tmp_path, model_of(world, SECOND) / "fold_0" / "validation"))
    assert np.allclose(written, validated, atol=2e-3)


def test_the_report_and_the_export_know_the_cascade(world, tmp_path):
    page = tmp_path / "report.html"
    assert report.main([str(world.number), "-c", SECOND, "-o", str(page), "-device", "cpu", "--cases", "1"]) == 0
    assert "latent" in page.read_text()
    assert export.main(["-d", str(world.number), "-o", str(tmp_path / "model.zip")]) == 0


@pytest.mark.slow
def test_the_choice_is_made_among_both_stages_and_their_pair(world, monkeypatch):
    monkeypatch.setattr(search, "STEPS", (1,))
    monkeypatch.setattr(search, "SAMPLES", (1,))
    monkeypatch.setattr(search, "_FIRST_SAMPLES", (1,))
    assert find_best_configuration.main([str(world.number), "-c", FIRST, SECOND, "-f", "0", "-device", "cpu", "--cases",
                                         "1"]) == 0
    chosen = json.loads((world.results / "ldseg_inference.json").read_text())["LDSegTrainer__LDSegPlans"]
    assert {tuple(row["configurations"]) for row in chosen["evidence"]["finalists"]} == {
        (FIRST,), (SECOND,), (FIRST, SECOND)}
