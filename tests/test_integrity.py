"""Files that end too early."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.integrity import Content, scan


@pytest.fixture
def whole(tmp_path):
    file = tmp_path / "whole.nii.gz"
    file.write_bytes(gzip.compress(bytes(range(256)) * 20_000))
    return file


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1], lambda content: content[:len(content) // 2], lambda content: content[:5],
    lambda content: b"no gzip file", lambda content: content[:-8] + bytes(4) + content[-4:],
    lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:]],
    ids=["last byte", "half", "header", "another format", "checksum", "a byte within"])
def test_damaged_files_are_named(whole, damage):
    broken = whole.with_name("broken.nii.gz")
    broken.write_bytes(damage(whole.read_bytes()))
    assert not scan(broken).whole


def test_a_whole_file_is_whole(whole):
    assert scan(whole) == Content()


@pytest.mark.parametrize("kind", ["<f4", ">f8"])
def test_nan_that_simpleitk_hides_is_seen(kind, tmp_path):
    voxels = np.random.default_rng(0).normal(size=(70, 80, 90)).astype(kind)
    file = tmp_path / "image.nii.gz"
    for spoilt in (False, True):
        if spoilt:
            voxels[-1, -1, -1] = np.nan
        header = nibabel.Nifti1Header(endianness=kind[0])
        header.set_data_dtype(kind)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0]), header), file)
        assert scan(file) == Content(finite=not spoilt, steps=(1, 2, 3))
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))).all()
