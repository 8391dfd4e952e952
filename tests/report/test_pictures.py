"""Arrays as pictures, read back."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldseg_auto.report import pictures
from ldseg_auto.report.pictures import (
    heat_url,
    image_url,
    is_colour,
    labels_url,
    limits,
    palette,
    slice_pictures,
    window,
)
from ldseg_auto.report.volumes import Volumes

WHOLE = (slice(None),) * 3


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def test_colours_and_names_of_label_values():
    found = palette({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
    assert found.names == {1: "whole", 2: "whole, core"}
    assert [entry["name"] for entry in found.legend()] == ["whole", "whole, core", "ignored"]
    assert len(set(found.colours.values())) == 3
    many = palette({"background": 0, **{f"c{i}": i for i in range(1, 40)}})
    assert len(set(many.colours.values())) == 39
    assert all(len(colour) == 7 for colour in many.colours.values())


def test_grey_values_are_shown_between_two_percentiles():
    image = np.linspace(-1000, 1000, 4000, dtype=np.float32).reshape(1, 4, 20, 50)
    shown = window(image, WHOLE)
    assert shown.shape == (4, 20, 50) and shown.dtype == np.uint8
    assert shown.min() == 0 and shown.max() == 255 and abs(int(shown[2, 0, 0]) - 127) < 3
    assert not window(np.full((1, 2, 3, 3), 7.0), WHOLE).any(), "nothing to see in a constant image"
    assert window(np.where(image > 990, np.nan, image), WHOLE).shape == shown.shape
    assert (window(image, (slice(1, 3), slice(None), slice(None))) == shown[1:3]).all(), "a part looks as in the whole"


def test_percentiles_of_many_values_come_from_a_sample(monkeypatch):
    image = np.random.default_rng(0).normal(size=(20, 50, 50))
    exact = limits(image)
    monkeypatch.setattr(pictures, "_SAMPLE", 5003)
    assert limits(image) != exact and limits(image) == pytest.approx(exact, abs=0.2)


def test_flat_pictures_with_three_channels_keep_their_colours():
    colour = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 9)).astype(np.float32)
    assert is_colour(colour) and (window(colour, WHOLE) == colour).all()
    for other in (colour[:2], colour.repeat(2, axis=1), colour - 1, colour / 255):
        assert not is_colour(other) and window(other, WHOLE).ndim == 3
    assert (picture(image_url(window(colour, WHOLE)[:, 0]))[..., :3] == np.moveaxis(colour[:, 0], 0, -1)).all()


def test_labels_let_the_background_through():
    colours = palette({"background": 0, "a": 1, "b": 2})
    shown = picture(labels_url(np.array([[0, 1], [2, 0]]), colours))
    assert (shown[..., 3] > 0).tolist() == [[False, True], [True, False]]
    assert bytes(shown[0, 1, :3]).hex() == colours.colours[1][1:]


def test_uncertainty_gets_brighter():
    shown = picture(heat_url(np.array([[0.0, 0.5, 1.0, 3.0]])))[..., :3].astype(int).sum(-1)[0]
    assert shown[0] < shown[1] < shown[2] == shown[3]


def test_large_slices_are_thinned_alike(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_EDGE", 20)
    image, labels = np.zeros((41, 30), np.uint8), np.zeros((41, 30), int)
    shapes = {picture(url).shape[:2] for url in (image_url(image), heat_url(labels / 2.0),
                                                 labels_url(labels, palette({"background": 0, "a": 1})))}
    assert shapes == {(14, 10)}


def test_large_images_are_compressed(monkeypatch):
    image = np.zeros((30, 30), np.uint8)
    assert image_url(image).startswith("data:image/png")
    monkeypatch.setattr(pictures, "_LOSSLESS_PIXELS", 100)
    assert image_url(image).startswith("data:image/jpeg")


@pytest.fixture
def volumes() -> Volumes:
    truth, prediction = np.zeros((5, 4, 8), int), np.zeros((5, 4, 8), int)
    truth[1, :2] = 1
    prediction[1, :2, :7] = 1
    prediction[3, 0] = 1
    return Volumes(np.random.default_rng(0).normal(size=(1, 5, 4, 8)), truth, prediction, None, False,
                   {"spacing": (3.0, 2.0, 0.5)})


def test_which_slices_are_shown(volumes):
    colours = palette({"background": 0, "a": 1, "ignore": 2})
    first, = slice_pictures(volumes, colours, with_errors=False)
    assert (first["slice"], first["of"], first["wrong"], first["entropy"]) == (2, 5, 2, None)
    assert first["aspect"] == pytest.approx(8 * 0.5 / (4 * 2))
    both = slice_pictures(volumes, colours, with_errors=True)
    assert [(each["slice"], each["wrong"]) for each in both] == [(2, 2), (4, 8)]
    volumes.truth[3] = 2
    alone, = slice_pictures(volumes, colours, with_errors=True)
    assert alone["slice"] == 2 and alone["wrong"] == 2, "ignored voxels are neither structure nor wrong"


@pytest.mark.parametrize("regions", [False, True])
def test_uncertainty_is_a_share_of_the_highest(regions, volumes):
    probabilities = np.zeros((2, 5, 4, 8), np.float32)
    probabilities[0] = 1
    probabilities[:, 1] = 0.5
    known = replace(volumes, probabilities=probabilities, regions=regions)
    shown, = slice_pictures(known, palette({"background": 0, "a": 1}), with_errors=False)
    assert (picture(shown["entropy"]) == picture(heat_url(np.ones((4, 8))))).all()
    assert not known.uncertainty((slice(0, 1), slice(None), slice(None))).any()


def test_mutual_information_is_shown_up_to_its_highest(volumes):
    information, colours = np.zeros((5, 4, 8), np.float32), palette({"background": 0, "a": 1})
    for peak, most in ((0.0, 0.05), (0.1, 0.1), (0.2, 0.2)):
        information[4, 0, 0], information[1, 0, 0] = peak, peak / 4
        shown, = slice_pictures(replace(volumes, mutual_information=information), colours, with_errors=False)
        assert shown["most_mutual_information"] == most
        assert shown["mutual_information"] == heat_url(information[1] / most)
    assert slice_pictures(volumes, colours, with_errors=False)[0]["mutual_information"] is None


def test_where_the_truth_is_empty_the_prediction_chooses(volumes):
    volumes.truth[:] = 0
    volumes.prediction[1] = 0
    shown, = slice_pictures(volumes, palette({"background": 0, "a": 1}), with_errors=False)
    assert shown["slice"] == 4
