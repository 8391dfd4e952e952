"""Mixed precision on CPUs, and what is computed otherwise for speed: the same up to rounding."""

import pytest
import torch
from torch import nn

from ldseg_auto import precision
from ldseg_auto.cli import train
from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.blocks import QUICKER_NORMS

CPU = torch.device("cpu")


def _dtype_of_a_convolution(device: torch.device) -> torch.dtype:
    with precision.autocast(device):
        return nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2)).dtype


@pytest.mark.parametrize(("chosen", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_the_variable_decides(monkeypatch, chosen, dtype):
    monkeypatch.setenv(precision.VARIABLE, chosen)
    assert _dtype_of_a_convolution(CPU) == dtype


@pytest.mark.parametrize("fast", [True, False])
def test_without_the_variable_the_processor_decides(monkeypatch, fast):
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": fast}, raising=False)
    assert _dtype_of_a_convolution(CPU) == (torch.bfloat16 if fast else torch.float32)


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv(precision.VARIABLE, "half")
    with pytest.raises(LDSegError, match="LDSEG_CPU_PRECISION is 'half'.*bfloat16, float32"):
        precision.autocast(CPU)


@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, nn.InstanceNorm3d])
@pytest.mark.parametrize("affine", [True, False])
def test_quicker_norms_are_instance_norms(kind, affine):
    torch.manual_seed(0)
    own, quicker = (each(3, affine=affine, eps=1e-5) for each in (kind, QUICKER_NORMS[kind]))
    assert isinstance(quicker, kind)
    if affine:
        for norm in (own, quicker):
            norm.weight.data = torch.tensor([0.5, 1.0, 2.0])
            norm.bias.data = torch.tensor([0.1, 0.2, 0.3])
    image = torch.randn(2, 3, *[5] * (2 if kind is nn.InstanceNorm2d else 3))
    torch.testing.assert_close(quicker(image), own(image))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_single_images_are_convolved_the_same(dim, stride, bias):
    torch.manual_seed(0)
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dim](3, 8, 3, stride, padding=1, bias=bias)
    image = torch.randn(1, 3, *[9] * dim)
    with torch.inference_mode():
        expected = convolution(image)
        with precision.OneDNNForSingleImages():
            torch.testing.assert_close(convolution(image), expected)


def test_single_images_go_to_onednn_and_others_do_not(monkeypatch):
    seen = []
    own = torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda image, *rest: seen.append(len(image)) or own(image, *rest))
    convolution = nn.Conv3d(1, 2, 3, padding=1)
    with precision.OneDNNForSingleImages():
        with torch.no_grad():
            convolution(torch.zeros(2, 1, 4, 4, 4))
            convolution(torch.zeros(1, 1, 4, 4, 4))
        convolution(torch.zeros(1, 1, 4, 4, 4)).sum().backward()  # gradients stay possible
    assert seen == [1]
    assert convolution.weight.grad is not None


def test_layout_keeps_the_values():
    network = nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    precision.laid_out_for(CPU, network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_wrong_value_is_said_before_anything_is_touched(own_small_world, monkeypatch, capsys):
    monkeypatch.setenv(precision.VARIABLE, "half")
    checkpoint = own_small_world["model"] / "fold_0" / "checkpoint_final.pth"
    assert train.main(["7", "0", "-c", "3d_fullres", "-device", "cpu", "--restart"]) == 1
    assert "LDSEG_CPU_PRECISION is 'half'" in capsys.readouterr().err
    assert checkpoint.is_file() and (checkpoint.parent / "validation").is_dir()
