"""Tiles cover every voxel and lie on the latent's grid."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ldseg_auto.inference.tiling import Tile, padded_shape, tiles


@st.composite
def images(draw):
    dimension = draw(st.sampled_from([2, 3]))
    stride = tuple(draw(st.sampled_from([1, 2, 4, 8])) for _ in range(dimension))
    patch = tuple(step * draw(st.integers(1, 5)) for step in stride)
    shape = tuple(draw(st.integers(1, 60)) for _ in range(dimension))
    return shape, patch, stride, draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))


@settings(max_examples=200, deadline=None)
@given(images())
def test_every_voxel_is_covered_by_tiles_on_the_grid(image):
    shape, patch, stride, step_size = image
    padded = padded_shape(shape, patch, stride)
    assert all(p >= s for p, s in zip(padded, shape, strict=True))
    assert all(p - s < max(t, k - s + t) for p, s, t, k in zip(padded, shape, stride, patch, strict=True))
    covered = np.zeros(padded, int)
    seen = set()
    for tile in tiles(padded, patch, stride, step_size):
        assert all(start % step == 0 for start, step in zip(tile.start, stride, strict=True))
        assert covered[tile.slicer].shape == patch
        covered[tile.slicer] += 1
        seen.add(tile)
    assert covered.min() >= 1
    assert len(seen) == len(list(tiles(padded, patch, stride, step_size)))


def test_slices_of_a_volume_are_tiled_one_by_one():
    result = list(tiles((3, 8, 12), (8, 8), (4, 4), 0.5))
    assert result == [Tile(start, (8, 8), z) for z in range(3) for start in ((0, 0), (0, 4))]
    assert result[0].slicer == (0, slice(0, 8), slice(0, 8))


def test_step_size_has_an_effect():
    def number(step_size):
        return len(list(tiles((64, 64), (16, 16), (4, 4), step_size)))
    assert number(0.25) > number(0.5) > number(1.0) == 16


def test_smaller_image_is_padded_to_one_patch():
    assert padded_shape((5, 70), (32, 32), (4, 8)) == (32, 72)
