"""Uncertainty maps: computed from probabilities in the image's own geometry and written beside the segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813, its usual name
from nnunetv2.inference import export_prediction
from scipy.special import entr

from ldseg_auto.inference.binding import bound

FOLDER = "uncertainty"  # a folder of its own: nnU-Net's folder commands read every file with the data set's ending
_LEVELS = 65535


def predictive_entropy(probabilities: np.ndarray, regions: bool) -> np.ndarray:
    """Entropy of the mean prediction in nats.

    Args:
        probabilities: (K, z, y, x); of labels that exclude each other they sum to one over K.
        regions: the K regions may overlap; then the mean of their binary entropies is returned.

    Returns:
        (z, y, x), float32; at most log K (labels) or log 2 (regions).
    """
    if regions:
        return (entr(probabilities) + entr(1 - probabilities)).mean(0, dtype=np.float32)
    return entr(probabilities).sum(0, dtype=np.float32)


def export_with_entropy(prediction: np.ndarray, properties: dict, configuration_manager: Any, plans_manager: Any,
                        dataset_json: dict, output_file_truncated: str, save_probabilities: bool = False) -> None:
    """nnU-Net's export, and the entropy of the same probabilities as `uncertainty/CASE_entropy.nii.gz`."""
    label_manager = plans_manager.get_label_manager(dataset_json)
    convert = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape
    probabilities: list[np.ndarray] = []

    def keep_probabilities(*args: Any, return_probabilities: bool = False, **kwargs: Any) -> Any:
        segmentation, probability = convert(*args, return_probabilities=True, **kwargs)
        probabilities.append(probability)
        return (segmentation, probability) if return_probabilities else segmentation

    with bound(export_prediction, convert_predicted_logits_to_segmentation_with_correct_shape=keep_probabilities):
        export_prediction.export_prediction_from_logits(
            prediction, properties, configuration_manager, plans_manager, dataset_json, output_file_truncated,
            save_probabilities)
    write_entropy(probabilities[0], label_manager.has_regions, Path(output_file_truncated),
                  plans_manager.image_reader_writer_class(), properties)


def write_entropy(probabilities: np.ndarray, regions: bool, case: Path, reader_writer: Any, properties: dict) -> None:
    """The entropy of probabilities in the image's geometry, (K, z, y, x), as the case's `entropy_file`."""
    file = entropy_file(case)
    file.parent.mkdir(exist_ok=True)
    write_map(predictive_entropy(probabilities, regions), file, reader_writer, properties)


def entropy_file(case: Path) -> Path:
    """OUT/CASE -> OUT/uncertainty/CASE_entropy.nii.gz."""
    return case.parent / FOLDER / f"{case.name}_entropy.nii.gz"


def write_map(values: np.ndarray, filename: Path, reader_writer: Any, properties: dict) -> None:
    """A map (z, y, x) >= 0 as a float32 NIfTI with the geometry that the reader found in the image.

    Readers know how to write a segmentation back (orientation restored and all), but small integers only: the map
    goes through them in 65,536 levels, one byte after the other. Images without geometry (PNG) get a NIfTI without it.
    """
    if "sitk_stuff" not in properties and "nibabel_stuff" not in properties:
        sitk.WriteImage(sitk.GetImageFromArray(values[0] if len(values) == 1 else values), str(filename))
        return
    scale = float(values.max()) / _LEVELS or 1.0
    levels = np.rint(values / scale).astype(np.uint16)
    temporary = filename.with_name(f"{filename.name.removesuffix('.nii.gz')}.part.nii.gz")
    written = []
    try:
        for byte in (levels >> 8, levels & 255):
            reader_writer.write_seg(byte.astype(np.uint8), str(temporary), properties)
            written.append(_read_back(temporary, "nibabel_stuff" in properties))
    finally:
        temporary.unlink(missing_ok=True)
    (high, geometry), (low, _) = written
    data = (256 * high.astype(np.float32) + low) * np.float32(scale)
    if "nibabel_stuff" in properties:
        nibabel.save(nibabel.nifti1.Nifti1Image(data, geometry), filename)
    else:
        image = sitk.GetImageFromArray(data)
        image.CopyInformation(geometry)
        sitk.WriteImage(image, str(filename), True)


def _read_back(file: Path, with_nibabel: bool) -> tuple[np.ndarray, Any]:
    """Values, and the affine or the image that holds the geometry."""
    if with_nibabel:
        loaded = nibabel.nifti1.Nifti1Image.from_filename(file)
        return np.asarray(loaded.dataobj), loaded.affine
    image = sitk.ReadImage(str(file))
    return sitk.GetArrayFromImage(image), image
