"""The predictions of several models as one: their probabilities are averaged case by case, in the images' geometry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm


def is_member(case: Path) -> bool:
    """Whether a model's part in the ensemble lies at CASE.npz and CASE.pkl; .pkl is written last."""
    return Path(f"{case}.npz").is_file() and Path(f"{case}.pkl").is_file()


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
                    uncertainty: bool, progress_bar: bool = True) -> None:
    """Write the segmentation of the mean probabilities of each case, as nnUNetv2_ensemble does, then drop the parts.

    Args:
        members: folders with each model's CASE.npz, CASE.pkl, plans.json and dataset.json, all below one folder,
            which is removed when every case is written; a case's parts go as soon as it is.
        cases: names without ending.
        out: gets CASE.ENDING; with `save_probabilities` CASE.npz and CASE.pkl, with `uncertainty` the entropy map.
    """
    from batchgenerators.utilities.file_and_folder_operations import load_json, load_pickle
    from nnunetv2.ensembling.ensemble import average_probabilities, merge_files
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from ldseg_auto.inference.uncertainty import write_entropy

    plans = PlansManager(str(members[0] / "plans.json"))
    description = load_json(str(members[0] / "dataset.json"))
    labels, reader_writer = plans.get_label_manager(description), plans.image_reader_writer_class()
    for name in ("plans.json", "dataset.json"):
        shutil.copy(members[0] / name, out / name)
    for case in tqdm(cases, desc="ensembling", disable=None if progress_bar else True):
        parts = [str(member / f"{case}.npz") for member in members]
        merge_files(parts, str(out / case), description["file_ending"], reader_writer, labels, save_probabilities)
        if uncertainty:
            write_entropy(average_probabilities(parts), labels.has_regions, out / case, reader_writer,
                          load_pickle(parts[0].removesuffix(".npz") + ".pkl"))
        for part in parts:
            Path(part).unlink()
    shutil.rmtree(members[0].parent)
