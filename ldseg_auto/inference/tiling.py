"""Tiles on the latent's grid, so that overlapping tiles share their latent positions and with them their noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

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
