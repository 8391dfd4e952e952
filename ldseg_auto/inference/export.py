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
    geometry = Geometry(properties, plans_manager, configuration_manager)
    wanted = options.maps or options.spread
    ending = dataset_json["file_ending"]
    with published(case, f"{case.name}{ending}") as folder:
        staged = folder / case.name
        kept = part_folder(case) / "probabilities" if save_probabilities or wanted else None
        segmentation, probabilities = _segment(prediction, geometry, labels, options.temperature, kept)
        segmentation = keep_largest_components(segmentation, options.largest_component)
        if save_probabilities:
            assert probabilities is not None
            np.savez_compressed(f"{staged}.npz", probabilities=probabilities)
            save_pickle(properties, f"{staged}.pkl")
        if wanted:
            spread = _spread(prediction, geometry, labels, part_folder(case) / "spread")
            volumes = geometry.to_volume(np.asarray(sample_voxels, dtype=float))
        if options.spread:
            np.savez_compressed(spread_file(staged), spread=spread, volumes=volumes)
        elif options.maps:
            assert probabilities is not None
            write_uncertainty(probabilities, segmentation, spread, volumes, labels, staged,
                              plans_manager.image_reader_writer_class(), properties, dataset_json, options)
        plans_manager.image_reader_writer_class().write_seg(segmentation, f"{staged}{ending}", properties)


def _segment(prediction: Rows, geometry: Geometry, labels: Any, temperature: float,
             file: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    """(z, y, x) labels in the image's geometry and, where there is a file to hold them, the probabilities."""
    heads = labels.num_segmentation_heads
    segmentation, inside = geometry.canvas(np.uint8 if len(labels.foreground_labels) < 255 else np.uint16)
    probabilities, probabilities_inside = geometry.canvas(np.float32, heads, file) if file else (None, None)
    if probabilities is not None and not labels.has_regions:
        probabilities[0] = 1  # background around the crop, as nnU-Net has it
    for first, values in geometry.slabs(MadeFrom(prediction, lambda rows: rows[:heads], heads)):
        values = at_temperature(values.clip(0, 1), temperature, labels.has_regions)
        where = slice(first, first + values.shape[1])
        inside[where] = labels.convert_probabilities_to_segmentation(values)
        if probabilities_inside is not None:
            probabilities_inside[:, where] = values
    return segmentation, probabilities


def _spread(prediction: Rows, geometry: Geometry, labels: Any, file: Path) -> np.ndarray:
    """(K + 2, z, y, x) in the image's geometry, see `uncertainty.spread_of`."""
    heads, regions = labels.num_segmentation_heads, labels.has_regions

    def spread_of_rows(rows: np.ndarray) -> np.ndarray:
        mean, squares, (of_draws, of_models) = torch.from_numpy(rows).split([heads, heads, 2])
        return uncertainty.spread_of(mean, squares, of_draws, of_models, regions).numpy()

    spread, inside = geometry.canvas(np.float32, heads + 2, file)
    for first, values in geometry.slabs(MadeFrom(prediction, spread_of_rows, heads + 2)):
        inside[:, first:first + values.shape[1]] = values
    return spread


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
                                       *uncertainty.voxel_size_of(properties), names, options.interval_scales,
                                       options.expected_dice_lines)
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
