"""What goes wrong with images, in five steps of severity, the first of which changes nothing.

Functions of a raw image (C, z, y, x), float32, the severity (0 to 4) and a generator. Strengths are given in units of
each image's own standard deviation (noise) or voxels (blur, resolution), so that they mean the same on any data set.
torchio does what it can do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, zoom

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

SIGMA_ZSCORE = (0.0, 0.25, 0.5, 1.0, 1.5)
BLUR_SIGMA_VOXELS = (0.0, 0.5, 1.0, 1.5, 2.0)
BIAS_COEFFICIENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
LOG_GAMMA = (0.0, 0.25, 0.5, 0.75, 1.0)
RESOLUTION_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)
GHOST_INTENSITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def gaussian_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, np.float32)
    return image + SIGMA_ZSCORE[severity] * _spread(image) * noise


def rician_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise in both channels (Gudbjartsson and Patz, MRM 34:910, 1995)."""
    low = image.min(axis=_space(image), keepdims=True)
    sigma = SIGMA_ZSCORE[severity] * _spread(image)
    real, imaginary = (sigma * rng.standard_normal(image.shape, np.float32) for _ in range(2))
    return np.hypot(image - low + real, imaginary) + low


def blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([gaussian_filter(channel, BLUR_SIGMA_VOXELS[severity]) for channel in image])


def bias_field(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    from torchio import BiasField

    number = 20  # coefficients of a polynomial of order 3 in three variables
    signs = rng.choice([-1.0, 1.0], number) * rng.uniform(0.5, 1.0, number)
    return _by_torchio(image, BiasField(order=3, coefficients=list(BIAS_COEFFICIENTS[severity] * signs)))


def gamma(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    low, high = (f(image, axis=_space(image), keepdims=True) for f in (np.min, np.max))
    exponent = np.exp(LOG_GAMMA[severity] * rng.choice([-1.0, 1.0]))
    return ((image - low) / np.maximum(high - low, 1e-8)) ** exponent * (high - low) + low


def low_resolution(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    factor = RESOLUTION_FACTORS[severity]
    if factor == 1:
        return image
    shape = np.array(image.shape[1:])
    small = np.maximum(1, np.round(shape / factor))
    return np.stack([zoom(zoom(channel, small / shape, order=1), shape / small, order=1, grid_mode=True,
                          mode="nearest") for channel in image])


def motion_ghosts(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    from torchio import Ghosting

    return _by_torchio(image, Ghosting(num_ghosts=4, axis=int(rng.integers(image.ndim - 1)),
                                       intensity=GHOST_INTENSITIES[severity], restore=0.02))


CORRUPTIONS: dict[str, Corruption] = {
    "Gaussian noise": gaussian_noise, "Rician noise": rician_noise, "blur": blur, "bias field": bias_field,
    "gamma": gamma, "low resolution": low_resolution, "motion ghosts": motion_ghosts}
SEVERITIES = range(5)


def corrupted(name: str, image: np.ndarray, severity: int, case: int) -> np.ndarray:
    """The same case, corruption and severity give the same image for every model."""
    if severity == 0:
        return image
    rng = np.random.default_rng([sorted(CORRUPTIONS).index(name), case])  # one draw, stronger with severity
    return CORRUPTIONS[name](image.astype(np.float32), severity, rng).astype(np.float32)


def _space(image: np.ndarray) -> tuple[int, ...]:
    return tuple(range(1, image.ndim))


def _spread(image: np.ndarray) -> np.ndarray:
    return image.std(axis=_space(image), keepdims=True)


def _by_torchio(image: np.ndarray, transform: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    return np.asarray(transform(torch.from_numpy(np.ascontiguousarray(image))))


def area_under(dice: Sequence[float]) -> float:
    """Under the Dice-severity curve by the trapezoidal rule, over its width: 1 where nothing is ever lost or missed."""
    values = np.asarray(dice, float)
    return float((values[:-1] + values[1:]).mean() / 2)
