"""Which voxels the diagram counts."""

import numpy as np
import pytest

from ldseg_auto.evaluation import calibration
from ldseg_auto.evaluation.calibration import BINS, MARGIN_VOXELS, confidence_bins
from ldseg_auto.report.reliability import section


def one_structure(edge: int = 30):
    """Probabilities (2, z, y, x) and truth of a cube in the middle; all voxels are predicted with .8."""
    truth = np.zeros((edge,) * 3, int)
    truth[14:16, 14:16, 14:16] = 1
    foreground = np.where(truth == 1, 0.8, 0.2).astype(np.float16)
    return np.stack([1 - foreground, foreground]), truth, truth.copy()


def test_a_box_around_the_foreground_is_counted():
    probabilities, truth, prediction = one_structure()
    bins = confidence_bins(probabilities, truth, prediction, None, None)
    assert bins.shape == (3, BINS)
    assert bins[0].sum() == bins[2].sum() == (2 + 2 * MARGIN_VOXELS) ** 3
    assert bins[1].sum() / bins[0].sum() == pytest.approx(0.8, abs=1e-3)


def test_what_is_predicted_far_away_widens_the_box():
    probabilities, truth, prediction = one_structure()
    probabilities[:, 0, 0, 0] = (0.1, 0.9)
    prediction[0, 0, 0] = 1
    bins = confidence_bins(probabilities, truth, prediction, None, None)
    assert bins[0].sum() == (16 + MARGIN_VOXELS) ** 3
    assert bins[0].sum() - bins[2].sum() == 1


def test_ignored_voxels_are_left_out():
    probabilities, truth, prediction = one_structure()
    truth[14, 14, 14] = 2
    assert confidence_bins(probabilities, truth, prediction, None, 2)[0].sum() == (2 + 2 * MARGIN_VOXELS) ** 3 - 1


def test_regions_are_compared_one_by_one():
    truth = np.array([[[0, 1, 2]]])
    probabilities = np.array([[0.3, 0.9, 0.9], [0.1, 0.6, 0.6]]).reshape(2, 1, 1, 3)
    voxels, confidence, correct = confidence_bins(probabilities, truth, truth, [(1, 2), 2], None)
    assert voxels.sum() == 6 and correct.sum() == 5
    assert confidence.sum() == pytest.approx(0.7 + 0.9 + 0.9 + 0.9 + 0.6 + 0.6)


def test_without_foreground_nothing_is_counted():
    empty = np.stack([np.ones((3, 3, 3)), np.zeros((3, 3, 3))])
    nothing = np.zeros((3, 3, 3), int)
    assert not confidence_bins(empty, nothing, nothing, None, None).any()


def test_the_section_says_what_it_counts(monkeypatch):
    bins = confidence_bins(*one_structure(), None, None)
    labels, regions = (" ".join(section(bins, 7, flag)) for flag in (False, True))
    assert "1,728 voxels of 7 cases" in labels and f"{MARGIN_VOXELS} voxels wider" in labels and "0.80: 1.00" in labels
    assert "most probable label" in labels and "Each region" in regions
    monkeypatch.setattr(calibration, "MARGIN_VOXELS", 1)
    assert confidence_bins(*one_structure(), None, None)[0].sum() == 4 ** 3
