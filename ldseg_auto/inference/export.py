"""From a prediction on the network's grid to files in the image's own geometry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.inference import export_prediction as nnunet_export
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from ldseg_auto.folders import write_text
from ldseg_auto.inference import uncertainty
from ldseg_auto.inference.binding import bound
from ldseg_auto.inference.ensemble import spread_file

_FLOOR = 1e-6  # of probabilities, before their logarithm


@dataclass(frozen=True)
class ExportOptions:
    """What is done to a prediction on its way to the files.

    Args:
        maps: the prediction carries its spread (`uncertainty.spread_of`) behind its logits: write maps and CASE.json.
        spread: write the spread to CASE_spread.npz instead, for an ensemble of several models.
        temperature: of the probabilities, log p / temperature; fitted on cross-validation cases.
        largest_component: labels or regions of which only the largest component is kept, one after the other.
        interval_scales: per foreground class or region: half of a 90 % interval of its volume, in standard deviations
            of the samples' volumes; empty where nothing was fitted.
    """

    maps: bool = False
    spread: bool = False
    temperature: float = 1.0
    largest_component: tuple[int | tuple[int, ...], ...] = ()
    interval_scales: tuple[float, ...] = field(default=())


def export_prediction(prediction: torch.Tensor | np.ndarray, properties: dict, configuration_manager: Any,
                      plans_manager: Any, dataset_json: dict, output_file_truncated: str,
                      save_probabilities: bool = False, *, options: ExportOptions | None = None,
                      sample_voxels: Sequence[Sequence[float]] | None = None) -> None:
    """nnU-Net's export, but for two things: probabilities are resampled, not logits, so that the mean of several folds
    is the mean of their files; and `options`.

    Args:
        prediction: (K, z, y, x) logits on the network's grid; with `options.maps` or `.spread` the spread behind.
        properties, configuration_manager, plans_manager, dataset_json, output_file_truncated, save_probabilities:
            nnU-Net's.
        sample_voxels: voxels of each class (columns) in each sample (rows) on the network's grid, for CASE.json.
    """
    options = options or ExportOptions()
    case = Path(output_file_truncated)
    labels = plans_manager.get_label_manager(dataset_json)
    heads = labels.num_segmentation_heads
    geometry = _Geometry(properties, plans_manager, configuration_manager)
    wanted = options.maps or options.spread
    made: dict[str, Any] = {}
    convert = nnunet_export.convert_predicted_logits_to_segmentation_with_correct_shape

    def convert_and_keep(*args: Any, return_probabilities: bool = False, **kwargs: Any) -> Any:
        result = convert(*args, return_probabilities=return_probabilities or wanted, **kwargs)
        segmentation, probabilities = result if return_probabilities or wanted else (result, None)
        segmentation = keep_largest_components(segmentation, options.largest_component)
        made.update(segmentation=segmentation, probabilities=probabilities)
        return (segmentation, probabilities) if return_probabilities else segmentation

    resampling = _ProbabilityResampling(configuration_manager, labels.has_regions, options.temperature)
    with bound(nnunet_export, convert_predicted_logits_to_segmentation_with_correct_shape=convert_and_keep):
        nnunet_export.export_prediction_from_logits(prediction[:heads], properties, resampling, plans_manager,
                                                    dataset_json, str(case), save_probabilities)
    if not wanted:
        return
    spread = geometry.to_image(prediction[heads:])
    volumes = geometry.to_volume(np.asarray(sample_voxels, dtype=float))
    if options.spread:
        np.savez_compressed(spread_file(case), spread=spread, volumes=volumes)
    else:
        write_uncertainty(made["probabilities"], made["segmentation"], spread, volumes, labels, case,
                          plans_manager.image_reader_writer_class(), properties, dataset_json, options)


def write_uncertainty(probabilities: np.ndarray, segmentation: np.ndarray, spread: np.ndarray, volumes: np.ndarray,
                      labels: Any, case: Path, reader_writer: Any, properties: dict, dataset_json: dict,
                      options: ExportOptions) -> None:
    """Maps and figures of a case below `uncertainty/`.

    Args:
        probabilities, segmentation: (K, z, y, x) and (z, y, x) in the image's geometry.
        spread: (K + 2, z, y, x), see `uncertainty.spread_of`, in the same geometry.
        volumes: (samples, K) of each sample.
        case: OUT/CASE.
    """
    names = uncertainty.class_names(dataset_json)
    maps = {"entropy": uncertainty.predictive_entropy(probabilities, labels.has_regions),
            **uncertainty.maps_of(spread, names)}
    folder = case.parent / uncertainty.FOLDER
    folder.mkdir(exist_ok=True)
    for name, values in maps.items():
        uncertainty.write_map(values, folder / f"{case.name}_{name}.nii.gz", reader_writer, properties)
    first = 0 if labels.has_regions else 1
    heads = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    masks = [np.isin(segmentation, head) for head in heads]
    figures = uncertainty.case_figures(masks, probabilities[first:], volumes[:, first:],
                                       *uncertainty.voxel_size_of(properties), names, options.interval_scales)
    # written last: where it lies, the case is complete
    write_text(folder / f"{case.name}.json", json.dumps(figures, indent=2))


def keep_largest_components(segmentation: np.ndarray,
                            labels_or_regions: Sequence[int | tuple[int, ...]]) -> np.ndarray:
    """The largest component of each label or region; all smaller ones become background."""
    for label_or_region in labels_or_regions:
        segmentation = remove_all_but_largest_component_from_segmentation(segmentation, label_or_region)
    return segmentation


def at_temperature(probabilities: np.ndarray, temperature: float, regions: bool) -> np.ndarray:
    """p ** (1 / temperature) of (K, z, y, x), over the sum of all K where labels exclude each other, or else of both
    outcomes."""
    if temperature == 1:
        return probabilities
    powers = probabilities ** (1 / temperature)
    total = powers + (1 - probabilities) ** (1 / temperature) if regions else powers.sum(0, keepdims=True)
    return powers / total


class _ProbabilityResampling:
    """nnU-Net's configuration, which resamples probabilities where it is given logits.

    Linear resampling of probabilities commutes with their mean over folds; of logits it does not.
    """

    def __init__(self, configuration_manager: Any, regions: bool, temperature: float):
        self._configuration_manager = configuration_manager
        self._regions, self._temperature = regions, temperature

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration_manager, name)

    def resampling_fn_probabilities(self, logits: Any, *shape_and_spacing: Any) -> torch.Tensor:
        logits = torch.as_tensor(logits).float()
        probabilities = logits.sigmoid() if self._regions else logits.softmax(0)
        resampled = torch.as_tensor(self._configuration_manager.resampling_fn_probabilities(
            probabilities, *shape_and_spacing)).clamp(_FLOOR, 1 - _FLOOR if self._regions else 1)
        return (resampled.logit() if self._regions else resampled.log()) / self._temperature


class _Geometry:
    """The way from the network's grid back to the image, as nnU-Net's export goes it for probabilities."""

    def __init__(self, properties: dict, plans_manager: Any, configuration_manager: Any):
        self.properties = properties
        self.transpose_backward = plans_manager.transpose_backward
        self.configuration = configuration_manager
        self.spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]

    def to_image(self, values: torch.Tensor | np.ndarray) -> np.ndarray:
        """(C, z, y, x) on the network's grid -> (C, z, y, x) of the image, float32; 0 outside of the crop."""
        shape = self.properties["shape_after_cropping_and_before_resampling"]
        target = list(self.configuration.spacing)
        target = target if len(target) == len(shape) else [self.spacing[0], *target]
        resampled = np.asarray(self.configuration.resampling_fn_probabilities(values, shape, target, self.spacing))
        whole = np.zeros((len(resampled), *self.properties["shape_before_cropping"]), np.float32)
        for channel, part in zip(whole, resampled, strict=True):
            insert_crop_into_image(channel, part, self.properties["bbox_used_for_cropping"])
        return whole.transpose([0, *(axis + 1 for axis in self.transpose_backward)])

    def to_volume(self, share: np.ndarray) -> np.ndarray:
        """Shares of the network's grid -> volumes, in the unit of `uncertainty.voxel_size_of`; both grids cover the
        same box."""
        voxels = float(np.prod(self.properties["shape_after_cropping_and_before_resampling"]))
        return share * voxels * uncertainty.voxel_size_of(self.properties)[0]
