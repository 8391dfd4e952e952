"""Arrays in memory give what ldseg_predict writes for their files, to the bit; from one thread or several."""

import gc
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage import io

from ldseg_auto.cli import predict
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.choice import Best, Choice, Finish, Sampler, save_best, save_choice
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.precision import PRECISIONS, VARIABLE

ALONE = ["-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar"]
QUICK = {"samples": 2, "steps": 2, "mirroring": False, "device": "cpu"}
QUICK_FLAGS = ["--samples", "2", "--steps", "2", "--disable_tta"]


def image_of(file: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """As a user reads it: the array and its spacing."""
    if file.suffix == ".png":
        return np.moveaxis(io.imread(file), -1, 0), None
    image = sitk.ReadImage(str(file))
    return sitk.GetArrayFromImage(image)[None], image.GetSpacing()[::-1]


def written_by_the_command(images: Path, out: Path, dataset: str, *flags: str) -> Path:
    assert predict.main(["-i", str(images), "-o", str(out), "-d", dataset, "--save_probabilities", "--uncertainty",
                         *flags, *ALONE]) == 0
    return out


def assert_is_what_was_written(prediction, out: Path, case: str, ending: str) -> None:
    """Maps are written in 65,536 levels (`uncertainty.write_map`); all else to the bit."""
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{case}{ending}")))
    assert prediction.segmentation.dtype == segmentation.dtype == np.uint8
    assert np.array_equal(prediction.segmentation, segmentation)
    probabilities = np.load(out / f"{case}.npz")["probabilities"]
    assert np.array_equal(prediction.probabilities, probabilities.reshape(prediction.probabilities.shape))
    files = {file.name.removeprefix(f"{case}_").removesuffix(".nii.gz"): file
             for file in (out / "uncertainty").glob(f"{case}_*.nii.gz")}
    assert set(prediction.maps) == set(files)
    for name, values in prediction.maps.items():
        assert values.dtype == np.float32 and values.shape == segmentation.shape
        if ending != ".png":
            scale = float(values.max()) / 65535 or 1.0
            values = np.rint(values / scale).astype(np.uint16).astype(np.float32) * np.float32(scale)
        assert np.array_equal(values, sitk.GetArrayFromImage(sitk.ReadImage(str(files[name])))), name
    assert prediction.volumes == json.loads((out / "uncertainty" / f"{case}.json").read_text())


def everything(predictor, image, spacing_mm, **changes):
    return predictor.predict(image, spacing_mm, **{"probabilities": True, "uncertainty": True} | changes)


@pytest.mark.parametrize("model", ["regions", "transposed", "pictures"], indirect=True)
def test_two_folds_of_every_kind(model, tmp_path):
    folder, images = model
    file, = images.iterdir()
    out = written_by_the_command(images, tmp_path / "out", "8", *QUICK_FLAGS, "--seed", "5")
    with LDSegPredictor.from_model(folder, seed=5, **QUICK) as predictor:
        prediction = everything(predictor, *image_of(file))
    assert predictor.folds == [0, 1]
    assert_is_what_was_written(prediction, out, "case", "".join(file.suffixes))
    assert max(float(values.max()) for values in prediction.maps.values()) > 0.01


def test_a_choice_of_two_configurations_and_how_they_are_finished(own_small_world, tmp_path):
    """All that ldseg_find_best_configuration may choose, on anisotropic oblique images that are resampled."""
    model, model_2d, dataset = own_small_world["model"], own_small_world["model_2d"], "7"
    save_choice(model, Choice(Sampler(2, 2, 0.5, False), Finish(temperature=0.7)), {})
    save_choice(model_2d, Choice(Sampler(3, 1, 0.0, False), Finish()), {})
    finish = Finish(1.3, (1, (1, 2)), (2.0, 3.0), ((0.1, 0.8), (0.0, 0.9)))
    save_best(model.parent, "LDSegTrainer", "LDSegPlans", Best(("2d", "3d_fullres"), finish), {})
    image = image_of(own_small_world["images"] / "case_11_0000.nii.gz")
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(own_small_world["images"] / "case_11_0000.nii.gz", images)
    for name, flags, arguments in (("both", [], {}), ("one", ["-c", "3d_fullres"], {"configuration": "3d_fullres"}),
                                   ("plain", ["--plans_defaults", "-c", "2d", *QUICK_FLAGS],
                                    {"use_choice": False, "configuration": "2d", **QUICK})):
        out = written_by_the_command(images, tmp_path / name, dataset, *flags)
        with LDSegPredictor.from_model(7, **{"device": "cpu", **arguments}) as predictor:
            prediction = everything(predictor, *image)
            assert_is_what_was_written(prediction, out, "case_11", ".nii.gz")
            assert np.array_equal(everything(predictor, *image, uncertainty=False).segmentation,
                                  prediction.segmentation)
    assert prediction.volumes["samples"] == 2


@pytest.fixture
def predictor(in_small_world):
    with LDSegPredictor.from_model(in_small_world["model"], **QUICK) as predictor:
        yield predictor


@pytest.fixture
def image(small_world):
    """Anisotropic, and smaller than a patch in one axis."""
    return image_of(small_world["images"] / "case_11_0000.nii.gz")


def test_what_is_not_asked_for_is_not_returned(predictor, image):
    prediction = predictor.predict(*image)
    assert prediction.probabilities is None and not prediction.maps and not prediction.volumes
    assert np.array_equal(prediction.segmentation, predictor.predict(*image, probabilities=True).segmentation)
    assert predictor.predict(*image, probabilities=True).probabilities.shape[0] == 3
    assert set(predictor.predict(*image, uncertainty=True).volumes["classes"]) == {"shell", "core"}


def test_the_form_of_the_image_does_not_matter_and_it_stays_as_it_is(predictor, image):
    image, spacing = image
    image = np.rint(image)
    before = image.copy()
    expected = everything(predictor, image, spacing).probabilities
    leaf = torch.from_numpy(image).clone().requires_grad_()
    for other in (image.astype(np.int16), np.asfortranarray(image, np.float64), leaf, leaf * 1):
        assert np.array_equal(everything(predictor, other, spacing).probabilities, expected)
    assert np.array_equal(image, before) and torch.equal(leaf.detach(), torch.from_numpy(before)) and leaf.grad is None
    assert not np.array_equal(everything(predictor, image, [2 * step for step in spacing]).probabilities, expected)
    with pytest.raises(LDSegError, match="2 channels"):
        predictor.predict(np.concatenate([image, image]), spacing)


def test_a_picture_may_come_without_z(in_small_world, image):
    image, spacing = image
    with LDSegPredictor.from_model(in_small_world["model_2d"], **QUICK) as predictor:
        flat = everything(predictor, image[:, 2], spacing[1:])
        deep = everything(predictor, image[:, 2:3], (999 * max(spacing), *spacing[1:]))
    assert flat.segmentation.shape == image.shape[2:] and flat.probabilities.shape == (3, *image.shape[2:])
    assert np.array_equal(flat.segmentation, deep.segmentation[0])
    assert np.array_equal(flat.probabilities, deep.probabilities[:, 0])
    assert all(np.array_equal(values, deep.maps[name][0]) for name, values in flat.maps.items())


# --- how a predictor is made and ends


def test_every_argument_reaches_the_predictor(in_small_world):
    predictor = LDSegPredictor.from_model("Dataset007_Small", "2d", [0], device=torch.device("cpu"), samples=3, steps=1,
                                          eta=0.5, seed=9, mirroring=True, tile_step_size=0.75, progress_bar=True)
    assert [predictor.folds, predictor.samples, predictor.steps, predictor.eta, predictor.seed] == [[0], 3, 1, 0.5, 9]
    assert predictor.use_mirroring and predictor.tile_step_size == 0.75 and predictor.allow_tqdm
    assert len(predictor.configuration_manager.patch_size) == 2 and predictor.device == torch.device("cpu")
    default = LDSegPredictor.from_model(7, device="cpu")
    assert default.use_mirroring and not default.allow_tqdm and default.samples is None and default.seed == 0
    assert len(default.configuration_manager.patch_size) == 3


@pytest.mark.parametrize("arguments, part", [
    ({"configuration": "2d"}, "holds the model of 3d_fullres, not of 2d"), ({"folds": [3]}, "Fold 3 of"),
    ({"checkpoint_name": "checkpoint_x.pth"}, "no checkpoint_x.pth"), ({"steps": 10 ** 6}, "timesteps"),
    ({"samples": 0}, "samples is 0"), ({"steps": 0}, "steps is 0"), ({"eta": 2}, "eta is 2"),
    ({"tile_step_size": 0}, "step_size"), ({"seed": -1}, "seed is -1"), ({"device": "tpu"}, "Device 'tpu'"),
    ({"dataset_or_folder": 99}, "no data set 99"), ({"dataset_or_folder": "no/such/folder"}, "no data set"),
    ({"dataset_or_folder": 7, "configuration": "3d_lowres"}, "LDSegPlans__3d_lowres"),
    ({"dataset_or_folder": 7, "trainer_name": "Other"}, "Other__LDSegPlans"),
    ({"dataset_or_folder": 7, "plans_name": "Other"}, "LDSegTrainer__Other")])
def test_what_cannot_be_loaded(in_small_world, arguments, part):
    with pytest.raises(LDSegError, match=part):
        LDSegPredictor.from_model(**{"dataset_or_folder": in_small_world["model"], "device": "cpu"} | arguments)


def test_a_model_that_also_takes_a_segmentation(predictor, image, monkeypatch):
    load = LDSegPredictor.initialize_from_trained_model_folder

    def load_a_cascade(self, *arguments):
        load(self, *arguments)
        monkeypatch.setattr(type(self.configuration_manager), "previous_stage_name", "3d_lowres")
    monkeypatch.setattr(LDSegPredictor, "initialize_from_trained_model_folder", load_a_cascade)
    with pytest.raises(LDSegError, match="takes the segmentation of 3d_lowres.*ldseg_predict"):
        LDSegPredictor.from_model(7, device="cpu")
    with pytest.raises(LDSegError, match="takes the segmentation of 3d_lowres"):
        predictor.predict(*image)


def weak(predictor) -> list[weakref.ref]:
    parts = [*predictor.network.parameters(), *predictor.network.buffers(), predictor.network]
    return [weakref.ref(part) for part in [*parts, *predictor.list_of_parameters[0].values()]]


def test_at_the_end_all_weights_are_freed(own_small_world, image):
    save_best(own_small_world["model"].parent, "LDSegTrainer", "LDSegPlans", Best(("2d", "3d_fullres"), Finish()), {})
    with LDSegPredictor.from_model(7, **QUICK) as predictor:
        partner, = predictor._partners
        everything(predictor, *image)
        held = weak(predictor) + weak(partner)
        assert len(held) > 100 and all(each() is not None for each in held)
    gc.collect()
    assert not [each() for each in held if each() is not None]
    for call in (lambda: predictor.predict(*image), lambda: partner.predict(*image),
                 lambda: predictor.predict_single_npy_array(image[0], {"spacing": image[1]}),
                 lambda: predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 8, 8, 8))):
        with pytest.raises(LDSegError, match="closed"):
            call()
    predictor.close()


def test_weights_are_freed_after_an_error(in_small_world, image):
    with pytest.raises(LDSegError), LDSegPredictor.from_model(in_small_world["model"], **QUICK) as predictor:
        held = weak(predictor)
        predictor.predict(image[0])
    gc.collect()
    assert not [each() for each in held if each() is not None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_is_freed(in_small_world, image):
    before = torch.cuda.memory_reserved()
    with LDSegPredictor.from_model(in_small_world["model"], **QUICK | {"device": "cuda"}) as predictor:
        expected = predictor.predict(*image).segmentation
        assert torch.cuda.memory_allocated() > 0
        on_device = predictor.predict(torch.from_numpy(image[0]).cuda(), image[1]).segmentation
    assert np.array_equal(on_device, expected)
    assert torch.cuda.memory_reserved() <= before


def test_a_predictor_without_a_model():
    with pytest.raises(LDSegError, match="none was loaded"):
        LDSegPredictor(device=torch.device("cpu")).predict(np.zeros((1, 4, 4, 4)), (1, 1, 1))


# --- threads


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["plain"], indirect=True)
def test_several_threads_and_predictors_at_once(model, image, precision, monkeypatch):
    """With two folds the weights change during a prediction: without the lock threads mix them. In 16 bits torch keeps
    the weights that it has converted in a place that all threads share."""
    monkeypatch.setenv(VARIABLE, precision)
    predictors = [LDSegPredictor.from_model(model[0], seed=seed, **QUICK | {"samples": 1}) for seed in (0, 1)]
    other = image[0][:, :, ::-1] + 20, image[1]
    work = [(predictors[0], image, False), (predictors[0], image, True), (predictors[0], other, False),
            (predictors[1], image, True)]

    def result(part):
        predictor, image, uncertainty = part
        return everything(predictor, *image, uncertainty=uncertainty)

    alone = [result(part) for part in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(result, work * 2))
    for expected, found in zip(alone * 2, together, strict=True):
        assert np.array_equal(expected.probabilities, found.probabilities)
        assert expected.volumes == found.volumes and expected.maps.keys() == found.maps.keys()
        assert all(np.array_equal(values, found.maps[name]) for name, values in expected.maps.items())
    assert not np.array_equal(alone[0].probabilities, alone[3].probabilities), "another seed"


def test_closing_what_holds_nothing_is_harmless():
    LDSegPredictor(device=torch.device("cpu")).close()
