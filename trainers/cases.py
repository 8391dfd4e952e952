"""Preprocessed cases, looked at before a training reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ldseg_auto.errors import LDSegError, named


def require_openable(folder: Path, cases: Iterable[str]) -> None:
    """Raise unless nnU-Net can open every case, which it does without reading its voxels: what is cut off is named
    now, and not by a traceback in the middle of an epoch. Takes a millisecond a case.

    Args:
        folder: of the preprocessed cases of a configuration.
        cases: their names.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(str(folder))
    damaged = []
    for case in cases:
        try:
            dataset.load_case(case)
        except Exception:  # whatever a reader raises on a damaged file
            damaged.append(case)
    if damaged:
        raise LDSegError(f"Preprocessed cases in {folder} are damaged or incomplete: {named(damaged)}.",
                         "Run ldseg_plan_and_preprocess again; a training that was begun then goes on.")
