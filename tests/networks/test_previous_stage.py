"""The first stage's segmentation in the condition: seen where it is the same all over, without normalisation."""

import pytest
import torch
from torch import nn

from ldseg_auto.config import LDSegConfig
from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.ldseg_net import LDSegNet

PATCH = {2: (32, 48), 3: (16, 32, 16)}


def network(dim, channels):
    torch.manual_seed(0)
    conv = nn.Conv2d if dim == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if dim == 2 else nn.InstanceNorm3d
    return LDSegNet(1 + 2, 3, n_stages=3, features_per_stage=(8, 16, 24), conv_op=conv, kernel_sizes=((3,) * dim,) * 3,
                    strides=((1,) * dim, (2,) * dim, (2,) * dim), n_conv_per_stage=(1, 1, 1), latent_stride=(4,) * dim,
                    latent_channels=4, norm_op=norm, nonlin=nn.LeakyReLU, denoiser_features=(8, 16),
                    previous_stage_channels=channels)


def image_with(dim, label):
    """The same image, beside the one-hot channels of one label all over."""
    image = torch.randn(1, 3, *PATCH[dim], generator=torch.Generator().manual_seed(0))
    image[:, 1:] = 0
    if label:
        image[:, label] = 1
    return image


@pytest.mark.parametrize("dim", [2, 3])
def test_a_label_that_is_the_same_all_over_reaches_the_condition(dim):
    """Inside, away from the borders, nothing else tells the image encoder of it."""
    inside = (slice(None), slice(None), *[slice(1, -1)] * dim)
    differences = {}
    for channels in (0, 2):
        net = network(dim, channels).eval()
        with torch.no_grad():
            one, two = (net.encode_image(image_with(dim, label)) for label in (1, 2))
        differences[channels] = (one - two)[inside].abs().mean().item()
    assert differences[0] < 0.1 * differences[2], "instance normalisation takes it away"
    with torch.no_grad():
        a, b = (net(image_with(dim, label)) for label in (1, 2))
    assert not torch.allclose(a, b, atol=1e-3)


def test_only_the_last_channels_count_and_gradients_reach_them():
    net = network(3, 2)
    previous = net.image_encoder.previous_stage
    image = image_with(3, 1)
    other = image.clone()
    other[:, 0] += 1
    assert torch.equal(previous(image), previous(other))
    previous(image).sum().backward()
    assert previous.blocks.weight.grad.abs().sum() > 0
    assert network(3, 0).image_encoder.previous_stage is None


def test_a_negative_number_is_refused():
    with pytest.raises(LDSegError, match="previous_stage_channels"):
        network(3, -1)
    assert LDSegConfig.from_arch_kwargs(network(3, 2).config.to_arch_kwargs()).previous_stage_channels == 2
