"""Grids of files: what differs, by how much, and where their axes point."""

import numpy as np
import pytest
import SimpleITK as sitk
from data_sets import write

from ldseg_auto.checks.case import read_file
from ldseg_auto.checks.geometry import Geometry, grid_problem, misfit, orientation

SIZE = (20, 30, 40)


def _grid(spacing=(1.0, 1.0, 2.0), origin=(5.0, 6.0, 7.0), angle=0.0, size=SIZE) -> Geometry:
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return Geometry(size, spacing[::-1], affine)


@pytest.mark.parametrize("other, what, voxels", [
    (_grid(origin=(5.0, 6.0, 9.0)), "origin", 1.0), (_grid(origin=(5.0, 6.0, 7.1)), "origin", 0.05),
    (_grid(spacing=(1.0, 1.0, 2.2)), "spacing", 3.9), (_grid(angle=0.1), "direction", 3.0),
    (_grid(spacing=(1.1, 1.0, 2.0), origin=(0, 0, 0), angle=1.0), "spacing and direction and origin", None)])
def test_what_differs_and_by_how_many_voxels(other, what, voxels):
    found = misfit(_grid(), other)
    assert found is not None and f"differs in {what} " in found.what
    assert voxels is None or found.voxels == pytest.approx(voxels, rel=0.03)


@pytest.mark.parametrize("other", [_grid(), _grid(origin=(5.0, 6.0, 7.001)), _grid(angle=1e-5)])
def test_rounding_is_no_difference(other):
    assert misfit(_grid(), other) is None


def test_another_size_or_number_of_axes():
    found = misfit(_grid(), _grid(size=(20, 30, 39)))
    assert found is not None and found.what == "has 20 x 30 x 39 voxels (x, y, z), not 20 x 30 x 40 as"
    flat = Geometry((20, 30, 1), (999.0, 1.0, 1.0), np.eye(3))
    found = misfit(_grid(size=(20, 30, 1)), flat)
    assert found is not None and found.voxels == np.inf and "number of axes" in found.what


def test_formats_without_a_place_in_space_have_a_spacing():
    picture = Geometry((20, 30, 1), (999.0, 1.0, 1.0), None)
    assert misfit(picture, picture) is None and orientation(picture) == ""
    found = misfit(picture, picture._replace(spacing=(999.0, 1.0, 1.5)))
    assert found is not None and "spacing" in found.what and found.voxels > 0.5


@pytest.mark.parametrize("grid, part", [
    (_grid(spacing=(1.0, 0.0, 1.0)), "1 x 0 x 1"), (_grid(spacing=(1.0, -1.0, 1.0)), "-1"),
    (_grid(spacing=(np.nan, 1.0, 1.0)), "nan"), (_grid()._replace(affine=np.zeros((4, 4))), "singular"),
    (_grid(origin=(np.inf, 0, 0)), "singular")])
def test_grids_that_are_none(grid, part):
    assert part in (grid_problem(grid) or "")
    assert grid_problem(_grid()) is None


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 1, -1, 0, 0, 0, -1, 0),
                                       (-0.8, -0.6, 0, -0.6, 0.8, 0, 0, 0, -1)])
def test_both_libraries_find_the_same_grid(direction, tmp_path):
    """A model planned with one of nnU-Net's readers of NIfTI names orientations as with the other."""
    file = tmp_path / "image.nii.gz"
    write(file, np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0),
          direction)
    itk, nibabel = (read_file(str(file), [reader])[1] for reader in ("SimpleITKIO", "NibabelIO"))
    assert misfit(itk, nibabel) is None and itk.size == nibabel.size == (6, 5, 4)
    code = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(direction)
    assert orientation(itk) == orientation(nibabel) == code
