"""The average follows the network and can stand in for it."""

import pytest
import torch
from torch import nn

from ldseg_auto.trainers.ema import WeightAverage


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1))


def set_to(network, value):
    with torch.no_grad():
        network.weight.fill_(value)
        network.seen.fill_(10 * value)


def test_warm_up_follows_its_formula_for_weights_and_buffers():
    network = Scale()
    average = WeightAverage(network, 0.9)
    expected = None
    for n in range(200):
        set_to(network, float(n % 7))
        average.update(network)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = float(n % 7) if expected is None else decay * expected + (1 - decay) * float(n % 7)
    assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert average.state_dict()["seen"].item() == pytest.approx(10 * expected, rel=1e-5)
    assert average.updates == 200


def test_decay_has_an_effect():
    results = []
    for decay in (0.5, 0.99):
        network = Scale()
        average = WeightAverage(network, decay)
        for n in range(100):
            set_to(network, float(n))
            average.update(network)
        results.append(average.state_dict()["weight"].item())
    assert results[0] > results[1]


def test_swapped_is_undone_even_after_an_error():
    network = Scale()
    average = WeightAverage(network, 0.9)
    set_to(network, 1.0)
    average.update(network)
    set_to(network, 5.0)
    with pytest.raises(RuntimeError), average.swapped(network):
        assert network.weight.item() == 1.0
        raise RuntimeError
    assert network.weight.item() == 5.0
    assert average.state_dict()["weight"].item() == 1.0


def test_a_layer_under_two_names_is_exchanged_once():
    network = nn.Module()
    network.one = Scale()
    network.other = network.one  # as in nnU-Net's convolution blocks
    average = WeightAverage(network, 0.9)
    set_to(network.one, 1.0)
    average.update(network)
    set_to(network.one, 5.0)
    with average.swapped(network):
        assert network.one.weight.item() == 1.0


def test_loading_continues_the_warm_up():
    network = Scale()
    average = WeightAverage(network, 0.9)
    average.load({"weight": torch.tensor([3.0]), "seen": torch.tensor([4.0])}, 50)
    set_to(network, 0.0)
    average.update(network)
    assert average.state_dict()["weight"].item() == pytest.approx(3.0 * 51 / 60, rel=1e-5)
