"""Sampling a volume as a whole: encoded tile by tile into one condition, denoised at once, decoded part by part.

Tile by tile each tile has a denoiser of its own, which sees as far as the tile; here the denoiser, with its attention,
sees the whole volume. What the image encoder sees is a tile in both. Conditions of overlapping tiles are averaged by
the weights that their probabilities have otherwise: features are normalised by tile, so that cuts between tiles would
be steps in the condition, which training never shows. The label decoder has an end to its sight: it reads the latent
around a part as far as it looks, and parts meet without a seam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the field's usual name
from tqdm import tqdm

from ldseg_auto.config import LDSegConfig
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.accumulate import RowAccumulator
from ldseg_auto.inference.draws import channels_of, summands, voxels_of
from ldseg_auto.inference.fallback import BatchSizes
from ldseg_auto.inference.noise import NoiseKey, noise_tile
from ldseg_auto.inference.tiling import Tile, cut_into_tiles
from ldseg_auto.networks.ldseg_net import LDSegNet

_CURE = "Predict it tile by tile: without whole_volume."
_MAPS_AT_ONCE = 6  # of the denoiser's widest level, beside the condition
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Draws:
    """Of a volume: every sample of every mirrored view.

    Args:
        mirrors: axes of the patch that are flipped, of each view.
        samples: their numbers.
        steps, eta: of the sampler; the configuration's where None.
        seed, fold: key the noise.
    """

    mirrors: Sequence[Axes]
    samples: Sequence[int]
    steps: int | None
    eta: float | None
    seed: int
    fold: int | str

    def __len__(self) -> int:
        return len(self.mirrors) * len(self.samples)


class WholeVolume:
    """One prediction of one image.

    Args:
        network: on its device.
        image: preprocessed, (C, z, y, x).
        weight: of a tile's voxels in the condition, (*patch), above 0.
        step_size: distance of the tiles that are encoded, as a share of the patch.
        draws: what is sampled.
        spread: whether what maps of uncertainty need is added up too.
        sizes: of batches; reduced where memory does not suffice.
        progress_bar: show one.
    """

    def __init__(self, network: LDSegNet, image: torch.Tensor, weight: torch.Tensor, step_size: float, draws: Draws,
                 spread: bool, sizes: BatchSizes, progress_bar: bool):
        self._network, self._image, self._draws, self._spread, self._sizes = network, image, draws, spread, sizes
        self._stride, patch = network.config.latent_stride, tuple(weight.shape)
        self._tiling = cut_into_tiles(image.shape[1:], patch, self._stride, step_size)
        self._parts = cut_into_tiles(image.shape[1:], patch, self._stride, 1.0)
        pool = F.avg_pool2d if weight.ndim == 2 else F.avg_pool3d
        self._weight = pool(weight[None, None], self._stride)[0, 0].to(sizes.device)
        self._grid = tuple(n // s for n, s in zip(self._tiling.shape[-weight.ndim:], self._stride, strict=True))
        self._patch_grid = tuple(self._weight.shape)
        self._halo = reach_of(network.label_decoder.body, weight.ndim)
        self._progress_bar = progress_bar

    @torch.inference_mode()
    def accumulate(self, finished: Callable[[int, torch.Tensor], None]) -> dict[tuple[int, int], torch.Tensor]:
        """Mean over samples and mirrors, handed on by rows as `RowAccumulator` does; with `spread` the voxels of each
        class in each draw.

        Raises:
            LDSegError: the latent of the whole volume does not fit into memory.
        """
        self._require_memory()
        ones = torch.ones(self._parts.tiles[0].size)
        accumulator = RowAccumulator(self._parts, ones, channels_of(self._network, self._spread), self._sizes.results,
                                     finished)
        voxels: dict[tuple[int, int], torch.Tensor] = {}
        tiles, parts = _by_slice(self._tiling.tiles), _by_slice(self._parts.tiles)
        work = len(self._tiling.tiles) * len(self._draws.mirrors) + len(self._parts.tiles)
        with tqdm(total=work, disable=not self._progress_bar) as progress:
            for index, encoded in tiles.items():
                latents = [self._sample(encoded, axes, index, progress) for axes in self._draws.mirrors]
                for part in parts[index]:
                    share = accumulator.share(part)
                    mean, counted = self._until_it_fits(lambda part=part, share=share, latents=latents:
                                                        self._decode(latents, part, share))
                    accumulator.add(part, share, mean)
                    for draw, number in counted.items():
                        voxels[draw] = voxels.get(draw, 0) + number
                    progress.update()
        accumulator.close()
        return voxels

    def _sample(self, tiles: Sequence[Tile], axes: Axes, slice_index: int | None, progress: tqdm) -> torch.Tensor:
        """The latents of a view, upright, on the CPU: (samples, c, *grid)."""
        condition = self._until_it_fits(lambda: self._encode(tiles, axes))
        progress.update(len(tiles))
        flipped = [a + 1 for a in axes]
        network, draws = self._network, self._draws
        latents: list[torch.Tensor] = []

        def next_batch() -> torch.Tensor:
            # as many positions at once as tile by tile
            number = max(1, self._sizes.latents * prod(self._patch_grid) // prod(self._grid))
            numbers = draws.samples[len(latents):len(latents) + number]

            def noise(step: int) -> torch.Tensor:
                keys = (NoiseKey(draws.fold, sum(1 << a for a in axes), sample, step) for sample in numbers)
                fields = [noise_tile(draws.seed, key, network.config.latent_channels, [0] * len(self._grid),
                                     self._grid, slice_index) for key in keys]
                return torch.stack([torch.from_numpy(field).flip(flipped) for field in fields]).to(condition.device)

            view = condition.flip(flipped).expand(len(numbers), *condition.shape)
            sampled = network.sample(view, noise(0), draws.steps, draws.eta, step_noise=lambda i: noise(i + 1))
            return sampled.flip([a + 1 for a in flipped]).cpu()

        while len(latents) < len(draws.samples):
            latents += self._until_it_fits(next_batch).unbind()
        return torch.stack(latents)

    def _encode(self, tiles: Sequence[Tile], axes: Axes) -> torch.Tensor:
        """The condition of a view, upright: (d, *grid), float32."""
        flipped = [a + 1 for a in axes]
        total, weights = torch.zeros(()), torch.zeros(self._grid, device=self._weight.device)
        for start in range(0, len(tiles), self._sizes.images):
            batch = tiles[start:start + self._sizes.images]
            images = torch.stack([self._tiling.cut(self._image, tile).flip(flipped) for tile in batch])
            conditions = self._network.encode_image(images.to(self._weight.device)).float()
            if total.ndim == 0:
                total = torch.zeros((conditions.shape[1], *self._grid), device=self._weight.device)
            for tile, condition in zip(batch, conditions, strict=True):
                where = self._latent_box(tile)
                total[(slice(None), *where)] += condition.flip(flipped) * self._weight
                weights[where] += self._weight
        return total.div_(weights)

    def _decode(self, latents: Sequence[torch.Tensor], part: Tile,
                share: torch.Tensor) -> tuple[torch.Tensor, dict[tuple[int, int], torch.Tensor]]:
        """Mean of all draws in a part, (K or 2 K + 1, *patch), and the voxels of each."""
        where = self._latent_box(part)
        around = tuple(slice(max(0, box.start - halo), min(size, box.stop + halo))
                       for box, halo, size in zip(where, self._halo, self._grid, strict=True))
        inside = tuple(slice((box.start - wide.start) * s, (box.stop - wide.start) * s)
                       for box, wide, s in zip(where, around, self._stride, strict=True))
        excess = prod(wide.stop - wide.start for wide in around) / prod(self._patch_grid)
        number = max(1, int(self._sizes.images / excess))
        total, voxels = torch.zeros((), device=self._weight.device), {}
        for view, (axes, samples) in enumerate(zip(self._draws.mirrors, latents, strict=True)):
            flipped = [a + 1 for a in axes]
            for batch in range(0, len(samples), number):
                latent = samples[(slice(batch, batch + number), slice(None), *around)].to(self._weight.device)
                logits = self._network.decode(latent.flip([a + 1 for a in flipped]))
                for i, probabilities in enumerate(self._network.probabilities(logits)):
                    upright = probabilities.flip(flipped)[(slice(None), *inside)]
                    total = total + summands(self._network, upright, self._spread)
                    if self._spread:
                        voxels[self._draws.samples[batch + i], view] = voxels_of(
                            self._network, upright, share, self._parts.inside(part))
        return total / len(self._draws), voxels

    def _latent_box(self, tile: Tile) -> tuple[slice, ...]:
        return tuple(slice(a // s, (a + n) // s) for a, n, s in zip(tile.start, tile.size, self._stride, strict=True))

    def _until_it_fits(self, work: Callable) -> torch.Tensor:
        try:
            return self._sizes.until_it_fits(work)
        except LDSegError as error:
            raise LDSegError(f"The latent of the whole volume, {self._grid} positions, does not fit into memory "
                             f"({error.cause})", _CURE) from error

    def _require_memory(self) -> None:
        """Before anything is computed: on a CPU what takes too much memory is killed, and no error is raised."""
        if self._weight.device.type != "cpu":
            return
        needed, there = needed_bytes(self._network.config, self._grid, len(self._draws)), available_bytes()
        if there is not None and needed > there:
            raise LDSegError(f"The latent of the whole volume, {self._grid} positions, takes about {needed / 1e9:.1f} "
                             f"GB; {there / 1e9:.1f} GB are free.", _CURE)


def needed_bytes(config: LDSegConfig, grid: Sequence[int], draws: int) -> int:
    """Memory of a condition, of the denoiser at work on it, and of the latents of all draws, in 32 bits."""
    channels = (2 * config.features_per_stage[config.latent_stage] + _MAPS_AT_ONCE * max(config.denoiser_features)
                + (draws + 3) * config.latent_channels)
    return 4 * prod(grid) * channels


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say (Linux does)."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    found = [line.split()[1] for line in table.read_text().splitlines() if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def reach_of(decoder: nn.Module, axes: int) -> tuple[int, ...]:
    """Latent positions to either side that a decoder without normalisation over space looks at.

    Args:
        decoder: convolutions and upsampling in the order in which they are applied.
        axes: of the latent.
    """
    reach, scale = [0.0] * axes, [1.0] * axes
    for part in decoder.modules():
        if isinstance(part, (nn.ConvTranspose2d, nn.ConvTranspose3d)):  # kernel and stride are equal
            scale = [one / s for one, s in zip(scale, part.stride, strict=True)]
        elif isinstance(part, (nn.Conv2d, nn.Conv3d)):
            reach = [sum_ + one * (k // 2) for sum_, one, k in zip(reach, scale, part.kernel_size, strict=True)]
    return tuple(-int(-each // 1) for each in reach)


def _by_slice(tiles: Sequence[Tile]) -> dict[int | None, list[Tile]]:
    found: dict[int | None, list[Tile]] = {}
    for tile in tiles:
        found.setdefault(tile.slice_index, []).append(tile)
    return found
