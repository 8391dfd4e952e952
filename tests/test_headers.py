"""What headers tell without reading voxels."""

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.headers import header_problem, voxel_ml


@pytest.fixture
def files(tmp_path):
    volume = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8))
    volume.SetSpacing((0.5, 2.0, 4.0))
    sitk.WriteImage(volume, str(tmp_path / "volume.nii.gz"))
    sitk.WriteImage(volume[:, :, 0], str(tmp_path / "slice.nii.gz"))
    return tmp_path


@pytest.mark.parametrize("name, reader, expected", [
    ("volume.nii.gz", "SimpleITKIO", 0.004), ("volume.nii.gz", "NibabelIOWithReorient", 0.004),
    ("volume.nii.gz", "NaturalImage2DIO", None), ("slice.nii.gz", "SimpleITKIO", None),
    ("none.nii.gz", "SimpleITKIO", None)])
def test_volume_of_a_voxel(name, reader, expected, files):
    assert voxel_ml(files / name, reader) == (None if expected is None else pytest.approx(expected))


def test_nnunet_reads_four_axes_and_cannot_write_them(tmp_path):
    """Else we need not refuse them."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    file = tmp_path / "four.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4, 5), np.float32), isVector=False), str(file))
    voxels, properties = SimpleITKIO().read_images([str(file)])
    assert voxels.shape == (2, 3, 4, 5)
    with pytest.raises(AssertionError):
        SimpleITKIO().write_seg(voxels[0], str(tmp_path / "written.nii.gz"), properties)
    assert header_problem(file, "SimpleITKIO") is not None
    assert header_problem(file, "NibabelIO") is None, "it refuses them itself"
