"""What arrays and tensors become, and what is refused with its cause and its cure."""

import numpy as np
import pytest
import torch

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.array_input import ModelInput, read_array

VOLUMES = ModelInput(("T1", "T2"), 3, True)
SLICES = ModelInput(("T1", "T2"), 2, True)
PICTURES = ModelInput(("R", "G", "B"), 2, False)
MM = (2.0, 1.0, 0.5)
VALUES = np.random.default_rng(0).integers(0, 200, (2, 3, 4, 5))


def tensor(dtype):
    return torch.from_numpy(VALUES).to(dtype)


@pytest.mark.parametrize("image", [
    VALUES.astype(np.float32), VALUES.astype(np.float16), VALUES.astype(np.float64), VALUES, VALUES.astype(np.uint8),
    VALUES.astype(">i2"), VALUES.tolist(), np.asfortranarray(VALUES), VALUES[:, ::-1][:, ::-1],
    np.repeat(VALUES, 2, 3)[..., ::2], VALUES.astype(np.uint64),
    tensor(torch.float32), tensor(torch.float16), tensor(torch.bfloat16), tensor(torch.float64), tensor(torch.uint8),
    tensor(torch.float32).requires_grad_() * 1, tensor(torch.float32).transpose(1, 3).contiguous().transpose(1, 3)],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'dtype', '')}")
def test_any_real_type_and_layout(image):
    read = read_array(image, MM, VOLUMES)
    assert read.values.dtype == np.float32 and read.values.flags.c_contiguous
    assert np.array_equal(read.values, VALUES)
    assert read.spacing_mm == MM and not read.flat


@pytest.mark.parametrize("image", [VALUES.astype(np.float32), tensor(torch.float32)], ids=["array", "tensor"])
def test_the_copy_is_nobody_elses(image):
    read_array(image, MM, VOLUMES).values[:] = -1
    assert np.array_equal(np.asarray(image), VALUES)


def test_truth_values_are_numbers():
    assert np.array_equal(read_array(VALUES > 99, MM, VOLUMES).values, VALUES > 99)


def test_two_dimensions():
    slice_of = read_array(VALUES[:, 0], (0.5, 0.7), SLICES)
    assert slice_of.flat and slice_of.values.shape == (2, 1, 4, 5)
    assert slice_of.spacing_mm == (999 * 0.7, 0.5, 0.7), "as SimpleITKIO has it"
    assert read_array(VALUES, MM, SLICES).spacing_mm == MM
    for spacing in (None, (1, 1), [1.0, 1.0]):
        assert read_array(np.ones((3, 4, 5)), spacing, PICTURES).spacing_mm == (999, 1, 1)
    for spacing in (None, (999, 1, 1)):
        assert not read_array(np.ones((3, 1, 4, 5)), spacing, PICTURES).flat


def changed(value, dtype=np.float32):
    image = VALUES.astype(dtype)
    image[1, 2, 3, 4] = value
    return image


@pytest.mark.parametrize("image, spacing, model, cause, cure", [
    (VALUES[0], MM, VOLUMES, r"3 axes, \(3, 4, 5\); the model takes \(channels, z, y, x\)\.", r"image\[None\]"),
    (VALUES[0, 0], MM, SLICES, r"2 axes.*\(channels, z, y, x\) or \(channels, y, x\)", r"image\[None\]"),
    (VALUES[None], MM, VOLUMES, "5 axes", ""),
    (VALUES[:1], MM, VOLUMES, "1 channels along its first axis.*takes 2: T1, T2", "channel_names"),
    (np.moveaxis(VALUES, 0, -1), MM, VOLUMES, "3 channels", r"np\.moveaxis\(image, -1, 0\)"),
    (VALUES[:, :0], MM, VOLUMES, r"empty: its shape is \(2, 0, 4, 5\)", "read or cut"),
    (changed(np.nan), MM, VOLUMES, "1 voxels that are NaN or infinite", "Replace"),
    (changed(-np.inf), MM, VOLUMES, "1 voxels that are NaN or infinite", "Replace"),
    (torch.from_numpy(changed(np.inf)), MM, VOLUMES, "1 voxels that are NaN or infinite", "Replace"),
    (changed(1e300, np.float64), MM, VOLUMES, r"infinite \(as float32\)", "Replace"),
    (changed(1e20), MM, VOLUMES, r"values of 1e\+20, which are too large", "Replace"),
    (np.zeros((2, 3, 4, 5)), MM, VOLUMES, "one value only", "how it was read"),
    (VALUES.astype(object), MM, VOLUMES, "holds object, which are no real numbers", "integers"),
    (VALUES.astype(complex), MM, VOLUMES, "complex128", "magnitude"),
    (tensor(torch.complex64), MM, VOLUMES, r"torch\.complex64", "magnitude"),
    (VALUES.astype(str), MM, VOLUMES, "no real numbers", ""),
    (tensor(torch.float32).to_sparse(), MM, VOLUMES, "Tensor, cannot be read as an array", "dense torch tensor"),
    ([[1, 2], [3]], MM, VOLUMES, "list, cannot be read as an array", "NumPy array"),
    (None, MM, VOLUMES, "object", ""), ("image.nii.gz", MM, VOLUMES, "no real numbers", ""),
    (VALUES, None, VOLUMES, "without spacing_mm", "along z, y, x"),
    (VALUES[:, 0], None, SLICES, "without spacing_mm", "along y, x"),
    (VALUES, (1.0, 1.0), VOLUMES, r"spacing_mm is \(1\.0, 1\.0\); the image needs 3 numbers", "order x, y, z"),
    (VALUES, (1.0, 0.0, 1.0), VOLUMES, "needs 3 numbers above 0", "along z, y, x"),
    (VALUES, (1.0, np.nan, 1.0), VOLUMES, "needs 3 numbers above 0", ""),
    (VALUES, (1.0, -1.0, 1.0), VOLUMES, "needs 3 numbers above 0", ""),
    (VALUES, 1.0, VOLUMES, "no numbers", "along z, y, x"), (VALUES, "abc", VOLUMES, "no numbers", ""),
    (VALUES[:, 0], MM, SLICES, "needs 2 numbers above 0", "along y, x"),
    (np.ones((3, 4, 5)), (0.5, 0.5), PICTURES, "trained on pictures", "Leave spacing_mm out")],
    ids=lambda value: value if isinstance(value, str) and value else "")
def test_what_the_model_cannot_take(image, spacing, model, cause, cure):
    with pytest.raises(LDSegError, match=f"(?s){cause}") as raised:
        read_array(image, spacing, model)
    assert raised.match(f"(?s){cure}") and raised.value.cure
