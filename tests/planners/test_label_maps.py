"""Which part of which case the latent is measured on, and at which spacing."""

from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from ldseg_auto.planners import label_maps
from ldseg_auto.planners.label_maps import IGNORED, LabelMaps, filled_where_sparse, read_labels, spread_evenly
from ldseg_auto.planners.latent_geometry import label_coding_ceiling

RESAMPLE = partial(resample_data_or_seg_to_shape, is_seg=True, order=1, order_z=0, force_separate_z=None)


def _case(folder, name, labels, spacing_xyz_mm=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing_xyz_mm)
    sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    return {"label": str(folder / f"{name}.nii.gz")}


def _box(shape=(20, 30, 40)):
    labels = np.zeros(shape, int)
    labels[8:12, 12:18, 10:30] = 1
    labels[9:11, 13:15, 12:14] = 2
    return labels


def test_names_are_spread_evenly_and_the_others_follow():
    names = [f"{i:02}" for i in range(10)]
    assert spread_evenly(names, 3) == ["00", "04", "09", *(n for n in names if n not in ("00", "04", "09"))]
    assert spread_evenly(names, 10) == names


def test_values_become_class_indices_in_transposed_order(tmp_path):
    labels = _box()
    labels[0, 0, 0] = 5
    native = read_labels(_case(tmp_path, "a", labels, (1, 2, 3))["label"], SimpleITKIO, [0, 2, 1], [2, 0, 1])
    assert native.labels.shape == (40, 20, 30) and native.spacing_mm == (1, 3, 2)
    assert native.labels[0, 0, 0] == label_maps.IGNORED
    assert (native.labels == 2).sum() == (labels == 1).sum()


def test_cropped_to_the_foreground_with_a_margin_and_resampled(tmp_path):
    maps = LabelMaps({"a": _case(tmp_path, "a", _box())}, SimpleITKIO, [0, 1, 2], [0, 1, 2])
    native, = maps.at_spacing((1, 1, 1), RESAMPLE)
    assert native.shape == (20, 22, 36)
    coarse, = maps.at_spacing((2, 2, 2), RESAMPLE)
    assert coarse.shape == (10, 11, 18)
    assert (coarse == 1).sum() == pytest.approx((native == 1).sum() / 8, rel=0.2)


def test_two_spacings_give_slices_with_foreground(tmp_path):
    maps = LabelMaps({"a": _case(tmp_path, "a", _box())}, SimpleITKIO, [0, 1, 2], [0, 1, 2])
    slices = maps.at_spacing((1, 2), RESAMPLE)
    assert [s.shape for s in slices] == [(22, 18)] * 4
    assert all((s > 0).any() for s in slices)


def test_cases_without_foreground_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(label_maps, "MAX_CASES", 2)
    cases = {name: _case(tmp_path, name, _box() if name in "bc" else np.zeros((4, 4, 4))) for name in "abcd"}
    assert len(LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2])) == 2
    empty = LabelMaps({"a": cases["a"]}, SimpleITKIO, [0, 1, 2], [0, 1, 2])
    assert len(empty) == 0 and empty.at_spacing((1, 1, 1), RESAMPLE) == []


def test_large_volumes_are_cut_to_a_window_that_holds_foreground(tmp_path, monkeypatch):
    cases = {"a": _case(tmp_path, "a", _box())}
    monkeypatch.setattr(label_maps, "MAX_VOXELS", 1000)
    maps = LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2])
    for spacing in ((1, 1, 1), (0.5, 0.5, 0.5), (2, 2, 2)):
        labels, = maps.at_spacing(spacing, RESAMPLE)
        assert 200 < labels.size <= 1300
        assert (labels > 0).any()
    monkeypatch.setattr(label_maps, "MAX_NATIVE_VOXELS", 500)
    assert LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2]).at_spacing((1, 1, 1), RESAMPLE)[0].size <= 500


def test_same_seed_same_window(tmp_path, monkeypatch):
    cases = {"a": _case(tmp_path, "a", _box())}
    monkeypatch.setattr(label_maps, "MAX_NATIVE_VOXELS", 500)

    def window(seed):
        return LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2], seed).at_spacing((1, 1, 1), RESAMPLE)[0]

    assert np.array_equal(window(0), window(0))
    assert any(not np.array_equal(window(0), window(seed)) for seed in range(1, 5))


def test_a_case_that_must_be_read_is_read_and_its_window_laid_around_the_class(tmp_path, monkeypatch):
    monkeypatch.setattr(label_maps, "MAX_CASES", 2)
    monkeypatch.setattr(label_maps, "MAX_NATIVE_VOXELS", 500)
    plain = np.minimum(_box(), 1)
    cases = {name: _case(tmp_path, name, _box() if name == "c" else plain) for name in "abcd"}
    ordinary = LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2])
    assert not any((labels == 2).any() for labels in ordinary.at_spacing((1, 1, 1), RESAMPLE))
    for seed in range(3):
        maps = LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2], seed, must_hold={"c": [2]})
        assert len(maps) == 2
        assert any((labels == 2).sum() > 4 for labels in maps.at_spacing((1, 1, 1), RESAMPLE))


def test_of_very_large_volumes_fewer_are_read(tmp_path, monkeypatch):
    cases = {name: _case(tmp_path, name, _box()) for name in "abcdefgh"}
    monkeypatch.setattr(label_maps, "MAX_READ_VOXELS", 2 * _box().size)
    assert len(LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2])) == label_maps.MIN_CASES
    monkeypatch.setattr(label_maps, "MAX_READ_VOXELS", 100 * _box().size)
    assert len(LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2])) == 8


def _sparse(labels, shown):
    """Only every `shown`-th plane of the first axis is annotated."""
    sparse = np.full_like(labels, IGNORED)
    sparse[::shown] = labels[::shown]
    return sparse


def test_sparse_maps_are_filled_with_the_nearest_label():
    dense = _box()
    dense[:, :6] = IGNORED  # nobody looked there, far from the structures
    assert filled_where_sparse(dense) is dense
    filled = filled_where_sparse(_sparse(_box(), 2))
    assert (filled != IGNORED).all()
    assert np.array_equal(filled[::2], _box()[::2])
    flat = _sparse(_box(), 2)[10]
    assert filled_where_sparse(flat) is flat, "a plane that is annotated is dense by itself"
    nothing = np.full((4, 4), IGNORED)
    assert filled_where_sparse(nothing) is nothing


def test_brush_strokes_do_not_make_every_code_look_perfect():
    """Strokes inside of structures: whole blocks of them hold one label each, which any code could keep."""
    labels = np.zeros((24, 24, 24), int)
    labels[6:18, 6:18, 6:18] = 1
    strokes = np.full_like(labels, IGNORED)
    strokes[8:16, 8:16, 8:16] = 1
    strokes[:4], strokes[20:] = 0, 0
    at_once = label_coding_ceiling([strokes], 2, (4, 4, 4), (1,))[0]
    filled = label_coding_ceiling([filled_where_sparse(strokes)], 2, (4, 4, 4), (1,))[0]
    assert at_once.mean == 1 and filled.mean < 0.95


def test_sparse_cases_are_filled_before_they_are_resampled(tmp_path):
    labels = _sparse(_box(), 2)
    cases = {"a": _case(tmp_path, "a", np.where(labels == IGNORED, 3, labels))}
    maps = LabelMaps(cases, SimpleITKIO, [0, 1, 2], [0, 1, 2])
    coarse, = maps.at_spacing((1, 2, 2), RESAMPLE)
    assert (coarse >= 0).all() and (coarse > 0).any(axis=(1, 2)).sum() >= 4
    slices = maps.at_spacing((1, 1), RESAMPLE)
    assert len(slices) == 2 and all((each >= 0).all() for each in slices)
