"""Reliability bins against counting by hand."""

import numpy as np
import pytest

from ldseg_auto.evaluation.calibration import reliability_bins


def test_by_hand():
    confidence = np.array([[0.05, 0.5, 0.55], [0.74, 0.75, 1.0]], np.float32)
    correct = np.array([[False, True, False], [True, True, True]])
    voxels, total, right = reliability_bins(confidence, correct, 4)
    assert voxels.tolist() == [1, 0, 3, 2], "a limit between two bins belongs to the upper one, 1 to the last"
    assert right.tolist() == [0, 0, 2, 2]
    assert total == pytest.approx([0.05, 0, 0.5 + 0.55 + 0.74, 1.75])


def test_cases_are_pooled_by_adding():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=1000)
    correct = rng.uniform(size=1000) < confidence
    parts = sum(reliability_bins(confidence[part], correct[part], 10) for part in (slice(300), slice(300, None)))
    assert parts == pytest.approx(reliability_bins(confidence, correct, 10))
    assert parts[0].sum() == 1000
    assert np.abs(parts[2] / parts[0] - parts[1] / parts[0]).max() < 0.15, "calibrated by construction"


def test_more_bins_are_narrower():
    confidence = np.array([0.1, 0.3])
    assert reliability_bins(confidence, confidence > 0, 2)[0].tolist() == [2, 0]
    assert reliability_bins(confidence, confidence > 0, 4)[0].tolist() == [1, 1, 0, 0]


def test_nothing_is_counted_as_nothing():
    assert not reliability_bins(np.empty(0), np.empty(0, bool), 3).any()


@pytest.mark.parametrize("confidence, correct, message", [
    ([0.5, 0.6], [True], "must be equal"), ([1.1], [True], "must lie in"), ([-0.1], [True], "must lie in"),
    ([np.nan], [True], "must lie in")])
def test_bad_values_are_refused(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        reliability_bins(np.array(confidence), np.array(correct), 5)
