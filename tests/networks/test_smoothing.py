"""The Gaussian before the encoder: scipy's, on the image alone."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ldseg_auto.config import LDSegConfig
from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.networks.smoothing import GaussianSmoothing


@pytest.fixture
def network(arch_kwargs):
    """A function (dimension, sigma, **changes) -> the same random network, which takes three channels."""
    def make(dimension, *sigma, **changes):
        torch.manual_seed(0)
        return LDSegNet(3, 3, **arch_kwargs(dimension, smoothing_sigma=list(sigma), **changes)).eval()
    return make


def image_of(dimension):
    return torch.randn(1, 3, *[16] * dimension, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "sigma"), [((2, 3, 9, 10), (0.6, 0.3)), ((1, 2, 7, 8, 9), (0.6, 0.0, 1.2)),
                                              ((1, 1, 1, 5, 4), (0.6, 0.6, 0.6))])
def test_it_is_scipys(shape, sigma):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    expected = gaussian_filter(image.numpy(), (0, 0, *sigma), mode="nearest",
                               radius=(0, 0, *(int(np.ceil(3 * s)) for s in sigma)))
    assert np.allclose(GaussianSmoothing(sigma)(image), expected, atol=1e-6)
    assert torch.equal(image, before)


def test_white_noise_becomes_weak_and_a_level_stays():
    smoothing = GaussianSmoothing((0.6, 0.6, 0.6))
    noise = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    assert smoothing(noise)[..., 2:-2, 2:-2, 2:-2].std() < 0.4 * noise.std()
    assert torch.allclose(smoothing(torch.full((1, 1, 4, 5, 6), 3.0)), torch.tensor(3.0))


@pytest.mark.parametrize("dim", [2, 3])
def test_in_prediction_the_encoder_sees_the_smoothed_image(dim, network):
    image, sigma = image_of(dim), (0.6,) * dim
    plain, smoothed = network(dim), network(dim, *sigma)
    with torch.no_grad():
        found = smoothed.encode_image(image)
        assert torch.equal(found, plain.encode_image(GaussianSmoothing(sigma)(image)))
        assert not torch.allclose(found, plain.encode_image(image), atol=1e-3)
        assert torch.equal(smoothed.train().encode_image(image), plain.train().encode_image(image)), "in training not"
    assert not set(smoothed.state_dict()) - set(plain.state_dict()), "weights fit with and without"


def test_the_first_stages_segmentation_is_not_smoothed(network):
    image, sigma = image_of(3), (0.6, 0.6, 0.6)
    plain, smoothed = (network(3, *s, previous_stage_channels=2) for s in ((), sigma))
    half = torch.cat([GaussianSmoothing(sigma)(image[:, :1]), image[:, 1:]], 1)
    with torch.no_grad():
        assert torch.equal(smoothed.encode_image(image), plain.encode_image(half))


@pytest.mark.parametrize("sigma", [[0.6], [0.6, 0.6, 0.6, 0.6], [0.6, -1.0, 0.6], [0.6, float("nan"), 0.6],
                                   [0.6, 1e9, 0.6], [0.6, 1e-160, 0.6], [[0.6], 0.6, 0.6], ["0.6"] * 3, None, 0, 0.6,
                                   False, "none"])
def test_mistakes_in_plans(sigma, arch_kwargs):
    with pytest.raises(LDSegError, match="smoothing_sigma is .* in the plans"):
        LDSegConfig.from_arch_kwargs(arch_kwargs(3, smoothing_sigma=sigma))


def test_plans_without_it_mean_none(arch_kwargs):
    assert LDSegConfig.from_arch_kwargs(arch_kwargs()).smoothing_sigma == ()
