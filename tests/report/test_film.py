"""The film strip against what the predictor makes of the same tile."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ldseg_auto.demo.pictures import fullest_slice
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.report import film
from ldseg_auto.report.cases import Case
from ldseg_auto.report.film import film_of, section
from ldseg_auto.report.pictures import palette

CPU = torch.device("cpu")


def load(world, model: str, **options) -> tuple[LDSegPredictor, Case]:
    predictor = LDSegPredictor(device=CPU, allow_tqdm=False, use_mirroring=False, **options)
    predictor.initialize_from_trained_model_folder(str(world[model]), [0])
    raw = world["nnUNet_raw"] / world["model"].parent.name
    case = Case("case_07", 0, (0.5, 0.5), ((1, 1),) * 2, 0.001, Path("p"), None,
                (raw / "imagesTr" / "case_07_0000.nii.gz",), raw / "labelsTr" / "case_07.nii.gz")
    return predictor, case


@pytest.mark.parametrize("model, eta", [("model", 0.0), ("model_2d", 0.0), ("model_2d", 1.0)])
def test_it_ends_where_prediction_ends(model, eta, in_small_world):
    predictor, case = load(in_small_world, model, samples=1, steps=film.STEPS, seed=0, eta=eta)
    made = film_of(predictor, case)
    assert made.timesteps == (1000, 875, 750, 625, 500, 375, 250, 125, 0)
    assert len(made.noisy) == 9 and len(made.estimates) == 8
    assert (made.noisy[-1] == made.estimates[-1]).all()

    image, truth = film._preprocessed(predictor, case)
    predicted = predictor.mean_probabilities(image, 0).argmax(0).numpy()
    truth = truth[0].numpy()
    index = fullest_slice(truth) if model == "model" else int(np.count_nonzero(truth, axis=(1, 2)).argmax())
    assert (made.noisy[-1] == predicted[index]).all()
    assert (made.truth == truth[index]).all(), "without the padding"
    assert made.image.shape == made.truth.shape == (18, 16)
    assert made.aspect == pytest.approx(16 / 18)


def test_it_is_the_same_every_time_and_as_long_as_asked(in_small_world, monkeypatch):
    monkeypatch.setattr(film, "STEPS", 3)
    films = [film_of(*load(in_small_world, "model_2d")) for _ in range(2)]
    assert films[0].timesteps == (1000, 667, 333, 0)
    for a, b in zip(films[0].noisy, films[1].noisy, strict=True):
        assert (a == b).all()
    assert not (films[0].noisy[0] == films[0].noisy[-1]).all(), "noise is no segmentation"
    monkeypatch.setattr(film, "_SEED", 1)
    assert not (film_of(*load(in_small_world, "model_2d")).noisy[0] == films[0].noisy[0]).all()


def test_nothing_is_left_on_the_network(in_small_world):
    predictor, case = load(in_small_world, "model_2d")
    film_of(predictor, case)
    assert not predictor.network.denoiser._forward_hooks


def test_the_section_has_a_picture_a_step(in_small_world):
    predictor, case = load(in_small_world, "model_2d")
    text = " ".join(section(film_of(predictor, case), case, 2, 5, palette({"background": 0, "a": 1, "b": 2})))
    assert text.count("<figure>") == 2 + 9 + 8
    assert "case_07" in text and "5 samples of 2 steps" in text and "t = 875" in text
