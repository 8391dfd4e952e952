"""The latent of a whole volume at once: the same as tile by tile where there is one tile, and without seams."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference import fallback, whole_volume
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.volumes import VolumeInMemory
from ldseg_auto.inference.whole_volume import reach_of

CPU = torch.device("cpu")


def load(model, whole=True, **options):
    options = {"samples": 2, "steps": 2, "eta": 1.0, "allow_tqdm": False, "use_mirroring": False} | options
    predictor = LDSegPredictor(device=CPU, whole_volume=whole, **options)
    predictor.initialize_from_trained_model_folder(str(model), [0])
    torch.manual_seed(0)
    for weights in (predictor.network.denoiser.from_latent.weight, predictor.network.denoiser.out[-1].weight):
        nn.init.normal_(weights, std=0.3)  # samples of two iterations would hardly differ
    predictor.list_of_parameters = [predictor.network.state_dict()]
    return predictor


def image_of(*shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def mean(predictor, image):
    result = predictor.mean_probabilities(image, 0)
    assert torch.allclose(result.sum(0), torch.ones(image.shape[1:]), atol=1e-5)
    return result


@pytest.mark.parametrize("configuration", ["model", "model_2d"])
@pytest.mark.parametrize("mirroring", [False, True])
def test_of_one_tile_it_is_what_tile_by_tile_gives(in_small_world, configuration, mirroring):
    """With the same noise, in every mirrored view; and with the same maps of uncertainty."""
    image = image_of(3, 12, 14) if configuration == "model_2d" else image_of(9, 12, 14)
    images = []
    for whole in (False, True):
        predictor = load(in_small_world[configuration], whole, use_mirroring=mirroring,
                         export=ExportOptions(maps=True))
        target = VolumeInMemory(np.zeros(predictor.shape_of_prediction(image.shape), np.float32))
        shares = predictor.predict_to(image, target)
        images.append((target.values, np.array(shares)))
    (tiled, tiled_shares), (whole, whole_shares) = images
    assert np.abs(tiled[:3] - 1 / 3).max() > 0.01
    assert np.allclose(whole, tiled, atol=1e-4)
    assert tiled_shares.shape == whole_shares.shape == (2 * (2 ** (image.ndim - (configuration == "model_2d") - 1)
                                                             if mirroring else 1), 3)
    assert np.allclose(whole_shares, tiled_shares, atol=2e-3)


def test_of_several_tiles_it_differs_and_every_option_has_an_effect(in_small_world):
    image = image_of(18, 40, 20)
    base = mean(load(in_small_world["model"]), image)
    for changes in ({"whole": False}, {"seed": 1}, {"samples": 3}, {"steps": 1, "eta": 0.0}, {"use_gaussian": False},
                    {"tile_step_size": 0.25}):
        assert not torch.allclose(mean(load(in_small_world["model"], **changes), image), base, atol=1e-5), changes


def test_slices_of_a_2d_model_are_wholes_of_their_own(in_small_world):
    predictor, image = load(in_small_world["model_2d"]), image_of(3, 40, 24)
    result = mean(predictor, image)
    changed = image.clone()
    changed[:, 1] += 5
    other = mean(predictor, changed)
    assert torch.allclose(result[:, [0, 2]], other[:, [0, 2]], atol=1e-6)
    assert not torch.allclose(result[:, 1], other[:, 1], atol=1e-4)


def of_its_own_tile_alone(predictor):
    """An encoder that looks no further than a latent position: what remains of tiling is what the code adds."""
    net = predictor.network
    channels = net.image_encoder.channels
    net.encode_image = lambda image: F.avg_pool3d(image, net.config.latent_stride).expand(
        -1, channels, *[-1] * (image.ndim - 2))
    return predictor


@pytest.mark.parametrize("mirroring", [False, True])
def test_independent_of_the_tiling_and_equal_to_decoding_as_a_whole(in_small_world, mirroring, monkeypatch):
    image = image_of(20, 37, 22)
    results = []
    for step, images in ((0.5, 2), (1.0, 1), (0.25, 5)):
        predictor = of_its_own_tile_alone(load(in_small_world["model"], tile_step_size=step, use_mirroring=mirroring,
                                               samples=1))
        monkeypatch.setattr(predictor, "_images_per_batch", lambda images=images: images)
        results.append(mean(predictor, image))
    assert torch.allclose(results[0], results[1], atol=1e-5) and torch.allclose(results[0], results[2], atol=1e-5)
    decoded = []
    decode = predictor.network.decode
    monkeypatch.setattr(whole_volume, "reach_of", lambda *_: (99, 99, 99))  # a part sees all of the latent
    predictor.network.decode = lambda latent: decoded.append(latent.shape[2:]) or decode(latent)
    assert torch.allclose(mean(predictor, image), results[0], atol=1e-5)
    assert len(set(decoded)) == 1
    monkeypatch.setattr(whole_volume, "reach_of", lambda *_: (0, 0, 0))
    assert not torch.allclose(mean(predictor, image), results[0], atol=1e-3), "parts would meet in seams"


def test_reach_is_how_far_the_decoder_looks(in_small_world):
    net = load(in_small_world["model"]).network
    reach = reach_of(net.label_decoder.body, 3)
    size, stride = 2 * max(reach) + 5, net.config.latent_stride
    latent = torch.randn(1, net.config.latent_channels, *[size] * 3)
    other = latent.clone()
    other[..., size // 2, size // 2, size // 2] += 100
    with torch.no_grad():
        changed = (net.decode(latent) != net.decode(other))[0].any(0).nonzero()
    for axis in range(3):
        low, high = changed[:, axis].min().item(), changed[:, axis].max().item()
        seen = max(size // 2 - low // stride[axis], high // stride[axis] - size // 2)
        assert seen <= reach[axis] <= seen + 1


def test_the_denoiser_sees_beyond_a_tile(in_small_world):
    """What changes at one end of the volume changes the condition there alone, and the other end by the denoiser."""
    image = image_of(18, 80, 20)
    changed = image.clone()
    changed[:, :, :10] += 3
    far = {}
    for whole in (False, True):
        predictor = load(in_small_world["model"], whole, samples=1)
        nn.init.normal_(predictor.network.denoiser.attention.out.weight, std=0.5)
        predictor.list_of_parameters = [predictor.network.state_dict()]
        far[whole] = (mean(predictor, image) - mean(predictor, changed))[:, :, 60:].abs().max().item()
    assert far[False] == 0 < far[True]


def test_batches_become_smaller_where_memory_does_not_suffice(in_small_world, monkeypatch):
    image = image_of(18, 40, 20)
    expected = mean(load(in_small_world["model"]), image)
    predictor, failed = load(in_small_world["model"]), []
    for name in ("encode_image", "decode"):
        part = getattr(predictor.network, name)

        def scarce(values, part=part, name=name):
            if len(values) > 1 and name not in failed:
                failed.append(name)
                raise torch.OutOfMemoryError("out of memory")
            return part(values)
        monkeypatch.setattr(predictor.network, name, scarce)
    assert torch.allclose(mean(predictor, image), expected, atol=1e-5)
    assert failed


def test_a_latent_that_does_not_fit_is_named_with_the_cure(in_small_world, monkeypatch):
    image = image_of(18, 40, 20)
    monkeypatch.setattr(whole_volume, "available_bytes", lambda: 1000)
    with pytest.raises(LDSegError, match=r"latent of the whole volume.*tile by tile"):
        mean(load(in_small_world["model"]), image)
    mean(load(in_small_world["model"], whole=False), image)
    monkeypatch.setattr(whole_volume, "available_bytes", lambda: None)
    predictor = load(in_small_world["model"])
    monkeypatch.setattr(predictor.network, "sample", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr(fallback, "print", lambda *_, **__: None, raising=False)
    with pytest.raises(LDSegError, match=r"latent of the whole volume.*tile by tile"):
        mean(predictor, image)


def test_the_memory_that_is_asked_for_grows_with_grid_and_draws(in_small_world):
    config = load(in_small_world["model"]).network.config
    needed = {grid: whole_volume.needed_bytes(config, grid, 5) for grid in itertools.product((8, 16), repeat=2)}
    assert needed[16, 16] == 4 * needed[8, 8]
    assert whole_volume.needed_bytes(config, (8, 8), 40) > needed[8, 8]
    assert whole_volume.available_bytes() is None or whole_volume.available_bytes() > 0
