"""The predictions of several models as one: their probabilities are averaged case by case, in the images' geometry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ldseg_auto.inference.outputs import is_whole
from ldseg_auto.sharing.opening import read_model, read_properties

if TYPE_CHECKING:
    from ldseg_auto.inference.export import ExportOptions, InImage


def is_member(case: Path, with_spread: bool = False) -> bool:
    """Whether a model's part in the ensemble lies at CASE.npz and CASE.pkl, and, where they are asked for, its spread
    (see `inference.uncertainty`), which is written last."""
    spread = [spread_file(case)] if with_spread else []
    return all(map(is_whole, (Path(f"{case}.npz"), Path(f"{case}.pkl"), *spread)))


def spread_file(case: Path) -> Path:
    """OUT/CASE -> OUT/CASE_spread.npz."""
    return case.parent / f"{case.name}_spread.npz"


def open_parts(folder: Path, keep: bool, options: Mapping[str, Any]) -> Path:
    """A folder for the models' parts; those of an earlier run stay only where they are asked for and were made with
    the same options."""
    made_with = json.dumps({name: str(value) for name, value in options.items()}, sort_keys=True, indent=2)
    note = folder / "options.json"
    if folder.exists() and not (keep and note.is_file() and note.read_text() == made_with):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(made_with)
    return folder


def average_members(members: Sequence[Path], cases: Sequence[str], out: Path, save_probabilities: bool,
                    options: ExportOptions, progress_bar: bool = True) -> None:
    """Write the segmentation of the mean probabilities of each case, then drop the parts.

    Args:
        members: folders with each model's CASE.npz, CASE.pkl, plans.json and dataset.json, all below one folder,
            which is removed when no part is left; a case's parts go as soon as it is written. For maps of uncertainty
            also CASE_spread.npz.
        cases: names without ending.
        out: gets CASE.ENDING; with `save_probabilities` CASE.npz and CASE.pkl, with `options.maps` the maps.

    Raises:
        CasesFailed: some cases could not be averaged; all others are written.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from ldseg_auto.inference.failures import CasesFailed, failure_of

    content, description = read_model(members[0])
    plans = PlansManager(content)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(members[0] / name, out / name)
    failures = []
    for case in tqdm(cases, desc="ensembling", disable=None if progress_bar else True):
        parts = [member / case for member in members]
        try:
            _average_case(parts, out / case, plans, description, save_probabilities, options)
        except Exception as error:
            failures.append(failure_of(case, "averaging", error))
            continue
        for part in parts:
            Path(f"{part}.npz").unlink()
            spread_file(part).unlink(missing_ok=True)
    if not any(file for member in members for file in member.glob("*.npz")):
        shutil.rmtree(members[0].parent)
    if failures:
        raise CasesFailed(failures, len(cases))


def _average_case(parts: Sequence[Path], case: Path, plans: Any, description: dict[str, Any],
                  save_probabilities: bool, options: ExportOptions) -> None:
    from batchgenerators.utilities.file_and_folder_operations import save_pickle
    from nnunetv2.ensembling.ensemble import average_probabilities

    from ldseg_auto.inference.export import write_uncertainty
    from ldseg_auto.inference.staging import published

    labels, reader_writer = plans.get_label_manager(description), plans.image_reader_writer_class()
    properties = read_properties(Path(f"{parts[0]}.pkl"))
    made = _finished(average_probabilities([f"{part}.npz" for part in parts]), labels, options)
    segmentation_file = f"{case.name}{description['file_ending']}"
    with published(case, segmentation_file) as folder:
        if save_probabilities:
            assert made.probabilities is not None
            np.savez_compressed(folder / f"{case.name}.npz", probabilities=made.probabilities)
            save_pickle(properties, str(folder / f"{case.name}.pkl"))
        if options.maps:
            members = [np.load(spread_file(part)) for part in parts]
            of_members = [np.load(f"{part}.npz")["probabilities"].astype(np.float32) for part in parts]
            made = _with_spread(made, of_members, [member["spread"] for member in members],
                                [member["volumes"] for member in members], labels)
            write_uncertainty(made, labels, folder / case.name, reader_writer, properties, description, options)
        reader_writer.write_seg(made.segmentation, str(folder / segmentation_file), properties)


def average_in_memory(parts: Sequence[InImage], labels: Any, options: ExportOptions) -> InImage:
    """The same of what several models make of one image, each with its probabilities, and its spread for maps."""
    of_members = [np.asarray(part.probabilities) for part in parts]
    mean = of_members[0].copy()
    for other in of_members[1:]:
        mean += other
    made = _finished(mean / np.float32(len(parts)), labels, options)
    if not options.maps:
        return made
    return _with_spread(made, of_members, [np.asarray(part.spread) for part in parts],
                        [np.asarray(part.volumes) for part in parts], labels)


def _finished(mean: np.ndarray, labels: Any, options: ExportOptions) -> InImage:
    """Of the members' mean probabilities."""
    from ldseg_auto.inference.export import InImage, at_temperature, keep_largest_components, label_type

    probabilities = at_temperature(mean, options.temperature, labels.has_regions)
    segmentation = np.asarray(labels.convert_probabilities_to_segmentation(probabilities)).astype(label_type(labels))
    return InImage(keep_largest_components(segmentation, options.largest_component), probabilities)


def _with_spread(made: InImage, probabilities: Sequence[np.ndarray], spreads: Sequence[np.ndarray],
                 volumes: Sequence[np.ndarray], labels: Any) -> InImage:
    """With what is made of the members' probabilities, spread and volumes."""
    from ldseg_auto.inference.uncertainty import spread_of_ensemble

    return replace(made, spread=spread_of_ensemble(probabilities, spreads, labels.has_regions),
                   volumes=np.concatenate(volumes))
