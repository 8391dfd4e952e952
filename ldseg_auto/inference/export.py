"""From a prediction on the network's grid to files in the image's own geometry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from ldseg_auto.folders import write_text
from ldseg_auto.inference import uncertainty
from ldseg_auto.inference.ensemble import spread_file
from ldseg_auto.inference.geometry import Geometry
from ldseg_auto.inference.staging import part_folder, published
from ldseg_auto.inference.volumes import MadeFrom, Rows, VolumeInMemory


@dataclass(frozen=True)
class ExportOptions:
    """What is done to a prediction on its way to the files.

    Args:
        maps: write maps of uncertainty and CASE.json.
        spread: write what they are made of (`uncertainty.spread_of`) to CASE_spread.npz instead, for an ensemble of
            several models.
        temperature: of the probabilities, log p / temperature; fitted on cross-validation cases.
        largest_component: labels or regions of which only the largest component is kept, one after the other.
        interval_scales: per foreground class or region: half of a 90 % interval of its volume, in standard deviations
            of the samples' volumes; empty where nothing was fitted.
        expected_dice_lines: per foreground class or region: offset and slope of the line from the Dice that the
            probabilities promise to that which is met; empty where nothing was fitted.
    """

    maps: bool = False
    spread: bool = False
    temperature: float = 1.0
    largest_component: tuple[int | tuple[int, ...], ...] = ()
    interval_scales: tuple[float, ...] = field(default=())
    expected_dice_lines: tuple[tuple[float, float], ...] = field(default=())


def export_prediction(prediction: torch.Tensor | np.ndarray, properties: dict, configuration_manager: Any,
                      plans_manager: Any, dataset_json: dict, output_file_truncated: str,
                      save_probabilities: bool = False, *, options: ExportOptions | None = None) -> None:
    """In the place of nnU-Net's export: of logits (K, z, y, x) on the network's grid; all else as `export_case`."""
    logits = np.asarray(prediction)
    nonlinearity = plans_manager.get_label_manager(dataset_json).apply_inference_nonlin
    probabilities = MadeFrom(VolumeInMemory(logits), lambda rows: nonlinearity(rows).numpy(), len(logits))
    export_case(probabilities, [], properties, configuration_manager, plans_manager, dataset_json,
                Path(output_file_truncated), save_probabilities, options or ExportOptions())


def export_case(prediction: Rows, sample_voxels: Sequence[Sequence[float]], properties: dict,
                configuration_manager: Any, plans_manager: Any, dataset_json: dict, case: Path,
                save_probabilities: bool, options: ExportOptions) -> None:
    """Write a case's files, slab by slab. As nnU-Net's export, but for two things: probabilities are resampled, not
    logits, so that the mean of several folds is the mean of their files; and `options`.

    Args:
        prediction: on the network's grid, (K, z, y, x) probabilities; with `options.maps` or `.spread` behind them what
            `LDSegPredictor.predict_to` adds.
        sample_voxels: voxels of each class (columns) in each sample (rows) on the network's grid, for CASE.json.
        properties, configuration_manager, plans_manager, dataset_json, save_probabilities: nnU-Net's.
        case: OUT/CASE.
    """
    labels = plans_manager.get_label_manager(dataset_json)
    ending = dataset_json["file_ending"]
    with published(case, f"{case.name}{ending}") as folder:
        staged = folder / case.name
        made = in_image(prediction, sample_voxels, properties, configuration_manager, plans_manager, dataset_json,
                        save_probabilities, options, part_folder(case))
        if save_probabilities:
            assert made.probabilities is not None
            np.savez_compressed(f"{staged}.npz", probabilities=made.probabilities)
            save_pickle(properties, f"{staged}.pkl")
        if options.spread:
            assert made.spread is not None and made.volumes is not None
            np.savez_compressed(spread_file(staged), spread=made.spread, volumes=made.volumes)
        elif options.maps:
            write_uncertainty(made, labels, staged, plans_manager.image_reader_writer_class(), properties,
                              dataset_json, options)
        plans_manager.image_reader_writer_class().write_seg(made.segmentation, f"{staged}{ending}", properties)


@dataclass(frozen=True)
class InImage:
    """A prediction in the image's geometry.

    Args:
        segmentation: (z, y, x).
        probabilities: (K, z, y, x), where they are asked for or needed.
        spread: (K + 2, z, y, x), see `uncertainty.spread_of`; with maps or spread, as
        volumes: (samples, K) of each sample.
    """

    segmentation: np.ndarray
    probabilities: np.ndarray | None = None
    spread: np.ndarray | None = None
    volumes: np.ndarray | None = None


def in_image(prediction: Rows, sample_voxels: Sequence[Sequence[float]], properties: dict, configuration_manager: Any,
             plans_manager: Any, dataset_json: dict, keep_probabilities: bool, options: ExportOptions,
             folder: Path | None = None) -> InImage:
    """A prediction on its way back to the image; arguments as of `export_case`.

    Args:
        folder: holds the large arrays of the result in files; None keeps them in memory.
    """
    labels = plans_manager.get_label_manager(dataset_json)
    geometry = Geometry(properties, plans_manager, configuration_manager)
    wanted = options.maps or options.spread

    def canvas(name: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
        return geometry.canvas(np.float32, channels, None if folder is None else folder / name)

    kept = canvas("probabilities", labels.num_segmentation_heads) if keep_probabilities or wanted else None
    segmentation = keep_largest_components(_segment(prediction, geometry, labels, options.temperature, kept),
                                           options.largest_component)
    probabilities = None if kept is None else kept[0]
    if not wanted:
        return InImage(segmentation, probabilities)
    spread = _spread(prediction, geometry, labels, canvas("spread", labels.num_segmentation_heads + 2))
    return InImage(segmentation, probabilities, spread, geometry.to_volume(np.asarray(sample_voxels, dtype=float)))


def _segment(prediction: Rows, geometry: Geometry, labels: Any, temperature: float,
             kept: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """(z, y, x) labels in the image's geometry; the probabilities go to the canvas, where there is one."""
    heads = labels.num_segmentation_heads
    segmentation, inside = geometry.canvas(label_type(labels))
    probabilities, probabilities_inside = kept or (None, None)
    if probabilities is not None and not labels.has_regions:
        probabilities[0] = 1  # background around the crop, as nnU-Net has it
    for first, values in geometry.slabs(MadeFrom(prediction, lambda rows: rows[:heads], heads)):
        values = at_temperature(values.clip(0, 1), temperature, labels.has_regions)
        where = slice(first, first + values.shape[1])
        inside[where] = labels.convert_probabilities_to_segmentation(values)
        if probabilities_inside is not None:
            probabilities_inside[:, where] = values
    return segmentation


def label_type(labels: Any) -> type[np.unsignedinteger]:
    """The smallest that holds every label of nnU-Net's label manager."""
    return np.uint8 if len(labels.foreground_labels) < 255 else np.uint16


def _spread(prediction: Rows, geometry: Geometry, labels: Any, canvas: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(K + 2, z, y, x) in the image's geometry, see `uncertainty.spread_of`."""
    heads, regions = labels.num_segmentation_heads, labels.has_regions

    def spread_of_rows(rows: np.ndarray) -> np.ndarray:
        mean, squares, (of_draws, of_models) = torch.from_numpy(rows).split([heads, heads, 2])
        return uncertainty.spread_of(mean, squares, of_draws, of_models, regions).numpy()

    spread, inside = canvas
    for first, values in geometry.slabs(MadeFrom(prediction, spread_of_rows, heads + 2)):
        inside[:, first:first + values.shape[1]] = values
    return spread


def write_uncertainty(made: InImage, labels: Any, case: Path, reader_writer: Any, properties: dict, dataset_json: dict,
                      options: ExportOptions) -> None:
    """Maps and figures of a case below `uncertainty/`.

    Args:
        made: all of it.
        case: OUT/CASE.
    """
    maps, figures = maps_and_figures(made, labels, properties, dataset_json, options)
    folder = case.parent / uncertainty.FOLDER
    folder.mkdir(exist_ok=True)
    for name, values in maps.items():
        uncertainty.write_map(values, folder / f"{case.name}_{name}.nii.gz", reader_writer, properties)
    # written last: where it lies, the case is complete
    write_text(folder / f"{case.name}.json", json.dumps(figures, indent=2))


def maps_and_figures(made: InImage, labels: Any, properties: dict, dataset_json: dict,
                     options: ExportOptions) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The maps of uncertainty by name, (z, y, x) each, and `uncertainty.case_figures`."""
    assert made.probabilities is not None and made.spread is not None and made.volumes is not None
    names = uncertainty.class_names(dataset_json)
    maps = {"entropy": uncertainty.predictive_entropy(made.probabilities, labels.has_regions),
            **uncertainty.maps_of(made.spread, names)}
    first = 0 if labels.has_regions else 1
    heads = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    masks = [np.isin(made.segmentation, head) for head in heads]
    return maps, uncertainty.case_figures(masks, made.probabilities[first:], made.volumes[:, first:],
                                          *uncertainty.voxel_size_of(properties), names, options.interval_scales,
                                          options.expected_dice_lines)


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
