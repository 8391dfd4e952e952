"""Makes our trainers known to nnU-Net's search for trainer classes by name."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = str(Path(__file__).resolve().parent)
_VARIABLE = "nnUNet_extTrainer"


def register() -> None:
    """Append this folder to nnUNet_extTrainer, for this process and those it starts. Calling it again is harmless."""
    folders = [folder for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]
    if FOLDER not in folders:
        os.environ[_VARIABLE] = os.pathsep.join([*folders, FOLDER])
