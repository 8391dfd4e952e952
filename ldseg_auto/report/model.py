"""Which trained model a report is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg_auto.folders import Fold, dataset_id

_BEST = "checkpoint_best.pth"


@dataclass(frozen=True)
class Model:
    """A model's folder, and which of its folds and checkpoints."""

    folder: Path
    folds: tuple[Fold, ...]
    checkpoint_name: str
    plans: dict[str, Any]
    description: dict[str, Any]  # its dataset.json

    @property
    def dataset(self) -> str:
        """DatasetXXX_NAME."""
        return self.folder.parent.name

    @property
    def trainer(self) -> str:
        """Name of the class."""
        return self.folder.name.split("__")[0]

    @property
    def configuration(self) -> str:
        """Such as 3d_fullres."""
        return self.folder.name.split("__")[-1]

    @property
    def has_regions(self) -> bool:
        """Whether its classes may overlap."""
        return any(isinstance(value, list) and len(value) > 1 for value in self.description["labels"].values())

    def validation_folder(self, fold: Fold) -> Path:
        """Where ldseg_train puts the validation of the checkpoint."""
        name = "validation_best" if self.checkpoint_name == _BEST else "validation"
        return self.folder / f"fold_{fold}" / name

    def validation_command(self, folds: Iterable[Fold]) -> str:
        """What writes that validation and its probabilities."""
        trainer, plans, configuration = self.folder.name.split("__")
        best = " --val_best" if self.checkpoint_name == _BEST else ""
        return (f"ldseg_train {dataset_id(self.dataset)} {' '.join(map(str, folds))} -c {configuration} -tr {trainer} "
                f"-p {plans} --val{best} --npz")
