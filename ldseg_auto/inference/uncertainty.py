"""Uncertainty maps: computed from probabilities in the image's own geometry and written beside the segmentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813, its usual name
import torch
from scipy.special import entr

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.setting import is_placeholder
from ldseg_auto.fingerprint import in_order_of_outputs, label_groups

FOLDER = "uncertainty"  # a folder of its own: nnU-Net's folder commands read every file with the data set's ending
_LEVELS = 65535
_NORMAL_90 = 1.645  # standard deviations on either side


def predictive_entropy(probabilities: np.ndarray, regions: bool) -> np.ndarray:
    """Entropy of the mean prediction in nats.

    Args:
        probabilities: (K, z, y, x); of labels that exclude each other they sum to one over K.
        regions: the K regions may overlap; then the mean of their binary entropies is returned.

    Returns:
        (z, y, x), float32; at most log K (labels) or log 2 (regions).
    """
    entropy = np.empty(probabilities.shape[1:], np.float32)
    for row in range(len(entropy)):  # no copies of a large volume
        p = probabilities[:, row]
        if regions:
            p = np.clip(p, 0, 1)  # a mean may exceed 1 by rounding, and entr(< 0) is infinite
            entropy[row] = (entr(p) + entr(1 - p)).mean(0, np.float32)
        else:
            entropy[row] = entr(p).sum(0, np.float32)
    return entropy


def spread_of(mean: torch.Tensor, mean_square: torch.Tensor, entropy_of_draws: torch.Tensor,
              entropy_of_models: torch.Tensor, regions: bool) -> torch.Tensor:
    """What the draws and the models behind a mean disagree about, on the network's grid.

    The entropy H of the mean is the mean entropy of the draws (what no draw resolves) plus the mutual information of
    segmentation and draw (Houlsby et al. 2011, arXiv 1112.5745, eq. 2), which splits into that over the samples of each
    model and that over the models.

    Args:
        mean, mean_square: (K, *S), of p and of p squared over all draws.
        entropy_of_draws, entropy_of_models: (*S), mean of H(p) over all draws, and of H(mean of its draws) over the
            models.

    Returns:
        (K + 2, *S): standard deviation of each class over the draws; mutual information, in nats, over the samples of
        a model and over the models.
    """
    parts = torch.stack([entropy_of_models - entropy_of_draws, torch_entropy(mean, regions) - entropy_of_models])
    return torch.cat([(mean_square - mean ** 2).clamp(min=0).sqrt(), parts.clamp(min=0)])


def spread_of_ensemble(probabilities: Sequence[np.ndarray], spreads: Sequence[np.ndarray], regions: bool) -> np.ndarray:
    """The spread of several models' mean, from each model's probabilities (K, *S) and spread (K + 2, *S)."""
    mean = np.asarray(np.mean(probabilities, axis=0, dtype=np.float32))
    squares = np.mean([s[:-2] ** 2 + p ** 2 for p, s in zip(probabilities, spreads, strict=True)], axis=0)
    samples, models = np.mean([s[-2:] for s in spreads], axis=0)
    of_members = np.mean([predictive_entropy(p, regions) for p in probabilities], axis=0)
    models = np.maximum(models + predictive_entropy(mean, regions) - of_members, 0)
    return np.concatenate([np.sqrt(np.maximum(squares - mean ** 2, 0)), samples[None], models[None]])


def torch_entropy(probabilities: torch.Tensor, regions: bool) -> torch.Tensor:
    """`predictive_entropy` of a tensor."""
    if regions:
        probabilities = probabilities.clamp(0, 1)
        return (torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)).mean(0)
    return torch.special.entr(probabilities).sum(0)


def maps_of(spread: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The maps to write of a spread: mutual information and its two parts, in nats, and the standard deviation of each
    class or region named (without the background)."""
    *deviations, samples, models = spread
    return {"mutual_information": samples + models, "mutual_information_samples": samples,
            "mutual_information_models": models,
            **{f"std_{name}": values for name, values in zip(names, deviations[-len(names):], strict=True)}}


def class_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the foreground classes or regions, in the order of their probabilities, fit for file names.

    Raises:
        LDSegError: two names differ only in characters that file names do not take.
    """
    ignored = dataset_json["labels"].get("ignore")
    classes = in_order_of_outputs(label_groups(ignored, dataset_json["labels"]))
    names = [re.sub(r"[^A-Za-z0-9.-]+", "_", name) for name in classes]
    if len(set(names)) < len(names):
        raise LDSegError(f"Labels cannot be told apart in file names: {', '.join(sorted(names))}.",
                         "Rename them in dataset.json.")
    return names


def case_figures(masks: Sequence[np.ndarray], probabilities: np.ndarray, volumes: np.ndarray,
                 voxel_size: float, unit: str, names: Sequence[str],
                 interval_scales: Sequence[float] = (),
                 expected_dice_lines: Sequence[tuple[float, float]] = ()) -> dict[str, Any]:
    """Volume with a 90 % interval, and expected Dice, of each class.

    The interval is the volume plus and minus a multiple of the standard deviation of the samples' volumes (and of one
    percent of the volume, where samples hardly differ): the multiple is fitted on cross-validation cases
    (`evaluation.calibration.interval_scale`), or else that of a normal distribution, and "calibrated" is false.
    The expected Dice is `expected_dice`, by a line that is fitted on cross-validation cases where there is one.

    Args:
        masks: the segmentation of each class or region, bool.
        probabilities: (classes, z, y, x).
        volumes: (samples, classes).
        voxel_size: of a voxel of the masks, in the unit of the volumes.
        unit: of the volumes, see `voxel_size`.
        interval_scales, expected_dice_lines: one for each class, or none (see `export.ExportOptions`).
    """
    figures = {}
    for index, (name, mask, probability) in enumerate(zip(names, masks, probabilities, strict=True)):
        volume = float(mask.sum()) * voxel_size
        deviation = volume_deviation(volume, volumes[:, index], voxel_size)
        half = (interval_scales[index] if interval_scales else _NORMAL_90) * deviation
        figures[name] = {
            "volume": volume, "interval_90": [max(0.0, volume - half), volume + half],
            "calibrated": bool(interval_scales), "samples_mean": float(volumes[:, index].mean()),
            "samples_std": float(volumes[:, index].std()), "deviation": deviation,
            "expected_dice": expected_dice(mask, probability, *expected_dice_lines[index:index + 1])}
    return {"unit": unit, "classes": figures, "samples": len(volumes)}


def expected_dice(mask: np.ndarray, probability: np.ndarray, line: tuple[float, float] = (0.0, 1.0)) -> float:
    """Of a segmentation with a truth drawn from the probabilities, to first order: 2 sum p s / (sum p + sum s).

    Args:
        mask: the segmentation of a class or region, bool.
        probability: of the same shape.
        line: offset and slope: the Dice that is met where that much is promised.

    Returns:
        1 where there is nothing of either.
    """
    total = float(probability.sum()) + float(mask.sum())
    if total == 0:
        return 1.0
    offset, slope = line
    return min(1.0, max(0.0, offset + slope * 2 * float(probability[mask].sum()) / total))


def voxel_size_of(properties: Mapping[str, Any]) -> tuple[float, str]:
    """Volume of a voxel and its unit: "ml", or "pixels" of pictures, whose spacing is nnU-Net's placeholder.

    Args:
        properties: as the reader found them.
    """
    spacing = properties["spacing"]
    return (1.0, "pixels") if is_placeholder(spacing) else (float(np.prod(spacing)) / 1000, "ml")


def volume_deviation(volume: float, sample_volumes: np.ndarray, voxel_size: float) -> float:
    """The unit of a volume's interval: standard deviation of the samples' volumes, one percent of the volume and one
    voxel, added in squares."""
    return float(np.sqrt(sample_volumes.var() + (0.01 * volume) ** 2 + voxel_size ** 2))


def uncertainty_files(case: Path, names: Sequence[str]) -> list[Path]:
    """What is written of OUT/CASE below OUT/uncertainty, the last file last."""
    maps = ["entropy", "mutual_information", "mutual_information_samples", "mutual_information_models",
            *(f"std_{name}" for name in names)]
    return [case.parent / FOLDER / f"{case.name}{ending}" for ending in [*(f"_{m}.nii.gz" for m in maps), ".json"]]


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
