"""Shapes whose distances are known, MONAI's own functions on whole arrays, and the policy for empty masks."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldseg_auto.evaluation.policy import Presence
from ldseg_auto.evaluation.surface import SurfaceMetrics, surface_metrics


def box(shape, *edges) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*edge) for edge in edges)] = True
    return mask


def ball(shape, spacing, radius_mm) -> np.ndarray:
    """Of voxels whose centre lies within the radius around the array's middle."""
    axes = np.indices(shape)
    return sum(((a - (n - 1) / 2) * s / radius_mm) ** 2 for a, n, s in zip(axes, shape, spacing, strict=True)) <= 1


def blobs(seed, shape) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0.05


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_is_measured_in_mm(axis):
    spacing = (3.0, 1.0, 0.5)
    truth = box((24, 24, 24), (5, 15), (5, 15), (5, 15))
    found = surface_metrics(np.roll(truth, 2, axis), truth, spacing, 1.0)
    # the face ahead, a fifth of all surface voxels, is two voxels from the other cube, each way
    assert found.hd95_mm == pytest.approx(2 * spacing[axis])
    assert 0 < found.assd_mm < 2 * spacing[axis]
    assert surface_metrics(truth, truth, spacing, 0.0) == SurfaceMetrics(Presence.BOTH, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.7, 0.9), (1.0, 0.5)])
def test_balls_in_balls(spacing):
    shape = [int(np.ceil(32 / s)) + 3 for s in spacing]
    small, large = ball(shape, spacing, 10.0), ball(shape, spacing, 15.0)
    found = surface_metrics(small, large, spacing, 1.0)
    voxel = max(spacing)
    assert found.assd_mm == pytest.approx(5, abs=0.5 * voxel)
    assert found.hd95_mm == pytest.approx(5, abs=voxel)
    assert found.nsd == 0
    assert surface_metrics(small, large, spacing, 5 + voxel).nsd == 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_nsd_weighs_areas_in_mm2(spacing):
    """A cube of 20 mm against one with its upper face 4 mm higher, tolerance 1 mm: outside are the higher face, what
    the sides reach beyond 1 mm, and the lower face but for a rim of 1 mm, which is near the sides."""
    n = [round(20 / s) for s in spacing]
    higher = round(24 / spacing[0])
    shape = [higher + 4, n[1] + 4, n[2] + 4]
    truth = box(shape, (2, 2 + n[0]), (2, 2 + n[1]), (2, 2 + n[2]))
    prediction = box(shape, (2, 2 + higher), (2, 2 + n[1]), (2, 2 + n[2]))
    outside = 20 ** 2 + 4 * 20 * 3 + 18 ** 2
    whole = 6 * 20 ** 2 + 2 * 20 ** 2 + 4 * 20 * 24
    assert surface_metrics(prediction, truth, spacing, 1.0).nsd == pytest.approx(1 - outside / whole, abs=0.03)
    assert surface_metrics(prediction, truth, spacing, 4.0).nsd == 1


def test_hd95_is_the_larger_direction():
    truth = box((10, 10, 40), (2, 6), (2, 6), (2, 6))
    prediction = truth | box((10, 10, 40), (2, 6), (2, 6), (30, 34))
    found = surface_metrics(prediction, truth, (1, 1, 1), 1.0)
    reverse = surface_metrics(truth, prediction, (1, 1, 1), 1.0)
    assert found.hd95_mm == reverse.hd95_mm == 28  # from the far cube's last layer; the other direction is 0
    assert found.assd_mm == pytest.approx(np.mean([0] * 56 * 2 + _distances_of_far_cube()))


def _distances_of_far_cube() -> list[float]:
    """Of its surface voxels to the face z = 5 of the near one, straight across."""
    cube = np.ones((4, 4, 4), bool)
    cube[1:3, 1:3, 1:3] = False
    return [25.0 + z for *_, z in np.argwhere(cube)]


CASES = {"3D": ((20, 24, 22), (2.5, 0.8, 1.1)), "2D": ((40, 36), (0.8, 1.5)), "2D, long": ((70, 5), (1.0, 1.0))}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_the_same_as_monai_on_the_whole_array(name):
    """Blobs touch the border: what is cut out before the work begins changes nothing."""
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    shape, spacing = CASES[name]
    prediction, truth = blobs(1, shape), blobs(2, shape)
    assert prediction[0].any() and truth[-1].any()
    found = surface_metrics(prediction, truth, spacing, 1.2)
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    common = {"include_background": True, "spacing": spacing}
    hd95 = compute_hausdorff_distance(*pair, percentile=95, **common)
    assd = compute_average_surface_distance(*pair, symmetric=True, **common)
    nsd = compute_surface_dice(*pair, class_thresholds=[1.2], use_subvoxels=True, **common)
    assert (found.nsd, found.hd95_mm, found.assd_mm) == pytest.approx((nsd.item(), hd95.item(), assd.item()), rel=1e-5)


@pytest.mark.parametrize("voxels", [1, 600, 3000])
@pytest.mark.parametrize("shape", [(30, 12, 11), (50, 40)])
def test_slabs_change_nothing(shape, voxels, monkeypatch):
    """Also where some are empty."""
    prediction, truth = blobs(5, shape), blobs(6, shape)
    for mask in (prediction, truth):
        mask[10:20] = False
    spacing = (2.0, 0.9, 1.1)[:len(shape)]
    whole = surface_metrics(prediction, truth, spacing, 1.0)
    monkeypatch.setattr("ldseg_auto.evaluation.surface._SLAB_VOXELS", voxels)
    slabs = surface_metrics(prediction, truth, spacing, 1.0)
    assert 0 < whole.nsd < 1
    assert slabs.nsd == pytest.approx(whole.nsd, rel=1e-12) and slabs.assd_mm == whole.assd_mm


def test_after_a_training_in_the_same_process():
    """Which makes torch flush subnormal numbers; scipy's tree then runs out of stack."""
    prediction, truth = blobs(5, (20, 20, 20)), blobs(6, (20, 20, 20))
    before = surface_metrics(prediction, truth, (1.0, 1.0, 1.0), 1.0)
    torch.set_flush_denormal(True)
    try:
        assert surface_metrics(prediction, truth, (1.0, 1.0, 1.0), 1.0) == before
    finally:
        torch.set_flush_denormal(False)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10 ** 6), st.sampled_from([2, 3]))
def test_symmetric_bounded_and_independent_of_the_room_around(seed, axes):
    # nothing at the border, where a structure ends with the image
    prediction, truth = (np.pad(blobs(seed + k, (12, 13, 11)[:axes]), 1) for k in (0, 1))
    spacing = (1.5, 1.0, 0.6)[:axes]
    found, reverse = (surface_metrics(*pair, spacing, 0.7) for pair in ((prediction, truth), (truth, prediction)))
    roomy = surface_metrics(np.pad(prediction, (3, 7)), np.pad(truth, (3, 7)), spacing, 0.7,
                            worst_mm=float(np.linalg.norm(np.multiply(truth.shape, spacing))))
    for other in (reverse, roomy):
        assert (found.nsd, found.hd95_mm, found.assd_mm) == pytest.approx((other.nsd, other.hd95_mm, other.assd_mm))
    assert 0 <= found.nsd <= 1
    assert 0 <= found.assd_mm <= np.linalg.norm(np.multiply(truth.shape, spacing))
    assert found.hd95_mm <= np.linalg.norm(np.multiply(truth.shape, spacing))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_voxel_is_no_axis(axis):
    prediction, truth = blobs(3, (30, 30)), blobs(4, (30, 30))
    spacing = [0.9, 1.4]
    flat = [*spacing[:axis], 999.0, *spacing[axis:]]
    assert surface_metrics(np.expand_dims(prediction, axis), np.expand_dims(truth, axis), flat, 1.0) == \
        surface_metrics(prediction, truth, spacing, 1.0)


def test_a_single_voxel_is_a_structure():
    far = surface_metrics(box((9, 9, 9), (1, 2), (4, 5), (4, 5)), box((9, 9, 9), (7, 8), (4, 5), (4, 5)), (2, 1, 1), 1)
    assert (far.nsd, far.hd95_mm, far.assd_mm) == (0, 12, 12)


def test_a_tolerance_of_one_voxel_holds_for_spacings_rounded_to_float32():
    truth = box((20, 20, 20), (5, 15), (5, 15), (5, 15))
    spacing = (float(np.float32(0.8)),) * 3
    assert spacing[0] > 0.8
    assert surface_metrics(np.roll(truth, 1, 0), truth, spacing, 0.8).nsd == 1
    assert surface_metrics(np.roll(truth, 1, 0), truth, spacing, 0.79).nsd < 1


NOTHING, SOMETHING = np.zeros((3, 4, 12), bool), box((3, 4, 12), (1, 2), (1, 2), (1, 3))
DIAGONAL = 13 * 2.0


@pytest.mark.parametrize("prediction, truth, expected", [
    (SOMETHING, SOMETHING, SurfaceMetrics(Presence.BOTH, 1.0, 0.0, 0.0)),
    (NOTHING, SOMETHING, SurfaceMetrics(Presence.MISSED, 0.0, DIAGONAL, DIAGONAL)),
    (SOMETHING, NOTHING, SurfaceMetrics(Presence.SPURIOUS, 0.0, DIAGONAL, DIAGONAL)),
    (NOTHING, NOTHING, SurfaceMetrics(Presence.ABSENT, 1.0, 0.0, 0.0))])
def test_every_row_of_the_policy(prediction, truth, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surface_metrics(prediction, truth, (2, 2, 2), 1.0) == expected
        cut_out = surface_metrics(prediction, truth, (2, 2, 2), 1.0, worst_mm=99.0)
    assert cut_out.hd95_mm == cut_out.assd_mm == (99.0 if expected.hd95_mm else 0.0)


@pytest.mark.parametrize("prediction, truth, spacing, tolerance, message", [
    (np.zeros((2, 2), bool), np.zeros((2, 3), bool), (1, 1), 1, "same two or three axes"),
    (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 1, 1), 1, "same two or three axes"),
    (np.zeros(2, bool), np.zeros(2, bool), (1,), 1, "same two or three axes"),
    (np.zeros((2, 2)), np.zeros((2, 2), bool), (1, 1), 1, "must be bool"),
    (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 0), 1, "above 0"),
    (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 1), -1, "not below it")])
def test_refuses(prediction, truth, spacing, tolerance, message):
    with pytest.raises(ValueError, match=message):
        surface_metrics(prediction, truth, spacing, tolerance)


def test_imports_neither_nnunet_nor_anything_slow():
    code = ("import sys, ldseg_auto.evaluation.surface, ldseg_auto.evaluation.statistics\n"
            "print({'torch', 'monai', 'nnunetv2'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
