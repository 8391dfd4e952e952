"""The noise of a prediction as a function of where it is, not of when it is drawn.

A counter-based generator (Philox 4x64, Salmon et al., SC 2011) is keyed by seed, fold, mirror, sample and step and
counted by the position of an 8 x 8 (x 8) block of latent positions. Sample k is the same whatever the number of
samples, the order of tiles, the batch size or the other cases; nothing is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

_BLOCK = 8  # latent positions per axis
_FOLD_ALL = 0xFFFF


@dataclass(frozen=True)
class NoiseKey:
    """One realisation of the field: what may differ between two draws at one place."""

    fold: int | str  # "all" is a fold of its own
    mirror: int  # bit i is set where axis i is flipped
    sample: int
    step: int = 0  # 0 is the start, i + 1 the noise added by sampling step i

    def packed(self) -> int:
        """64 bits: fold 16, mirror 8, sample 24, step 16.

        Raises:
            ValueError: a part is out of range.
        """
        fold = _FOLD_ALL if self.fold == "all" else int(self.fold)
        parts = ((fold, 16), (self.mirror, 8), (self.sample, 24), (self.step, 16))
        packed = 0
        for value, bits in parts:
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{self}: {value} does not fit {bits} bits.")
            packed = packed << bits | value
        return packed


def noise_tile(seed: int, key: NoiseKey, channels: int, start: Sequence[int], size: Sequence[int],
               slice_index: int | None = None) -> np.ndarray:
    """Standard normal noise of a box of the latent's grid.

    Args:
        seed: 0 to 2**64 - 1.
        key: which realisation.
        channels: c.
        start, size: first position and extent per axis, on the latent's grid of the whole image; 2 or 3 axes.
        slice_index: for 2D latents of a 3D image.

    Returns:
        (c, *size), float32.
    """
    start, size = tuple(start), tuple(size)
    out = np.empty((channels, *size), dtype=np.float32)
    blocks = [range(a // _BLOCK, (a + n - 1) // _BLOCK + 1) for a, n in zip(start, size, strict=True)]
    for block in product(*blocks):
        values = _block(seed, key, channels, block, slice_index)
        source, target = [slice(None)], [slice(None)]
        for b, a, n in zip(block, start, size, strict=True):
            low, high = max(b * _BLOCK, a), min((b + 1) * _BLOCK, a + n)
            source.append(slice(low - b * _BLOCK, high - b * _BLOCK))
            target.append(slice(low - a, high - a))
        out[tuple(target)] = values[tuple(source)]
    return out


def _block(seed: int, key: NoiseKey, channels: int, block: tuple[int, ...], slice_index: int | None) -> np.ndarray:
    place = block if slice_index is None else (slice_index, *block)
    # the lowest word counts the numbers within a block, the others are the block's position
    counter = np.array([0, *place, *[0] * (3 - len(place))], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(
        counter=counter, key=np.array([seed, key.packed()], dtype=np.uint64)))
    return generator.standard_normal((channels, *[_BLOCK] * len(block)), dtype=np.float32)
