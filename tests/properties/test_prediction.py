"""What holds for any tiling, any place in the noise and any number of sampling steps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldseg_auto.diffusion.samplers import ddim
from ldseg_auto.diffusion.schedule import alpha_bar
from ldseg_auto.inference.accumulate import RowAccumulator
from ldseg_auto.inference.noise import NoiseKey, noise_tile
from ldseg_auto.inference.tiling import cut_into_tiles

CPU = torch.device("cpu")
ANY = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def tilings(draw):
    dimension = draw(st.sampled_from([2, 3]))
    stride = tuple(draw(st.sampled_from([1, 2, 4])) for _ in range(dimension))
    patch = tuple(step * draw(st.integers(1, 4)) for step in stride)
    shape = tuple(draw(st.integers(1, 25)) for _ in range(3))
    return cut_into_tiles(shape, patch, stride, draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))), patch, stride


@ANY
@given(tilings(), st.integers(0, 2 ** 32))
def test_tiles_cover_the_image_on_the_latents_grid_and_their_shares_sum_to_one(tiling_of, seed):
    tiling, patch, stride = tiling_of
    weight = torch.rand(patch, generator=torch.Generator().manual_seed(seed)) + 0.1
    rows = []
    accumulator = RowAccumulator(tiling, weight, 1, CPU, lambda first, part: rows.append(part.clone()))
    shares, covered = torch.zeros(tiling.shape), torch.zeros(tiling.image)
    image = torch.arange(covered.numel(), dtype=torch.float32).reshape(1, *tiling.image) + 1
    for tile in tiling.tiles:
        assert all(start % step == 0 for start, step in zip(tile.start, stride, strict=True))
        share = accumulator.share(tile)
        shares[tile.box] += share
        cut = tiling.cut(image, tile)
        assert cut.shape == (1, *patch)
        assert (cut > 0).sum() == cut.reshape(share.shape)[tiling.inside(tile)].numel(), "zeros only in the padding"
        accumulator.add(tile, share, cut)
    accumulator.close()
    assert torch.allclose(shares, torch.ones(tiling.shape), atol=1e-5)
    assert torch.allclose(torch.cat(rows, 1), image, rtol=1e-4), "the mean of what agrees is what it agrees on"


KEYS = st.builds(NoiseKey, st.integers(0, 9), st.integers(0, 7), st.integers(0, 99), st.integers(0, 9))
PLACES = st.tuples(*[st.integers(0, 40)] * 3)


@ANY
@given(st.integers(0, 2 ** 64 - 1), KEYS, PLACES, PLACES, st.integers(1, 3))
def test_noise_is_a_field(seed, key, a, b, channels):
    """Two tiles see the same where they overlap, in whatever order they are drawn."""
    size = (12, 9, 20)
    first, second = noise_tile(seed, key, channels, a, size), noise_tile(seed, key, channels, b, size)
    low, high = np.maximum(a, b), np.minimum(np.add(a, size), np.add(b, size))
    if (low < high).all():
        overlap = [(slice(None), *(slice(x - s, y - s) for x, y, s in zip(low, high, start, strict=True)))
                   for start in (a, b)]
        assert np.array_equal(first[overlap[0]], second[overlap[1]])


@ANY
@given(st.integers(0, 2 ** 64 - 1), KEYS, KEYS, PLACES)
def test_noise_is_normal_and_differs_with_every_key(seed, key, other, start):
    field = noise_tile(seed, key, 2, start, (16, 16, 16))
    assert abs(field.mean()) < 0.06 and abs(field.std() - 1) < 0.06  # five standard errors
    assert np.abs(field).max() < 6.5
    assert np.array_equal(field, noise_tile(seed, key, 2, start, (16, 16, 16)))
    others = [noise_tile((seed + 1) % 2 ** 64, key, 2, start, (16, 16, 16))]
    if key != other:
        others.append(noise_tile(seed, other, 2, start, (16, 16, 16)))
    for another in others:
        assert abs(np.corrcoef(field.ravel(), another.ravel())[0, 1]) < 0.06


SIGNALS = {(name, rescaled): alpha_bar(name, 50, rescaled) for name in ("cosine", "linear", "quadratic")
           for rescaled in (False, True)}


@st.composite
def samplings(draw):
    prediction = draw(st.sampled_from(["x0", "v", "eps"]))
    rescaled = draw(st.booleans()) if prediction != "eps" else False  # eps divides by zero there
    signal = SIGNALS[draw(st.sampled_from(["cosine", "linear", "quadratic"])), rescaled]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    latent, start, *rest = (torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(52))
    return prediction, signal, latent, start, rest


def perfect(prediction, signal, latent):
    """The denoiser that knows z_0."""
    def denoise(z, t):
        keep, spread = signal[t].sqrt().reshape(-1, 1, 1, 1), (1 - signal[t]).sqrt().reshape(-1, 1, 1, 1)
        noise = (z - keep * latent) / spread
        return {"x0": latent.expand_as(z), "eps": noise, "v": keep * noise - spread * latent}[prediction]
    return denoise


def imperfect(z, t):
    return torch.tanh(0.7 * z + 0.01 * t.reshape(-1, 1, 1, 1))


@ANY
@given(samplings(), st.integers(1, 50), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_perfect_denoiser_finds_the_latent_in_any_number_of_steps(sampling, steps, eta):
    prediction, signal, latent, start, rest = sampling
    found = ddim(perfect(prediction, signal, latent), start, signal, prediction, steps, eta, lambda i: rest[i])
    assert torch.allclose(found, latent, atol=1e-6)


@ANY
@given(samplings())
def test_limits_of_the_sampler(sampling):
    prediction, signal, _, start, rest = sampling
    last = torch.full((1,), 50)
    keep, spread = signal[50].sqrt(), (1 - signal[50]).sqrt()
    output = imperfect(start, last)
    estimate = {"x0": output, "v": keep * start - spread * output,
                "eps": (start - spread * output) / keep.clamp(min=1e-12)}[prediction]
    for eta in (0.0, 1.0):
        one = ddim(imperfect, start, signal, prediction, 1, eta, lambda i: rest[i])
        assert torch.allclose(one, estimate), "one step is the estimate of z_0, whatever eta"
    a, b = (ddim(imperfect, start, signal, prediction, 7, 0.0, drawn.__getitem__) for drawn in (rest, rest[::-1]))
    assert torch.equal(a, b), "eta 0 draws nothing"
    ancestral, other = (ddim(imperfect, start.float(), signal, prediction, 50, 1.0, drawn.__getitem__)
                        for drawn in (rest, rest[::-1]))
    assert torch.isfinite(ancestral).all()
    assert not torch.allclose(ancestral, other)


@pytest.mark.parametrize("steps", [0, 51])
def test_impossible_numbers_of_steps(steps):
    with pytest.raises(ValueError, match="from 1 to 50"):
        ddim(imperfect, torch.zeros(1, 1, 2, 2), SIGNALS["cosine", False], "x0", steps)
