"""Bound names are put back, come what may."""

import math

import pytest

from ldseg_auto.inference.binding import bound


def test_names_are_bound_and_put_back():
    original = math.sqrt
    with pytest.raises(RuntimeError), bound(math, sqrt=abs):
        assert math.sqrt(-3) == 3
        raise RuntimeError
    assert math.sqrt is original


def test_a_name_that_is_gone_is_an_error():
    with pytest.raises(AttributeError), bound(math, square_root=abs):
        pass
