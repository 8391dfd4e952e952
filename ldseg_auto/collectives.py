"""What processes that train one network together (ranks) tell each other. Alone, a process is told what it said.

All of them must call the same functions in the same order: where one does not, the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import torch
from torch import distributed as dist
from torch import nn

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together, on all machines."""
    return dist.get_world_size() if is_distributed() else 1


def wait_for_all() -> None:
    """Go on when all have come here."""
    if is_distributed():
        dist.barrier()


def from_first(value: Value) -> Value:
    """What rank 0 calls this with."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: Value) -> list[Value]:
    """What each of them calls this with, in order."""
    if not is_distributed():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def stacked(tensor: torch.Tensor) -> torch.Tensor:
    """Tensors of one shape -> (ranks, *shape), without a gradient."""
    if not is_distributed():
        return tensor.detach()[None]
    tensors = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(tensors, tensor.detach().contiguous())
    return torch.stack(tensors)


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of tensors of one shape, without a gradient; not finite where one of them is not."""
    return stacked(tensor).mean(0)


@torch.no_grad()
def copy_from_first(network: nn.Module) -> None:
    """Parameters and buffers as rank 0 has them."""
    if is_distributed():
        for tensor in chain(network.parameters(), network.buffers()):
            dist.broadcast(tensor, src=0)


def first_before_others(work: Callable[[], Value]) -> Value:
    """Each does the work and has its result; rank 0 first, alone. For reading what it may have to repair."""
    if rank() != 0:
        wait_for_all()
        return work()
    try:
        return work()
    finally:
        wait_for_all()
