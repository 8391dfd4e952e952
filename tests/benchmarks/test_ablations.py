"""The label decoder that also sees the condition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ablations import DecoderWithCondition
from torch import nn


class Encoder(nn.Module):
    channels = 2

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image]


@pytest.mark.parametrize(("dropped", "changes"), [(0.0, True), (1.0, False)])
def test_dropping_keeps_the_condition_from_it_in_training_alone(dropped, changes):
    torch.manual_seed(0)
    network = SimpleNamespace(config=SimpleNamespace(conv_op=nn.Conv2d, latent_channels=3), label_decoder=nn.Identity(),
                              image_encoder=Encoder())
    decoder = DecoderWithCondition(network, dropped)
    latent = torch.zeros(1, 3, 4, 4)
    network.image_encoder(torch.ones(1, 2, 4, 4))
    assert bool(decoder(latent).any()) == changes
    assert decoder.eval()(latent).any()
