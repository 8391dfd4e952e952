"""A network's weights as safetensors: opening a stranger's file runs no code, unlike a pickled checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing.manifest import short

_ALIASES = "aliases"  # in the file's metadata: {name: name of the tensor that it shares}


def to_bytes(state: Mapping[str, torch.Tensor]) -> bytes:
    """A state dict as the content of a .safetensors file.

    nnU-Net's blocks hold each of their layers under two names; safetensors refuses shared memory, so each tensor is
    stored once and its other names in a table.
    """
    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple, str] = {}
    for name, tensor in state.items():
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and memory in names:
            aliases[name] = names[memory]
        else:
            names[memory] = name
            stored[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    # one entry: safetensors writes several in random order, and the same model should have the same hash
    return save(stored, {_ALIASES: json.dumps(aliases)})


def from_file(path: Path) -> dict[str, torch.Tensor]:
    """What `to_bytes` was given; names that shared a tensor share it again.

    Raises:
        LDSegError: the file is damaged, or its table names what it does not hold.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, short(str(error))) from error
    if not isinstance(aliases, dict) or not all(isinstance(stored, str) for stored in aliases.values()):
        raise _damaged(path, "its table of names is none")
    wrong = [name for name, stored in aliases.items() if name in state or stored not in state]
    if wrong:
        raise _damaged(path, f"its table of names is wrong about {short(wrong[0])}")
    return state | {name: state[stored] for name, stored in aliases.items()}


def _damaged(path: Path, reason: str) -> LDSegError:
    return LDSegError(f"The weights {path.parent.name}/{path.name} cannot be read ({reason}).",
                      "The file is damaged: get the model from its source again.")
