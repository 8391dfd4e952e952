"""Reliability bins against counting by hand."""

import numpy as np
import pytest

from ldseg_auto.evaluation.calibration import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    confidence_and_correct,
    confidence_bins,
    error_detection_auroc,
    expected_calibration_error,
    fit_line,
    fit_temperature,
    interval_scale,
    reliability_bins,
)


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


def test_expected_calibration_error_by_hand():
    bins = reliability_bins(np.array([0.95, 0.95, 0.95, 0.55]), np.array([True, True, False, True]), 10)
    assert expected_calibration_error(bins) == pytest.approx(3 / 4 * (0.95 - 2 / 3) + 1 / 4 * 0.45)
    assert expected_calibration_error(np.zeros((3, 10))) == 0


def test_adaptive_calibration_error_by_hand():
    confidence, correct = np.array([0.9, 0.6, 0.8, 0.7]), np.array([True, False, True, True])
    expected = (abs(0.65 - 0.5) + abs(0.85 - 1)) / 2
    assert adaptive_calibration_error(confidence, correct, 2) == pytest.approx(expected)
    assert adaptive_calibration_error(np.zeros(0), np.zeros(0, bool)) == 0


def test_risk_coverage_rewards_the_right_order():
    risk = np.array([0.0, 0.1, 0.5])
    good = area_under_risk_coverage(np.array([0.9, 0.8, 0.1]), risk)
    assert good == pytest.approx((0 + 0.05 + 0.2) / 3)
    assert area_under_risk_coverage(np.array([0.1, 0.8, 0.9]), risk) > good


def test_error_detection_is_the_area_under_the_roc_curve():
    from sklearn.metrics import roc_auc_score
    rng = np.random.default_rng(0)
    wrong = rng.random(500) < 0.2
    uncertainty = np.round(rng.random(500) + 0.3 * wrong, 1)  # with ties
    assert error_detection_auroc(uncertainty, wrong) == pytest.approx(roc_auc_score(wrong, uncertainty))
    assert np.isnan(error_detection_auroc(uncertainty, wrong & False))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_that_spoilt_the_probabilities_is_found(temperature):
    rng = np.random.default_rng(0)
    logs = rng.normal(0, 2, (20_000, 3))
    true = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    labels = (true.cumsum(1) < rng.random((20_000, 1))).sum(1)
    assert fit_temperature(logs * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_intervals_hold_nine_of_ten_new_cases():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        units = rng.uniform(0.5, 5, 21)
        errors = rng.standard_t(3, 21) * units
        held.append(abs(errors[-1]) <= interval_scale(errors[:-1], units[:-1]) * units[-1])
    assert 0.87 < np.mean(held) < 0.97
    assert interval_scale(np.ones(8), np.ones(8)) is None
    assert interval_scale(np.arange(9.0), np.ones(9)) == 8
    assert interval_scale(np.arange(9.0), np.full(9, 2.0), 0.5) == 2


def test_a_line_through_what_is_promised_and_what_is_met():
    expected = np.linspace(0.8, 0.9, 9)
    assert fit_line(expected, 2 * expected - 0.9) == pytest.approx((-0.9, 2))
    level = fit_line(expected, 1.7 - expected)
    assert level == pytest.approx((0.85, 0)), "it never falls"
    assert fit_line(np.full(9, 0.9), np.linspace(0, 1, 9)) == pytest.approx((0.5, 0))
    assert fit_line(expected[:8], expected[:8]) is None


def test_voxels_that_count():
    truth, prediction = np.zeros((30, 30, 30), int), np.zeros((30, 30, 30), int)
    probabilities = np.stack([np.full(truth.shape, 0.9), np.full(truth.shape, 0.1)])
    assert confidence_bins(probabilities, truth, prediction, None, None).sum() == 0, "no foreground, no box"
    truth[15, 15, 15], truth[15, 15, 16] = 1, 2
    confidence, correct = confidence_and_correct(probabilities, truth, prediction, None, 2)
    assert len(confidence) == 11 ** 3 - 1 and (~correct).sum() == 1 and confidence[0] == pytest.approx(0.9)
    regions, right = confidence_and_correct(probabilities, truth, prediction, [(1, 2), (2,)], None)
    assert len(regions) == 2 * 11 * 11 * 12
    # the first region is given to every voxel, the second to none, which two and one of them have
    assert right.sum() == 2 + 11 * 11 * 12 - 1
