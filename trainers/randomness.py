"""The state of every random generator that a training draws from, as plain values that a checkpoint may hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators (augmentation workers are seeded by nobody)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """Python's, numpy's and torch's generators as they are now, those of the GPUs where they are in use."""
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (name, np.asarray(keys).tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}


def set_state(state: dict[str, Any]) -> None:
    """Put the generators into a state of `get_state`; GPUs that are not here are left out."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_initialized():
        for device, gpu in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(gpu.cpu(), device)
