"""Thickness and contact of shapes whose answer is known."""

import numpy as np
import pytest
import torch

from ldseg_auto.label_shape import contact_areas_mm2, local_thickness_mm


@pytest.mark.parametrize("voxels", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sheet_is_as_thick_as_it_is(voxels, axis):
    spacing = (2.0, 1.0, 0.75)
    mask = np.zeros((24, 40, 60), bool)
    mask[tuple(slice(8, 8 + voxels) if a == axis else slice(None) for a in range(3))] = True
    thickness = local_thickness_mm(mask, spacing)
    assert len(thickness)
    assert np.abs(thickness - voxels * spacing[axis]).max() <= spacing[axis] + 1e-6
    if voxels % 2:
        assert thickness == pytest.approx(voxels * spacing[axis])


@pytest.mark.parametrize("radius", [3.0, 5.0])
def test_a_tube_in_2d_and_3d(radius):
    y, x = np.indices((30, 30))
    disc = (y - 15) ** 2 + (x - 15) ** 2 <= radius ** 2
    assert np.median(local_thickness_mm(np.repeat(disc[None], 12, 0), (2.0, 1.0, 1.0))) == pytest.approx(
        2 * radius, abs=1.5)
    assert np.median(local_thickness_mm(disc, (1.0, 1.0))) == pytest.approx(2 * radius, abs=1.5)


@pytest.mark.parametrize("radius", [3.0, 5.0, 8.0])
def test_a_bent_tube_and_a_ball(radius):
    """Beside the middle of the ridge the border is nearer, but the structure is no thinner there."""
    z, y, x = np.indices((40, 60, 60)) - np.array([20, 30, 30]).reshape(3, 1, 1, 1)
    tube = (y - 15 * np.sin(z / 30)) ** 2 + (x - 10 * np.cos(z / 40)) ** 2 < radius ** 2
    ball = z ** 2 + y ** 2 + x ** 2 < radius ** 2
    for mask in (tube, ball):
        assert np.median(local_thickness_mm(mask, (1, 1, 1))) == pytest.approx(2 * radius, abs=2.5)


def test_what_the_image_cuts_off_is_not_measured():
    mask = np.zeros((20, 20), bool)
    mask[:, :8] = True  # how far it goes on beyond the image, nobody knows
    assert not len(local_thickness_mm(mask, (1.0, 1.0)))
    assert not len(local_thickness_mm(np.ones((4, 4), bool), (1.0, 1.0)))
    assert not len(local_thickness_mm(np.zeros((4, 4), bool), (1.0, 1.0)))


def test_a_slice_has_a_thickness_within_it():
    mask = np.zeros((1, 12, 12), bool)
    mask[0, 4:9] = True
    assert local_thickness_mm(mask, (1.0, 2.0, 2.0)) == pytest.approx(10.0)


def test_contact_is_the_area_of_the_faces_between():
    labels = np.zeros((4, 5, 6), int)
    labels[1:3, 1:4, 1:5] = 1
    labels[2, 2, 2] = 2
    labels[0, 0, 0] = 9
    areas = contact_areas_mm2(labels, 3, (2.0, 3.0, 5.0))
    inside = 2 * 15 + 2 * 10 + 2 * 6 - 15  # the box's upper side has a face of the core at the border
    assert areas[1, 2] == inside and areas[0, 2] == 15
    box = 2 * (3 * 4 * 15 + 2 * 4 * 10 + 2 * 3 * 6)
    assert areas[0, 1] == box - 15
    assert np.array_equal(areas, areas.T) and not areas.diagonal().any()


def test_it_survives_that_subnormal_numbers_are_flushed():
    """As in the process of a training; scipy's tree crashes then."""
    mask = np.zeros((12, 12, 12), bool)
    mask[:, 3:9, 3:9] = True
    before = local_thickness_mm(mask, (1, 1, 1))
    torch.set_flush_denormal(True)
    try:
        assert np.array_equal(local_thickness_mm(mask, (1, 1, 1)), before)
    finally:
        torch.set_flush_denormal(False)
