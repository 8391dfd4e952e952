"""Resampling by rows against nnU-Net's of the whole volume."""

from functools import partial

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference import resampling as module
from ldseg_auto.inference.resampling import plan_resampling
from ldseg_auto.inference.volumes import VolumeInMemory

EVEN, THICK = (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)
OPTIONS = {"is_seg": False, "order_z": 0, "force_separate_z": None}
CASES = {  # shape, new shape, spacing, new spacing, options that differ from nnU-Net's default
    "coarser and finer": ((9, 20, 17), (14, 11, 17), EVEN, EVEN, {}),
    "more than a block": ((70, 5, 6), (101, 40, 45), EVEN, EVEN, {}),
    "thick slices, more of them": ((7, 20, 17), (15, 11, 21), THICK, EVEN, {}),
    "thick slices become fewer": ((15, 20, 17), (7, 30, 21), EVEN, THICK, {}),
    "thick slices, in plane alone": ((7, 20, 17), (7, 11, 21), THICK, THICK, {}),
    "thick slices along the last axis": ((9, 20, 7), (14, 11, 16), THICK[::-1], EVEN, {}),
    "thick slices along the middle axis": ((9, 7, 20), (14, 16, 11), (1.0, 5.0, 1.0), EVEN, {}),
    "nothing to do": ((9, 20, 17), (9, 20, 17), EVEN, THICK, {}),
    "one slice": ((1, 20, 17), (1, 33, 12), (999.0, 1.0, 1.0), (999.0, 0.6, 1.4), {}),
    "forced": ((7, 20, 17), (15, 11, 21), THICK, EVEN, {"force_separate_z": False}),
    "another threshold": ((7, 20, 17), (15, 11, 21), THICK, EVEN, {"separate_z_anisotropy_threshold": 6}),
}


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_slabs_are_those_of_nnunets_result(case, order, monkeypatch):
    shape, new_shape, spacing, new_spacing, changes = CASES[case]
    function = partial(resample_data_or_seg_to_shape, **OPTIONS | {"order": order} | changes)
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    expected = function(values.copy(), new_shape, spacing, new_spacing)
    monkeypatch.setattr(module, "_SLAB_VALUES", 2 * 3 * new_shape[1] * new_shape[2])  # 3 rows each
    plan = plan_resampling(function, shape, new_shape, spacing, new_spacing)
    parts = list(plan.slabs(VolumeInMemory(values), plan.limits(values) if plan.clip else None))
    assert [first for first, _ in parts] == list(range(0, new_shape[0], 3))
    assert torch.cat([rows for _, rows in parts], 1).numpy() == pytest.approx(expected, abs=1e-5)
    assert plan.clip == (order == 3 and shape != new_shape)


def test_few_rows_are_read_for_few_rows():
    function = partial(resample_data_or_seg_to_shape, **OPTIONS, order=1)

    class Recorder(VolumeInMemory):
        def read(self, first, last):
            read.append(last - first)
            return super().read(first, last)

    read: list[int] = []
    plan = plan_resampling(function, (60, 8, 8), (90, 12, 12), EVEN, EVEN)
    plan.rows(Recorder(np.zeros((1, 60, 8, 8), np.float32)), 30, 36)
    assert max(read) <= 6


@pytest.mark.parametrize("function", [
    no_resampling_hack, partial(resample_data_or_seg_to_shape, **OPTIONS | {"is_seg": True}),
    partial(resample_data_or_seg_to_shape, **OPTIONS | {"order_z": 1}),
    partial(resample_data_or_seg_to_shape, **OPTIONS, another=1)])
def test_other_functions_are_left_to_nnunet(function):
    assert plan_resampling(function, (4, 4, 4), (8, 8, 8), EVEN, EVEN) is None


def test_an_image_of_which_nothing_is_left_is_named():
    """nnU-Net rounds its size to 0 and goes on."""
    function = partial(resample_data_or_seg_to_shape, **OPTIONS, order=3)
    with pytest.raises(LDSegError, match=r"\(1, 20, 20\) voxels of \(0.4, 1.0, 1.0\) mm are none of"):
        plan_resampling(function, (1, 20, 20), (0, 20, 20), (0.4, 1.0, 1.0), (2.0, 1.0, 1.0))
