"""The patch of a case on which the signs are measured, and what the training says of them."""

import json

import numpy as np
import pytest
import torch

from ldseg_auto.evaluation.latent_signs import SERIES
from ldseg_auto.trainers.signs_report import central_patch, save_summary

IGNORE = 3


def case(ignored_corner=True):
    """Labels (1, z, y, x) of one cube; the far end is ignored. The image holds the labels."""
    labels = np.zeros((1, 20, 20, 20), np.int8)
    labels[0, 2:6, 2:6, 2:6] = 1
    if ignored_corner:
        labels[0, 10:] = IGNORE
    return labels.astype(np.float32), labels


@pytest.mark.parametrize("patch", [[8, 8, 8], [8, 8]])
def test_around_the_foreground_and_not_around_what_is_ignored(patch):
    image, labels = central_patch(*case(), patch, IGNORE)
    assert labels.shape[1:] == image.shape[1:] == tuple(patch)
    assert (labels == 1).sum() == 4 ** len(patch)
    assert np.array_equal(image[labels >= 0], labels[labels >= 0])
    assert not (labels == IGNORE).any()


def test_without_foreground_around_what_is_labelled():
    labels = np.full((1, 20, 20, 20), IGNORE, np.int8)
    labels[0, 1:4, 8:12, 8:12] = 0
    patch = central_patch(np.zeros(labels.shape, np.float32), labels, [8, 8, 8], IGNORE)[1]
    assert (patch == 0).sum() == 3 * 4 * 4
    slice_ = central_patch(np.zeros(labels.shape, np.float32), labels, [8, 8], IGNORE)[1]
    assert (slice_ == 0).sum() == 4 * 4


def test_without_any_label_or_an_ignore_label_around_the_middle():
    image, empty = np.arange(20 ** 3, dtype=np.float32).reshape(1, 20, 20, 20), np.zeros((1, 20, 20, 20), np.int8)
    for labels, ignore in ((empty, None), (empty + IGNORE, IGNORE)):
        assert np.array_equal(central_patch(image, labels, [8, 8, 8], ignore)[0], image[:, 6:14, 6:14, 6:14])
    assert central_patch(*case(ignored_corner=False), [8, 8, 8], None)[1].sum() == 64


def test_one_readable_line_and_a_file(tmp_path):
    per_case = {name: torch.full((3,), value) for name, value in zip(SERIES, (0.98, 0.7, 0.71, 0.9, 0.8, 0.81, 0.9),
                                                                     strict=True)}
    lines = []
    save_summary(per_case, 2, str(tmp_path), lines.append)
    signs, warning = lines
    assert signs.startswith("Signs of latent diffusion on 3 cases: use of the latent 4%, at least 25%: DOES NOT HOLD; ")
    assert "{" not in signs and signs.endswith(": holds.") and "regressor" in warning
    assert json.loads((tmp_path / "latent_signs.json").read_text())["label_coding_holds"]
