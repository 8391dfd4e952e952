"""The order of channels."""

import numpy as np
import pytest

from ldseg_auto.checks.channels import MIN_CASES, better_order, features, summarise

rng = np.random.default_rng(0)


def _case(scale: float = 1.0) -> list[list[float]]:
    """Three looks: skewed from 0 on, symmetric with an offset, mostly background."""
    sparse = rng.normal(200, 20, 4000) * (rng.random(4000) > 0.8)
    return [features(v * scale) for v in (rng.exponential(100, 4000), rng.normal(500, 30, 4000), sparse)]


@pytest.fixture(scope="module")
def summary():
    return summarise([_case() for _ in range(8)])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_known_order_is_left_alone_at_any_scale(scale, summary):
    assert better_order(_case(scale), summary) is None


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [1, 2, 0]])
def test_interchanged_channels_are_put_right(order, summary):
    case = _case()
    found = better_order([case[i] for i in order], summary)
    assert found is not None and [order[i] for i in found] == [0, 1, 2]


def test_channels_unlike_any_training_channel_are_no_interchange(summary):
    strange = [features(rng.uniform(-1, 1, 4000) ** 9) for _ in range(3)]
    assert better_order(strange, summary) is None


def test_channels_that_look_alike_are_no_interchange():
    alike = summarise([[features(rng.normal(0, 1, 4000)) for _ in range(2)] for _ in range(8)])
    assert not any(better_order([features(rng.normal(0, 1, 4000)) for _ in range(2)], alike) for _ in range(20))


def test_too_few_cases_or_one_channel_tell_nothing():
    assert summarise([_case() for _ in range(MIN_CASES - 1)]) == []
    assert summarise([_case()[:1] for _ in range(8)]) == []
    assert better_order(_case(), []) is None


def test_blank_channels_have_features():
    assert features(np.zeros((2, 3, 4))) == [0.0] * 6
