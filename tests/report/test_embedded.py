"""Volumes for the viewer, read back by nibabel."""

import base64
import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from ldseg_auto.inference.uncertainty import predictive_entropy
from ldseg_auto.report import embedded
from ldseg_auto.report.embedded import affine_of, embed, steps
from ldseg_auto.report.volumes import Volumes


def read_back(text: str) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def oblique(tmp_path):
    """A volume whose axes are turned, flipped and of three lengths."""
    image = sitk.GetImageFromArray(np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5))
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-31.5, 17.25, 88.0))
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    return tmp_path / "a.nii.gz"


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_voxels_lie_where_the_file_says(reader, oblique):
    data, properties = reader().read_images([str(oblique)])
    file = nibabel.load(oblique)
    assert affine_of(properties) == pytest.approx(file.affine, abs=1e-4)
    assert (data[0].transpose() == file.get_fdata()).all()


def test_a_reader_that_turns_the_image(oblique):
    data, properties = NibabelIOWithReorient().read_images([str(oblique)])
    file = nibabel.load(oblique)
    where = np.argwhere(data[0].transpose() == 37)[0]
    original = np.argwhere(file.get_fdata() == 37)[0]
    assert affine_of(properties) @ [*where, 1] == pytest.approx(file.affine @ [*original, 1], abs=1e-3)


def test_pictures_without_geometry():
    assert affine_of({"spacing": (999, 1, 2)}).diagonal().tolist() == [2, 1, 999, 1]


def volumes(shape=(4, 6, 8), spacing=(2.0, 1.0, 1.0), classes: int | None = 3) -> Volumes:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, shape)
    probabilities = None if classes is None else rng.dirichlet([1] * classes, shape).transpose(3, 0, 1, 2)
    return Volumes(rng.normal(size=(2, *shape)), labels, labels[::-1], probabilities, False, {"spacing": spacing})


def test_what_is_embedded_is_what_was_read():
    case = volumes()
    made = embed(case)
    assert made["step"] == [1, 1, 1]
    files = {name: read_back(text) for name, text in made["files"].items()}
    assert set(files) == {"image", "truth", "prediction", "entropy"}
    assert (files["truth"].get_fdata().transpose() == case.truth).all()
    assert (files["prediction"].get_fdata().transpose() == case.prediction).all()
    entropy = predictive_entropy(case.probabilities, regions=False)
    assert files["entropy"].get_fdata().transpose() / 255 * np.log(3) == pytest.approx(entropy, abs=np.log(3) / 255)
    assert all(file.get_data_dtype() == np.uint8 for file in files.values())
    assert files["image"].header.get_zooms() == (1, 1, 2)
    assert "entropy" not in embed(volumes(classes=None))["files"]
    assert embed(case) == made, "the same bytes every time"


def test_labels_above_255_are_kept():
    case = volumes()
    case.truth[0, 0, 0] = 300
    assert read_back(embed(case)["files"]["truth"]).get_fdata().max() == 300


def test_large_volumes_are_thinned_along_their_finest_axes(monkeypatch):
    assert steps((100, 100, 100), (1, 1, 1)) == (1, 1, 1)
    assert steps((300, 512, 512), (5.0, 0.8, 0.8)) == (1, 6, 5)
    monkeypatch.setattr(embedded, "MAX_VOXELS", 50)
    case = volumes()
    made = embed(case)
    assert made["step"] == [2, 2, 1]
    file = read_back(made["files"]["truth"])
    assert (file.get_fdata().transpose() == case.truth[:, ::2, ::2]).all()
    assert read_back(made["files"]["entropy"]).shape == file.shape
    assert file.header.get_zooms() == (2, 2, 2), "what was left out leaves its room"
