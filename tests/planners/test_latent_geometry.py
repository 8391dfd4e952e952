"""The label-coding ceiling against cases with a known answer, and the rule that chooses."""

from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldseg_auto.planners.latent_geometry import (
    LatentCeiling,
    candidate_strides,
    choose_latent,
    grid_is_large_enough,
    label_coding_ceiling,
    smoothing_sigma,
)


def _noise_maps(dim: int, num_classes: int = 3, maps: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, num_classes, (12,) * dim) for _ in range(maps)]


def _balls(radius: float, count: int, edge: int = 48, maps: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    axes = np.indices((edge,) * 3)
    result = []
    for _ in range(maps):
        labels = np.zeros((edge,) * 3, dtype=int)
        for _ in range(count):
            centre = rng.uniform(radius, edge - radius, 3)[:, None, None, None]
            labels[((axes - centre) ** 2).sum(0) < radius ** 2] = 1
        result.append(labels)
    return result


def _half_planes(maps: int = 6) -> list[np.ndarray]:
    """Everything on one side of a plane across the first axis, at varying places."""
    result = []
    for place in range(maps):
        labels = np.zeros((32, 32), dtype=int)
        labels[9 + place % 3:] = 1  # both halves of the maps hold every place
        result.append(labels)
    return result


@pytest.mark.parametrize("strides, expected", [
    ([(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(2, 2, 2), (4, 4, 4)]),
    ([(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 2, 2), (2, 4, 4)]),
    ([(1, 1), (2, 2), (1, 1), (2, 1)], [(2, 2), (4, 2)]),
    ([(1, 1)], []),
])
def test_candidates_follow_the_pooling_path(strides, expected):
    assert candidate_strides(strides) == expected


@pytest.mark.parametrize("dim", [2, 3])
def test_as_many_channels_as_block_dimensions_lose_nothing(dim):
    stride = (2,) * dim
    ceiling, = label_coding_ceiling(_noise_maps(dim), 3, stride, channels=(3 * 2 ** dim,))
    assert ceiling.dice_per_class == (1.0, 1.0)
    assert ceiling.mean == ceiling.worst == 1.0


@pytest.mark.parametrize("dim", [2, 3])
def test_noise_cannot_be_coded_in_few_channels(dim):
    ceiling, = label_coding_ceiling(_noise_maps(dim), 3, (4,) * dim, channels=(2,))
    assert ceiling.mean < 0.6


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), edge=st.sampled_from([2, 4]))
def test_more_channels_never_code_smooth_labels_worse(seed, edge):
    rng = np.random.default_rng(seed)
    axes = np.indices((32, 32))
    maps = [(((axes - rng.uniform(8, 24, 2)[:, None, None]) ** 2).sum(0) < rng.uniform(4, 8) ** 2).astype(int)
            for _ in range(8)]
    means = [c.mean for c in label_coding_ceiling(maps, 2, (edge, edge), channels=(1, 2, 4, 8, 32))]
    assert all(later >= earlier - 0.03 for earlier, later in zip(means, means[1:], strict=False))
    assert means[-1] == pytest.approx(1, abs=0.01)


def test_half_planes_need_few_channels():
    few, = label_coding_ceiling(_half_planes(), 2, (4, 4), channels=(3,))  # a border at three places in a block
    assert few.mean == 1.0


def test_a_thin_structure_needs_a_finer_stride_than_a_large_one():
    large = label_coding_ceiling(_balls(14, 1), 2, (4, 4, 4), channels=(4,))[0].mean
    thin_maps = _balls(2, 25)
    thin = label_coding_ceiling(thin_maps, 2, (4, 4, 4), channels=(4,))[0].mean
    thin_fine = label_coding_ceiling(thin_maps, 2, (2, 2, 2), channels=(4,))[0].mean
    assert large > 0.95 > thin
    assert thin_fine > thin + 0.1


def test_constant_maps_are_perfect_and_absent_classes_left_out():
    ceiling, = label_coding_ceiling([np.ones((8, 8), int)], 3, (4, 4), channels=(1,))
    assert ceiling.dice_per_class[0] == 1.0
    assert isnan(ceiling.dice_per_class[1])
    assert ceiling.mean == ceiling.worst == 1.0


def test_size_need_not_be_a_multiple_of_the_stride():
    ceiling, = label_coding_ceiling([np.ones((5, 7), int)] * 2, 2, (4, 4), channels=(8,))
    assert ceiling.mean == 1.0


def test_blocks_with_ignored_voxels_are_dropped():
    clean = _half_planes()
    rng = np.random.default_rng(3)
    dirty = [np.concatenate([labels, rng.integers(0, 2, labels.shape)]) for labels in clean]
    for labels in dirty:
        labels[32::4, ::4] = -1  # one voxel in each block of the noise
    kept = label_coding_ceiling(dirty, 2, (4, 4), channels=(1, 3))
    assert [c.dice_per_class for c in kept] == [c.dice_per_class for c in label_coding_ceiling(clean, 2, (4, 4),
                                                                                               channels=(1, 3))]


def test_regions_are_coded_as_overlapping_outputs():
    maps = _balls(10, 1)
    for labels in maps:
        labels[np.pad(labels, 3)[6:, 3:-3, 3:-3] * labels > 0] = 2
    whole, core = label_coding_ceiling(maps, 3, (4, 4, 4), channels=(8,), regions=[[1, 2], [2]])[0].dice_per_class
    assert 0.9 < core <= 1 and 0.9 < whole <= 1
    same, = label_coding_ceiling(maps, 3, (4, 4, 4), channels=(8,), regions=[[1, 2], [1, 2]])
    assert same.dice_per_class[0] == same.dice_per_class[1]


def test_many_classes_are_coded_one_against_the_rest_with_a_share_of_the_channels():
    maps = _balls(12, 1)
    renamed = [labels * 7 for labels in maps]  # one class of eight occurs
    many = label_coding_ceiling(renamed, 8, (4, 4, 4), channels=(12,))[0]  # log2(8) channels for each component
    region = label_coding_ceiling(maps, 2, (4, 4, 4), channels=(4,), regions=[[1]])[0]
    assert many.method == "one against the rest" and region.method == "joint"
    assert many.dice_per_class[-1] == pytest.approx(region.dice_per_class[0])
    assert all(isnan(d) for d in many.dice_per_class[:-1])


def test_a_small_class_weighs_as_much_as_a_large_one():
    """Else the large ball's border would take all components."""
    maps = _balls(8, 1)
    for labels in maps:
        inside = np.argwhere(labels == 1)
        z, y, x = inside[len(inside) // 2]
        labels[z:z + 7, y:y + 7, x:x + 7] = 2
    large, small = label_coding_ceiling(maps, 3, (4, 4, 4), channels=(16,))[0].dice_per_class
    assert small > 0.85 and large > 0.95


def test_a_class_of_one_map_is_coded_by_itself():
    maps = _balls(8, 1)
    maps[0][maps[0] == 1] = 2
    ceiling = label_coding_ceiling(maps, 3, (4, 4, 4), channels=(16,))[0]
    assert min(ceiling.dice_per_class) > 0.85


def test_large_blocks_are_coded_one_against_the_rest():
    assert label_coding_ceiling(_balls(12, 1), 2, (16, 16, 16), channels=(4,))[0].method == "one against the rest"


def test_limits_and_seed_change_the_estimate_only_a_little():
    maps = _balls(6, 3)
    full = label_coding_ceiling(maps, 2, (4, 4, 4), channels=(4,))[0].mean
    drawn = [label_coding_ceiling(maps, 2, (4, 4, 4), channels=(4,), max_fit_blocks=60, max_blocks=60,
                                  seed=seed)[0].mean for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    assert drawn == pytest.approx([full, full], abs=0.05)


def test_a_stride_of_the_wrong_dimension_is_refused():
    with pytest.raises(ValueError, match="2 axes"):
        label_coding_ceiling([np.zeros((4, 4), int)], 2, (2, 2, 2))


def _ceiling(stride: int, channels: int, *dice: float) -> LatentCeiling:
    return LatentCeiling((stride, stride), channels, dice, "joint")


CEILINGS = [_ceiling(2, 2, .95, .94), _ceiling(2, 4, .99, .98), _ceiling(4, 4, .94, .92), _ceiling(4, 8, .97, .97),
            _ceiling(8, 32, .93, .85)]


@pytest.mark.parametrize("targets, expected", [
    ({}, (4, 4)),
    ({"target_worst": 0.93}, (4, 8)),
    ({"target_mean": 0.98}, (2, 4)),
    ({"target_mean": 0.89, "target_worst": 0.8}, (8, 32)),
    ({"patch": (32, 32), "min_edge": 9}, (2, 2)),
    ({"patch": (32, 32), "min_edge": 4, "target_mean": 0.89, "target_worst": 0.8}, (8, 32)),
])
def test_the_coarsest_then_narrowest_latent_that_clears_is_chosen(targets, expected):
    choice = choose_latent(CEILINGS, **targets)
    assert (choice.ceiling.stride[0], choice.ceiling.channels) == expected
    assert choice.cleared


def test_where_none_clears_the_smallest_shortfall_is_taken_and_flagged():
    choice = choose_latent(CEILINGS, target_mean=0.999)
    assert (choice.ceiling.stride[0], choice.ceiling.channels, choice.cleared) == (2, 4, False)


def test_no_candidate_where_the_grid_would_be_too_small():
    assert choose_latent(CEILINGS, patch=(2, 64), min_edge=2) is None
    assert grid_is_large_enough((1, 64), (1, 8), 8)
    assert not grid_is_large_enough((1, 64), (1, 8), 9)


def test_labels_that_are_ignored_everywhere_are_no_evidence():
    maps = [np.zeros((16, 16), dtype=np.int16)]
    maps[0][4:12, 4:12] = 1
    maps[0][::4] = -1
    for ceiling in label_coding_ceiling(maps, 2, (8, 8)):
        assert ceiling.mean == ceiling.worst == 0


def test_images_are_smoothed_as_far_as_the_latent_is_coarse():
    assert smoothing_sigma((1, 2, 4)) == pytest.approx((0, 0.28, 0.55)) and smoothing_sigma((8, 16)) == (0.55, 0.55)
