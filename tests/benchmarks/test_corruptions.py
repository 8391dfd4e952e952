"""Corruptions mean what their names say, and are the same for every model."""

from __future__ import annotations

import numpy as np
import pytest
from corruptions import CORRUPTIONS, SIGMA_ZSCORE, area_under, corrupted


@pytest.fixture
def image() -> np.ndarray:
    z, y, x = np.mgrid[:16, :20, :18]
    ball = (z - 8) ** 2 + (y - 10) ** 2 + (x - 9) ** 2 < 36
    return (100 + 50 * ball + 5 * np.random.default_rng(0).standard_normal(ball.shape))[None].astype(np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity(image, name):
    if name in ("bias field", "motion ghosts"):
        pytest.importorskip("torchio")
    assert corrupted(name, image, 0, 3) is image
    distances = [np.abs(corrupted(name, image, severity, 3) - image).mean() for severity in range(1, 5)]
    assert all(a < b for a, b in zip(distances, distances[1:], strict=False)), distances
    again = corrupted(name, image, 2, 3)
    assert again.shape == image.shape and again.dtype == np.float32
    assert np.array_equal(again, corrupted(name, image, 2, 3))


def test_noise_is_measured_in_the_images_own_standard_deviations(image):
    added = corrupted("Gaussian noise", image, 3, 0) - image
    assert added.std() / image.std() == pytest.approx(SIGMA_ZSCORE[3], rel=0.05)
    ten_times = corrupted("Gaussian noise", image * 10, 3, 0)
    assert np.allclose(ten_times, 10 * corrupted("Gaussian noise", image, 3, 0), rtol=1e-4)


def test_rician_noise_of_nothing_has_rayleighs_mean():
    noise = corrupted("Rician noise", np.concatenate([np.zeros((1, 40, 40, 40)), np.ones((1, 40, 40, 40))], 1), 3, 0)
    sigma = SIGMA_ZSCORE[3] * 0.5  # the standard deviation of an image that is half 0 and half 1
    assert noise[:, :40].mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)


def test_area_under_a_constant_is_the_constant():
    assert area_under([0.8] * 5) == pytest.approx(0.8)
    assert area_under([1, 0.5, 0]) == pytest.approx(0.5)
