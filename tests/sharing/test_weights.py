import json

import pytest
import torch
from safetensors.torch import save

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing.weights import from_file, to_bytes


def _round_trip(state, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(to_bytes(state))
    return from_file(file), file.stat().st_size


def test_values_types_and_shapes_come_back(tmp_path):
    state = {"float": torch.randn(3, 4), "half": torch.randn(2).half(), "number": torch.tensor(7),
             "flag": torch.tensor([True, False]), "empty": torch.zeros(0, 3), "empty too": torch.zeros(0, 3),
             "turned": torch.randn(3, 4).T}
    back, _ = _round_trip(state, tmp_path)
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_a_tensor_with_two_names_is_stored_once_and_shared_again(tmp_path):
    weight = torch.randn(1000)
    back, size = _round_trip({"conv.weight": weight, "all_modules.0.weight": weight}, tmp_path)
    assert size < 1.5 * weight.numel() * 4
    assert back["conv.weight"].data_ptr() == back["all_modules.0.weight"].data_ptr()


def test_views_of_one_tensor_stay_apart(tmp_path):
    whole = torch.arange(6.0)
    back, _ = _round_trip({"whole": whole, "start": whole[:3], "shaped": whole.view(2, 3)}, tmp_path)
    assert torch.equal(back["start"], whole[:3]) and torch.equal(back["shaped"], whole.view(2, 3))


def test_a_network_loads_strictly(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network.again = network[0]
    network.load_state_dict(_round_trip(network.state_dict(), tmp_path)[0], strict=True)


@pytest.mark.parametrize("content", [
    b"", b"no tensors", (2 ** 60).to_bytes(8, "little") + b"{}", to_bytes({"a": torch.ones(4)})[:-3],
    *(save({"a": torch.ones(1)}, {"aliases": aliases}) for aliases in (
        "{", "[]", "[" * 100_000, json.dumps({"b": "missing"}), json.dumps({"a": "a"}), json.dumps({"b": 1})))])
def test_damaged_files_are_refused(content, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(LDSegError, match="weights.safetensors cannot be read"):
        from_file(file)
