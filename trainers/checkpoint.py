"""Checkpoints that `torch.load(weights_only=True)` opens and that are never half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldseg_auto.errors import LDSegError, reason_of


def plain(value: Any) -> Any:
    """The same content in Python's own types: numpy scalars and arrays, tuples and devices are converted."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.device):
        return str(value)
    return value


def save(content: dict, filename: str) -> None:
    """Write to a temporary name beside `filename`, then rename: an interruption leaves the old file."""
    temporary = Path(f"{filename}.part")
    try:
        torch.save(content, temporary)
        os.replace(temporary, filename)
    finally:
        temporary.unlink(missing_ok=True)


def load(filename: str, device: torch.device) -> dict:
    """Open a checkpoint without running code from it.

    Raises:
        LDSegError: it is missing, damaged, or holds more than plain values and tensors.
    """
    try:
        return torch.load(filename, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise LDSegError(f"There is no checkpoint {filename}.",
                         "Train first, or name another one with -chk.") from error
    except Exception as error:
        raise LDSegError(f"The checkpoint {filename} cannot be read ({reason_of(error)}).",
                         "It is damaged or not one of ldseg_auto's: use another checkpoint or train again.") from error


def require_resumable(content: dict, folder: str) -> None:
    """Raise unless a training can go on from it, and be validated: an imported model holds what prediction needs."""
    if "optimizer_state" not in content:
        raise LDSegError(f"The checkpoint in {folder} was imported: it holds no training to continue or to validate.",
                         "Predict with it, or start a training from its weights (-pretrained_weights).")
