"""Tiles on the latent's grid, so that overlapping tiles share their latent positions and with them their noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window


@dataclass(frozen=True)
class Tile:
    """A patch of the padded image.

    Args:
        start: first voxel per axis of the patch, a multiple of the latent's stride.
        size: the patch size.
        slice_index: for a 2D patch of a 3D image, the slice; None else.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]
    slice_index: int | None = None

    @property
    def slicer(self) -> tuple[slice | int, ...]:
        """Indexes the image without its channels."""
        within = tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return within if self.slice_index is None else (self.slice_index, *within)

    @property
    def box(self) -> tuple[slice, ...]:
        """The same with a slice for every axis of the image: a 2D patch is one row deep."""
        return tuple(slice(axis, axis + 1) if isinstance(axis, int) else axis for axis in self.slicer)


@dataclass(frozen=True)
class Tiling:
    """An image cut into tiles.

    Args:
        image: its shape, (z, y, x).
        shape: of the padded image.
        tiles: in order along the first axis.
    """

    image: tuple[int, ...]
    shape: tuple[int, ...]
    tiles: tuple[Tile, ...]

    @property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding before the image, per axis; the other half, rounded up, lies behind it."""
        return tuple((padded - size) // 2 for padded, size in zip(self.shape, self.image, strict=True))

    def cut(self, image: torch.Tensor, tile: Tile) -> torch.Tensor:
        """What the tile holds of an image (C, z, y, x), with zeros around it: (C, *patch)."""
        box = [[axis.start - before, axis.stop - before] for axis, before in zip(tile.box, self.before, strict=True)]
        return crop_and_pad_nd(image, box).reshape(-1, *tile.size)

    def inside(self, tile: Tile) -> tuple[slice, ...]:
        """The part of the tile's `box` that lies in the image, counted from the tile's first voxel."""
        return tuple(slice(max(0, before - axis.start), max(0, min(axis.stop, before + size) - axis.start))
                     for axis, before, size in zip(tile.box, self.before, self.image, strict=True))


def cut_into_tiles(shape: Sequence[int], patch_size: Sequence[int], stride: Sequence[int], step_size: float) -> Tiling:
    """The tiles of an image; with a 2D patch, of each of its slices.

    Args:
        shape: of the image, (z, y, x).
        patch_size, stride: per axis of the patch.
        step_size: distance of two tiles as a share of the patch, in (0, 1].
    """
    slices = tuple(shape[:-len(patch_size)])
    padded = (*slices, *padded_shape(shape[len(slices):], patch_size, stride))
    ordered = sorted(tiles(padded, patch_size, stride, step_size), key=lambda tile: tile.box[0].start)
    return Tiling(tuple(shape), padded, tuple(ordered))


def padded_shape(shape: Sequence[int], patch_size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """The smallest shape that holds the image and a patch and exceeds the patch by whole latent positions.

    All arguments have one entry per axis of the patch.
    """
    return tuple(patch + -(-max(size - patch, 0) // step) * step
                 for size, patch, step in zip(shape, patch_size, stride, strict=True))


def tiles(shape: Sequence[int], patch_size: Sequence[int], stride: Sequence[int], step_size: float) -> Iterator[Tile]:
    """nnU-Net's sliding window with starts rounded down to the latent's grid.

    Args:
        shape: of `padded_shape`, per axis of the image (one more than the patch, if slices are predicted one by one).
        step_size: distance of two tiles as a share of the patch, in (0, 1].
    """
    patch = tuple(patch_size)
    slices: Sequence[int | None] = range(shape[0]) if len(shape) > len(patch) else [None]
    starts = [sorted({start // step * step for start in axis}) for axis, step in zip(
        compute_steps_for_sliding_window(tuple(shape[-len(patch):]), patch, step_size), stride, strict=True)]
    for index in slices:
        for start in product(*starts):
            yield Tile(start, patch, index)
