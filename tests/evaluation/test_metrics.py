import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ldseg_auto.evaluation.metrics import dice


def test_counts_by_hand():
    prediction = np.array([[1, 1, 0], [2, 0, 0]])
    truth = np.array([[1, 0, 1], [2, 2, 2]])
    assert dice(prediction, truth, 1) == pytest.approx(2 * 1 / (2 + 2))
    assert dice(prediction, truth, 2) == pytest.approx(2 * 1 / (1 + 3))


def test_empty_structures():
    empty, full = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert dice(empty, empty, 1) == 1.0
    assert dice(full, empty, 1) == 0.0
    assert dice(empty, full, 1) == 0.0


def test_refuses_other_shape():
    with pytest.raises(ValueError, match="must be equal"):
        dice(np.zeros((2, 2)), np.zeros((2, 3)), 1)


@given(arrays(np.uint8, (4, 5), elements=st.integers(0, 2)), arrays(np.uint8, (4, 5), elements=st.integers(0, 2)))
def test_symmetric_and_bounded(first, second):
    value = dice(first, second, 1)
    assert 0 <= value <= 1
    assert value == dice(second, first, 1)
    assert dice(first, first, 1) == 1.0
