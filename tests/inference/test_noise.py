"""The noise field: a function of its place and key alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldseg_auto.inference.noise import NoiseKey, noise_tile

KEY = NoiseKey(fold=0, mirror=0, sample=0)


@settings(max_examples=30, deadline=None)
@given(start=st.tuples(*[st.integers(0, 40)] * 3), size=st.tuples(*[st.integers(1, 20)] * 3))
def test_a_tile_is_a_window_into_one_field(start, size):
    field = noise_tile(7, KEY, 2, (0, 0, 0), (60, 60, 60))
    window = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    assert np.array_equal(noise_tile(7, KEY, 2, start, size), field[(slice(None), *window)])


@pytest.mark.parametrize("other", [
    (8, KEY, None), (7, NoiseKey(1, 0, 0), None), (7, NoiseKey("all", 0, 0), None), (7, NoiseKey(0, 1, 0), None),
    (7, NoiseKey(0, 0, 1), None), (7, NoiseKey(0, 0, 0, 1), None), (7, KEY, 3)], ids=str)
def test_every_part_of_the_key_gives_other_noise(other):
    seed, key, slice_index = other
    a = noise_tile(7, KEY, 1, (0, 0), (32, 32), slice_index=0)
    b = noise_tile(seed, key, 1, (0, 0), (32, 32), slice_index=0 if slice_index is None else slice_index)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.15
    assert not np.isin(a, b).any()


def test_it_is_standard_normal_and_white():
    field = noise_tile(0, KEY, 4, (0, 0, 0), (32, 32, 32))
    assert field.dtype == np.float32
    assert abs(field.mean()) < 0.01
    assert abs(field.std() - 1) < 0.01
    assert abs(np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(field[0].ravel(), field[1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("key", [NoiseKey(0, 256, 0), NoiseKey(0, 0, -1), NoiseKey(1 << 16, 0, 0)], ids=str)
def test_keys_out_of_range_are_refused(key):
    with pytest.raises(ValueError, match="bits"):
        key.packed()
