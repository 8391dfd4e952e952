"""An image of any size, spacing, orientation, order of axes and empty border: labels come back to where they were."""

from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ldseg_auto.inference.export import ExportOptions, export_case
from ldseg_auto.inference.preprocessing import preprocess
from ldseg_auto.inference.volumes import VolumeInMemory

LABELS = 4
DATASET = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "file_ending": ".mha", "channel_names": {"0": "x"}}
REGIONS = {**DATASET, "labels": {"background": 0, "all": [1, 2, 3], "rest": [2, 3], "c": [3]},
           "regions_class_order": [1, 2, 3]}
ANY = settings(max_examples=20, deadline=None, derandomize=True)


def plans_for(spacing, order) -> PlansManager:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return PlansManager({
        "dataset_name": "Dataset001_Any", "plans_name": "P", "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager", "transpose_forward": list(order),
        "transpose_backward": np.argsort(order).tolist(), "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": {
            "preprocessor_name": "DefaultPreprocessor", "spacing": [spacing[axis] for axis in order],
            "normalization_schemes": ["NoNormalization"], "use_mask_for_norm": [False], "patch_size": [8, 8, 8],
            "architecture": {},
            "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": resampling,
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling}}})


@st.composite
def images(draw, labels):
    """Labels 1 to `labels` in blocks, in an image with an empty border, (z, y, x)."""
    size = tuple(draw(st.integers(1, 14)) for _ in range(3))
    border = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(3)]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    inside = rng.integers(1, labels + 1, [-(-n // 4) for n in size])
    for axis in range(3):
        inside = inside.repeat(4, axis).take(range(size[axis]), axis)
    image = sitk.GetImageFromArray(np.pad(inside, border).astype(np.int16))
    spacing = [draw(st.sampled_from([0.4, 0.9, 1.3, 5.0])) for _ in range(3)]
    image.SetSpacing(spacing)
    image.SetOrigin([draw(st.integers(-99, 99)) / 4 for _ in range(3)])
    angle = draw(st.sampled_from([0.0, 0.3, np.pi / 2]))
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    flips = np.diag([draw(st.sampled_from([1.0, -1.0])) for _ in range(3)])
    image.SetDirection((turned @ flips)[:, list(draw(st.permutations(range(3))))].ravel().tolist())
    return image


def predicted(image, target_spacing, order, dataset) -> tuple[sitk.Image, np.ndarray, dict]:
    """What is written for an image whose values are its labels, by a network that says what it sees."""
    plans = plans_for(target_spacing, order)
    configuration = plans.get_configuration("3d_fullres")
    with TemporaryDirectory() as name:
        folder = Path(name)
        sitk.WriteImage(image, str(folder / "case_0000.mha"))
        volume, properties = preprocess([str(folder / "case_0000.mha")], folder / "image", plans, configuration,
                                        dataset)
        seen = np.rint(volume.read(0, volume.shape[1])[0])
        heads = plans.get_label_manager(dataset).num_segmentation_heads
        one_hot = np.stack([seen == k for k in range(heads)] if heads == LABELS else
                           [seen >= k + 1 for k in range(heads)]).astype(np.float32)
        export_case(VolumeInMemory(one_hot), [], properties, configuration, plans, dataset, folder / "out", True,
                    ExportOptions())
        probabilities = np.load(folder / "out.npz")["probabilities"]
        return sitk.ReadImage(str(folder / "out.mha")), probabilities, properties


def same_geometry(a: sitk.Image, b: sitk.Image) -> bool:
    return a.GetSize() == b.GetSize() and all(
        np.allclose(getattr(a, get)(), getattr(b, get)(), atol=1e-5) for get in ("GetSpacing", "GetOrigin",
                                                                                 "GetDirection"))


@ANY
@given(images(3), st.sampled_from(list(permutations(range(3)))), st.sampled_from([DATASET, REGIONS]))
def test_at_the_images_own_spacing_labels_come_back(image, order, dataset):
    written, probabilities, properties = predicted(image, image.GetSpacing()[::-1], order, dataset)
    labels = sitk.GetArrayFromImage(image)
    assert same_geometry(written, image)
    assert np.array_equal(sitk.GetArrayFromImage(written), labels)
    assert probabilities.shape[1:] == labels.shape
    if dataset is DATASET:
        assert np.array_equal(probabilities.argmax(0), labels)
        assert np.allclose(probabilities.sum(0), 1)


@ANY
@given(images(2), st.sampled_from(list(permutations(range(3)))), st.tuples(*[st.sampled_from([0.5, 1.0, 2.0])] * 3))
def test_at_another_spacing_labels_stay_in_place(image, order, target_spacing):
    """Of two labels, between which no third lies when the image is interpolated."""
    inside = np.ptp(np.argwhere(sitk.GetArrayFromImage(image)), 0) + 1
    assume((inside * image.GetSpacing()[::-1] >= target_spacing).all())
    written, probabilities, _ = predicted(image, target_spacing, order, DATASET)
    labels, result = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(written)
    assert same_geometry(written, image)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (result == 0)[labels == 0].all(), "the empty border stays empty"
    # a label cannot move by more than a voxel of the coarser of both grids
    reach = [int(np.ceil(max(1, target / own))) for target, own in zip(target_spacing, image.GetSpacing()[::-1],
                                                                       strict=True)]
    for label in np.unique(result[result > 0]):
        near = sitk.GetArrayFromImage(sitk.GrayscaleDilate(sitk.GetImageFromArray((labels == label).astype(np.uint8)),
                                                           reach[::-1], sitk.sitkBox)) > 0
        assert near[result == label].all()
