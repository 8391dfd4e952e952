import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ldseg_auto.evaluation.statistics import bootstrap_interval, holm, mean_over_classes, paired_wilcoxon

NAN = float("nan")


@pytest.mark.parametrize("values, mean", [
    ([1.0, 2.0, 6.0], 3.0), ([1.0, NAN, 3.0], 2.0), ([[1.0, 0.0], [3.0, NAN], [5.0, 1.0]], (3 + 0.5) / 2),
    ([[2.0, NAN], [4.0, NAN]], 3.0)])
def test_mean_of_the_classes_means(values, mean):
    assert mean_over_classes(np.array(values)) == pytest.approx(mean)


def test_nothing_has_no_mean():
    assert np.isnan(mean_over_classes(np.array([NAN, NAN])))


def test_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    inside = [low <= 3.0 <= high for low, high in
              (bootstrap_interval(rng.normal(3.0, 1.0, 40), resamples=300, seed=k) for k in range(200))]
    assert 0.88 < np.mean(inside) < 0.98


def test_interval_agrees_with_theory_and_depends_on_what_is_configured():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.01)
    assert bootstrap_interval(values) == (low, high), "the same seed"
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval(values, resamples=500) != (low, high)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert narrow[1] - narrow[0] < 0.5 * (high - low)


def test_cases_are_drawn_with_all_their_classes():
    one = np.random.default_rng(2).normal(size=50)
    assert bootstrap_interval(np.stack([one, -one], 1)) == pytest.approx((0, 0), abs=1e-12)
    assert bootstrap_interval(np.stack([one, one], 1)) == pytest.approx(bootstrap_interval(one))


def test_batches_change_nothing(monkeypatch):
    values = np.random.default_rng(2).normal(size=(30, 3))
    whole = bootstrap_interval(values)
    monkeypatch.setattr("ldseg_auto.evaluation.statistics._ELEMENTS", 100)
    assert bootstrap_interval(values) == pytest.approx(whole)


@pytest.mark.parametrize("values, interval", [
    ([], None), ([1.0], None), ([1.0, NAN], None), ([1.0, 1.0, NAN], (1.0, 1.0)),
    ([[NAN, NAN], [2.0, NAN], [2.0, NAN]], (2.0, 2.0))])
def test_few_cases(values, interval):
    assert bootstrap_interval(np.array(values)) == interval


def test_wilcoxon_by_hand_and_by_scipy():
    test = paired_wilcoxon(np.arange(1.0, 6.0), np.zeros(5))
    assert (test.n, test.n_zero, test.mean_difference) == (5, 0, 3.0)
    assert test.p_value == pytest.approx(2 / 2 ** 5)  # all signs equal: the most extreme of 2^5, on either side
    first, second = np.random.default_rng(3).normal(size=(2, 80))
    assert paired_wilcoxon(first, second).p_value == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert paired_wilcoxon(second, first).mean_difference == -paired_wilcoxon(first, second).mean_difference


@pytest.mark.parametrize("first, second, n, zeros, p", [
    ([1.0, 2.0], [1.0, 2.0], 2, 2, 1.0), ([], [], 0, 0, 1.0), ([2.0], [1.0], 1, 0, 1.0),
    ([1.0, NAN, 3.0], [1.0, 2.0, NAN], 1, 1, 1.0),
    ([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], 4, 1, 2 / 2 ** 3)])  # the zero cannot change its sign
def test_ties_and_zeros(first, second, n, zeros, p):
    test = paired_wilcoxon(np.array(first), np.array(second))
    assert (test.n, test.n_zero, test.p_value) == (n, zeros, pytest.approx(p))


def test_zeros_make_it_more_careful():
    differences = np.random.default_rng(4).normal(0.4, 1, 60)
    with_zeros = np.concatenate([differences, np.zeros(40)])
    assert paired_wilcoxon(with_zeros, np.zeros(100)).p_value > paired_wilcoxon(differences, np.zeros(60)).p_value


def test_pairs_have_two():
    with pytest.raises(ValueError, match="no pairs"):
        paired_wilcoxon(np.zeros(2), np.zeros(3))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8))  # torch may flush them
def test_holm_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 and c <= min(1, p * len(p_values)) for p, c in zip(p_values, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p_values, kind="stable")] == sorted(corrected)
