"""Exponential moving average of a network's weights and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """Follows a network; with `swapped` the network computes with the average for a while.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n updates, so that short trainings are averaged over
    their end and not over their start.

    Args:
        network: unwrapped (no DDP, no compiled module).
        decay: share of the old average that an update keeps, once warm.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self._kept = 0.0  # share of the old average in this update

        def towards(averaged: torch.Tensor, current: torch.Tensor, updates: torch.Tensor | int) -> torch.Tensor:
            return torch.lerp(current.to(averaged), averaged, self._kept)

        self._model = AveragedModel(network, avg_fn=towards, use_buffers=True)

    def update(self, network: nn.Module) -> None:
        self._kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self._model.update_parameters(network)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged network's, under the network's own names."""
        return self._model.module.state_dict()

    @property
    def updates(self) -> int:
        return int(self._model.n_averaged)

    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        self._model.module.load_state_dict(state)
        self._model.n_averaged.fill_(updates)

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """`network` holds the averaged values inside the block, and its own again after it."""
        self._exchange(network)
        try:
            yield
        finally:
            self._exchange(network)

    @torch.no_grad()
    def _exchange(self, network: nn.Module) -> None:
        # not by state_dict: nnU-Net's blocks hold a convolution under two names, which would be exchanged twice
        averaged = self._model.module
        for own, other in zip(chain(network.parameters(), network.buffers()),
                              chain(averaged.parameters(), averaged.buffers()), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)
