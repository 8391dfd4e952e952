"""What each of two joined processes does in test_steps.py and test_statistics.py."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ldseg_auto import collectives
from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.label_autoencoder import LatentStandardisation
from ldseg_auto.trainers import randomness
from ldseg_auto.trainers.guarded_step import MOST_IN_A_ROW, GuardedStep

NAN = float("nan")


def steps(rank: int, factors: Sequence[float], constants: Sequence[float]) -> dict:
    """A step on the loss weight * factor + constant, of which each rank has its own; then one on weight alone."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    joint = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(joint.parameters(), lr=0.5)
    told: list[str] = []
    guarded = GuardedStep(told.append)

    def step(factor: float, constant: float) -> tuple[float, bool]:
        optimizer.zero_grad(set_to_none=True)
        loss = (joint(torch.ones(1, 1)) * factor + constant).sum()
        return guarded(loss, joint, optimizer, None, {"data": torch.zeros(1, 1, 2, 2), "keys": np.array(["a"])})

    first, weight = step(factors[rank], constants[rank]), network.weight.item()
    return {"first": first, "weight": weight, "told": len(told), "second": step(1.0, 0.0),
            "weight after": network.weight.item()}


def ten_in_a_row(rank: int) -> str:
    """The error where the images of rank 1 alone hold no numbers."""
    network = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(network.parameters())
    guarded = GuardedStep(lambda _: None)
    data = torch.full((1, 1, 2, 2), NAN if rank else 0.0)
    try:
        for _ in range(MOST_IN_A_ROW):
            guarded(network(data[0, 0, :1, :1]).sum(), network, optimizer, None,
                    {"data": data, "keys": np.array([f"case of rank {rank}"])})
    except LDSegError as error:
        return str(error)
    return ""


def standardised(rank: int, codes: Sequence[torch.Tensor], weights: Sequence[torch.Tensor | None],
                 shares: int = 2) -> dict[str, torch.Tensor]:
    """Codes of some iterations, each rank with its share, and the statistics afterwards."""
    module = LatentStandardisation("tracked", codes[0].shape[1]).train()
    outputs = [module(code.chunk(shares)[rank], None if weight is None else weight.chunk(shares)[rank])
               for code, weight in zip(codes, weights, strict=True)]
    return {"outputs": torch.cat(outputs), "mean": module.mean, "variance": module.variance, "updates": module.updates}


def said(rank: int) -> dict:
    """What every function of `collectives` gives."""
    network = nn.Linear(2, 2)
    collectives.copy_from_first(network)
    order: list[int] = []
    collectives.first_before_others(lambda: order.append(rank))
    return {"rank": collectives.rank(), "size": collectives.world_size(),
            "first": collectives.from_first(f"rank {rank}"), "gathered": collectives.gathered(rank),
            "stacked": collectives.stacked(torch.tensor([1.0, rank])),
            "mean": collectives.mean_over_ranks(torch.tensor([1.0, rank])), "weight": network.weight.detach()}


def before_others(rank: int, file: str) -> str:
    """Rank 0 writes slowly, and the others read what it wrote."""
    def write_or_read() -> str:
        if rank == 0:
            time.sleep(0.5)
            with open(file, "w") as out:
                out.write("repaired")
        with open(file) as back:
            return back.read()
    return collectives.first_before_others(write_or_read)


def seeded(rank: int, seed: int) -> tuple[float, float]:
    randomness.seed_all(seed)
    return np.random.rand(), torch.rand(()).item()

