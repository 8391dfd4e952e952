"""The state of every random generator that a training draws from, as plain values that a checkpoint may hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ldseg_auto.collectives import gathered, rank

_FIRST, _OTHERS = "random_state", "random_states_of_others"  # in a checkpoint, of rank 0 and of ranks 1, 2, ...


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators (augmentation workers are seeded by nobody); each of several
    processes that train together differently, or they would draw the same patches."""
    if rank():
        seed = int(np.random.SeedSequence((seed, rank())).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """Python's, numpy's and torch's generators as they are now, those of the GPUs where they are in use."""
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (name, np.asarray(keys).tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}


def of_all_ranks() -> dict[str, Any]:
    """For a checkpoint: the states of all processes that train together."""
    first, *others = gathered(get_state())
    return {_FIRST: first, _OTHERS: others}


def of_this_rank(content: dict[str, Any]) -> dict[str, Any] | None:
    """Out of a checkpoint; None where it holds none, being of an earlier version or of a training by fewer."""
    states = [content.get(_FIRST), *content.get(_OTHERS, ())]
    return states[rank()] if rank() < len(states) else None


def set_state(state: dict[str, Any]) -> None:
    """Put the generators into a state of `get_state`; GPUs that are not here are left out."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_initialized():
        for device, gpu in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(gpu.cpu(), device)
