"""From a cascade's first stage to its second: segmentations that are handed on, and whether all of them are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import resample_and_save

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import preprocessed_folder, previous_stage
from ldseg_auto.inference.previous_stage import handed_on
from ldseg_auto.trainers.splits import Split

_FLOOR = 1e-6


def hand_on(predicted: Any, target_shape: Sequence[int], output_file: str, plans_manager: Any,
            configuration_manager: Any, properties: dict, dataset_json: dict, num_threads: int,
            dataset_class: Any) -> None:
    """In the place of nnU-Net's `resample_and_save`: probabilities are resampled, as in a prediction's export, not
    logits; and a case's file is there whole or not at all.

    Args:
        predicted: logits on the first stage's grid, (K, z, y, x).
        target_shape: of the second stage's.
        output_file: without its ending.
        All others: nnU-Net's.
    """
    labels = plans_manager.get_label_manager(dataset_json)
    spacing = configuration_manager.spacing
    probabilities = torch.as_tensor(np.asarray(configuration_manager.resampling_fn_probabilities(
        labels.apply_inference_nonlin(torch.as_tensor(predicted)), target_shape, spacing, spacing)))
    logits = (probabilities.logit(eps=_FLOOR) if labels.has_regions else probabilities.clamp(_FLOOR, 1).log())
    part = f"{output_file}.part"
    # on this grid already: nnU-Net's function is left to write
    resample_and_save(logits, target_shape, part, plans_manager, configuration_manager, properties, dataset_json,
                      num_threads, dataset_class)
    for ending in (".b2nd", ".npz"):  # of nnU-Net's two kinds of data set
        if Path(f"{part}{ending}").is_file():
            Path(f"{part}{ending}").replace(f"{output_file}{ending}")


def withdraw(model: Path, cases: Iterable[str]) -> None:
    """Remove what a first stage has handed on of these cases: it is trained anew, and until it is validated the second
    stage must not learn from what an earlier training said.

    Args:
        model: the first stage's folder.
    """
    for folder in (model / "predicted_next_stage").glob("*"):
        for case in cases:
            for ending in (".b2nd", ".npz"):
                (folder / f"{case}{ending}").unlink(missing_ok=True)


def keep(*_: Any) -> None:
    """In the same place, where a validation must not be handed on: of fold all, which predicts what it was trained on,
    or of another checkpoint than the final one."""


def require_handed_on(model: Path, dataset: str, plans: dict[str, Any], configuration: str, cases: Iterable[str],
                      splits: Sequence[Split]) -> None:
    """Raise unless a cascade's second stage finds a whole segmentation by the first for every case; nothing is asked
    of other configurations.

    Args:
        model: the second stage's folder.
        cases: that a fold is trained or validated on.
        splits: all folds, which say who predicts a case.
    """
    folder = handed_on(model, plans, configuration)
    if folder is None:
        return
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    source = preprocessed_folder(dataset, plans, configuration)
    data = infer_dataset_class(str(source))(str(source), folder_with_segs_from_previous_stage=str(folder))
    bad = [case for case in cases if not _is_whole(data, case)]
    if bad:
        folds = [str(number) for number, split in enumerate(splits) if set(bad) & set(split["val"])]
        trainer, plans_name = model.name.split("__")[:2]
        first = previous_stage(plans, configuration)
        raise LDSegError(f"{configuration} needs the segmentation of every case by {first}; in {folder} are missing, "
                         f"damaged or of another size: {named(bad)}.",
                         f"Train its folds first: ldseg_train {model.parent.name} {' '.join(folds)} -c {first} -tr "
                         f"{trainer} -p {plans_name} (with --val where they are trained already).")


def _is_whole(data: Any, case: str) -> bool:
    """Whether what was handed on can be read to its end and fits the case: a file that is cut off opens too."""
    try:
        image, _, segmentation, _ = data.load_case(case)
        return np.asarray(segmentation[:]).shape == tuple(image.shape[1:])
    except Exception:  # whatever a reader raises on a damaged file
        return False
