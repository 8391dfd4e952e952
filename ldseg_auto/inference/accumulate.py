"""The mean of overlapping tiles, row by row: only rows that a tile to come still reaches are held in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ldseg_auto.inference.tiling import Tile, Tiling


class RowAccumulator:
    """Adds up tiles that come in order along the first axis, and hands on every row that is complete.

    Each tile counts by its share: its weight over the sum of the weights of all tiles at a voxel.

    Args:
        tiling: of the image.
        weight: of a tile's voxels, (*patch), above 0.
        channels: of what is added up.
        device: where it is added up.
        finished: gets the first of some rows of the image, and their means (channels, rows, y, x), on the CPU; each
            row once, in order, without the padding.
    """

    def __init__(self, tiling: Tiling, weight: torch.Tensor, channels: int, device: torch.device,
                 finished: Callable[[int, torch.Tensor], None]):
        self._tiling, self._finished = tiling, finished
        self._starts = sorted({tile.box[0].start for tile in tiling.tiles})
        depth = weight.shape[0] if weight.ndim == len(tiling.shape) else 1
        self._weight = weight.reshape(depth, *weight.shape[-2:]).to(device)
        # every layer of tiles covers its rows in the same way
        self._layer = torch.zeros((depth, *tiling.shape[1:]), device=device)
        for tile in tiling.tiles:
            if tile.box[0].start == self._starts[0]:
                self._layer[(slice(None), *tile.box[1:])] += self._weight
        self._weights: dict[int, torch.Tensor] = {}  # by the first row of a layer
        self._first = self._starts[0]  # the row of the padded image that the window starts at
        self._sum = torch.zeros((channels, depth, *tiling.shape[1:]), device=device)

    @property
    def device(self) -> torch.device:
        """Where it is added up."""
        return self._sum.device

    def share(self, tile: Tile) -> torch.Tensor:
        """Of the tile in the mean at each of its voxels, (rows, y, x)."""
        start = tile.box[0].start
        if start not in self._weights:
            self._weights[start] = self._weights_of_layer(start)
        return self._weight / self._weights[start][(slice(None), *tile.box[1:])]

    def add(self, tile: Tile, share: torch.Tensor, values: torch.Tensor) -> None:
        """Takes no memory where `values` (channels, *patch) lie on the accumulator's device."""
        self._advance(tile.box[0].start)
        inside = self._sum[(slice(None), slice(None), *tile.box[1:])]
        inside.addcmul_(values.to(inside.device).reshape(inside.shape), share)

    def move(self, device: torch.device) -> None:
        """Add up on another device from now on."""
        self._weight, self._layer, self._sum = (
            tensor.to(device) for tensor in (self._weight, self._layer, self._sum))
        self._weights.clear()

    def close(self) -> None:
        """Hand on what is left, when all tiles are added."""
        self._advance(self._tiling.shape[0])

    def _advance(self, row: int) -> None:
        """Rows before `row` get no more tiles."""
        ready = row - self._first
        if ready < 0:
            raise ValueError(f"A tile at row {row} came after one at row {self._first}.")
        if ready == 0:
            return
        self._hand_on(self._sum[:, :ready])
        depth = self._sum.shape[1]
        for start in range(0, depth, ready):  # in steps that do not overlap: no second copy of the window
            kept = self._sum[:, start + ready:start + 2 * ready]
            self._sum[:, start:start + kept.shape[1]] = kept
        self._sum[:, max(0, depth - ready):] = 0
        self._first = row
        self._weights = {start: weights for start, weights in self._weights.items() if start >= row}

    def _hand_on(self, rows: torch.Tensor) -> None:
        (before, *in_plane), (size, *plane) = self._tiling.before, self._tiling.image
        first = max(self._first, before)
        last = min(self._first + rows.shape[1], before + size)
        if first < last:
            image = tuple(slice(b, b + n) for b, n in zip(in_plane, plane, strict=True))
            self._finished(first - before, rows[(slice(None), slice(first - self._first, last - self._first),
                                                 *image)].cpu())

    def _weights_of_layer(self, start: int) -> torch.Tensor:
        """Sum of the weights of all tiles over the rows of the tiles that start at `start`."""
        depth = len(self._layer)
        weights = self._layer.clone()
        for other in self._starts:
            distance = other - start
            if 0 < distance < depth:
                weights[distance:] += self._layer[:depth - distance]
            elif -depth < distance < 0:
                weights[:depth + distance] += self._layer[-distance:]
        return weights
