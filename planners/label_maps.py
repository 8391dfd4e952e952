"""Training label maps as the network will see them: transposed, cropped, at a configuration's spacing.

A few cases and a bounded window of each are enough to measure how well labels can be coded. One file is read at a
time; only its window is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from scipy import ndimage
from tqdm import tqdm

IGNORED = -1
MAX_CASES = 20
MIN_CASES = 5  # however large
MAX_READ_VOXELS = 1_500_000_000  # of all cases together: files of this size take about a minute to read
MAX_NATIVE_VOXELS = 4_000_000  # kept of a case
MAX_VOXELS = 1_000_000  # of a case at the configuration's spacing
FEW_CLASSES = 6  # with more, fewer cases are read: classes are resampled one by one
MAX_SLICES = 16  # of a case, 2D
_MARGIN_VOXELS = 8  # around the foreground: blocks at its border need their background

Resample = Callable[[np.ndarray, Sequence[int], Sequence[float], Sequence[float]], np.ndarray]


class NativeLabels(NamedTuple):
    labels: np.ndarray  # (z, y, x) after the transpose: class index or IGNORED
    spacing_mm: tuple[float, ...]
    focus: int | None = None  # class that windows and slices are laid around, where it occurs


class LabelMaps:
    """Label maps of up to `MAX_CASES` training cases with foreground, spread evenly over the sorted identifiers, fewer
    where they are very large.

    Args:
        cases: identifier -> {"label": file, ...}, as nnU-Net lists them.
        reader_class: nnU-Net's reader of these files.
        labels: label values in the order of their class index; every other value is ignored.
        transpose_forward: nnU-Net's order of axes.
        seed: of the windows' positions.
        must_hold: identifier -> class indices for which this case is read in any event, and its window laid around
            them; for rare classes.
    """

    def __init__(self, cases: Mapping[str, Mapping[str, Any]], reader_class: type[BaseReaderWriter],
                 labels: Sequence[int], transpose_forward: Sequence[int],
                 seed: int = 0, must_hold: Mapping[str, Sequence[int]] | None = None):
        self._rng = np.random.default_rng(seed)
        self._read: list[NativeLabels] = []
        must_hold = must_hold or {}
        most = max(MIN_CASES, MAX_CASES * min(len(labels), FEW_CLASSES) // len(labels))
        wanted = max(min(MAX_CASES, most, len(cases)), len(must_hold))
        order = list(dict.fromkeys([*sorted(must_hold), *spread_evenly(sorted(cases), wanted)]))
        voxels = found = 0
        with tqdm(total=wanted, desc="Label maps for the latent") as progress:
            for name in order:
                native = read_labels(cases[name]["label"], reader_class, labels, transpose_forward)
                voxels += native.labels.size
                if (native.labels > 0).any():
                    for focus in must_hold.get(name, (None,)):  # a window for each
                        box = self._crop(native.labels, MAX_NATIVE_VOXELS, focus)
                        self._read.append(NativeLabels(native.labels[box].copy(), native.spacing_mm, focus))
                    found += 1
                    progress.update()
                enough = max(len(must_hold), MIN_CASES if voxels > MAX_READ_VOXELS else wanted)
                if found >= enough:
                    break

    def __len__(self) -> int:
        return len(self._read)

    def at_spacing(self, spacing_mm: Sequence[float], resample: Resample) -> list[np.ndarray]:
        """Label maps at a configuration's spacing.

        Args:
            spacing_mm: target, 3 entries, or 2 for slices of the transposed volume.
            resample: (labels (1, z, y, x), new shape, current spacing, new spacing) -> labels, nnU-Net's function.

        Returns:
            volumes, or slices one by one; sparse ones filled up (`filled_where_sparse`).
        """
        maps: list[np.ndarray] = []
        for native in self._read:
            labels = native.labels
            target = [float(s) for s in spacing_mm]
            if len(target) == 2:  # nnU-Net leaves the distance of slices as it is
                target = [native.spacing_mm[0], *target]
                labels = _slices_with_foreground(labels, native.focus)
            growth = prod(old / new for old, new in zip(native.spacing_mm, target, strict=True))
            labels = labels[self._window(labels, max(1, int(MAX_VOXELS / growth)), native.focus)]
            labels = (np.stack([filled_where_sparse(each) for each in labels]) if len(spacing_mm) == 2
                      else filled_where_sparse(labels))
            shape = np.maximum(1, compute_new_shape(labels.shape, native.spacing_mm, target))
            resampled = resample(labels[None], shape, native.spacing_mm, target)[0].astype(np.int16)
            maps.extend(resampled if len(spacing_mm) == 2 else [resampled])
        return maps

    def _crop(self, labels: np.ndarray, max_voxels: int, focus: int | None) -> tuple[slice, ...]:
        """Bounding box of the foreground with a margin, cut down to the limit."""
        found = ndimage.find_objects((labels > 0).astype(np.int8))[0]
        box = tuple(slice(max(0, s.start - _MARGIN_VOXELS), s.stop + _MARGIN_VOXELS) for s in found)
        inner = self._window(labels[box], max_voxels, focus)
        return tuple(slice(outer.start + s.start, outer.start + s.stop) for outer, s in zip(box, inner, strict=True))

    def _window(self, labels: np.ndarray, max_voxels: int, focus: int | None) -> tuple[slice, ...]:
        """A box of at most `max_voxels` (all if that suffices) around a random voxel of the class in focus, or of a
        random one."""
        shrink = min(1.0, (max_voxels / labels.size) ** (1 / max(1, sum(edge > 1 for edge in labels.shape))))
        edges = [max(1, int(edge * shrink)) for edge in labels.shape]
        if shrink == 1.0:
            return tuple(slice(0, edge) for edge in labels.shape)
        present = [label for label in np.unique(labels) if label > 0]
        present = [focus] if focus in present else present
        voxels = np.argwhere(labels == self._rng.choice(present))
        centre = voxels[self._rng.integers(len(voxels))]
        starts = [int(np.clip(c - edge // 2, 0, size - edge))
                  for c, edge, size in zip(centre, edges, labels.shape, strict=True)]
        return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))


def read_labels(file: str, reader_class: type[BaseReaderWriter], labels: Sequence[int],
                transpose_forward: Sequence[int]) -> NativeLabels:
    """One label file, transposed, as class indices; values that are no label become IGNORED."""
    values, properties = reader_class().read_seg(file)
    volume = np.asarray(values)[0].transpose(transpose_forward).astype(np.int32, copy=False)
    lowest, highest = min(0, int(volume.min())), max(*labels, int(volume.max()))
    index_of_value = np.full(highest - lowest + 1, IGNORED, dtype=np.int16)
    for index, label in enumerate(labels):
        index_of_value[label - lowest] = index
    indices = index_of_value[volume - lowest] if lowest else index_of_value[volume]
    return NativeLabels(indices, tuple(float(properties["spacing"][axis]) for axis in transpose_forward))


def spread_evenly(names: Sequence[str], wanted: int) -> list[str]:
    """All names: first `wanted` of them evenly spread, then the others (in case some of the first are empty)."""
    first = [names[i] for i in np.linspace(0, len(names) - 1, wanted).round().astype(int)]
    return [*first, *(name for name in names if name not in set(first))]


def nearest_label(labels: np.ndarray) -> np.ndarray:
    """Ignored voxels take the label of the nearest voxel that has one."""
    ignored = labels == IGNORED
    if not ignored.any() or ignored.all():
        return labels
    return labels[tuple(ndimage.distance_transform_edt(ignored, return_distances=False, return_indices=True))]


def filled_where_sparse(labels: np.ndarray) -> np.ndarray:
    """`nearest_label` of a map in which structures end at ignored voxels more often than at known ones (scribbles, a
    few slices of many): whole blocks of it would hold next to no border, and any code could keep them. Other maps stay
    as they are."""
    faces = {True: 0, False: 0}  # of the foreground, with something ignored or something known behind them
    for axis in range(labels.ndim):
        parts = [np.moveaxis(labels, axis, 0)[part] for part in (slice(None, -1), slice(1, None))]
        ends = (parts[0] != parts[1]) & ((parts[0] > 0) | (parts[1] > 0))
        unknown = ends & ((parts[0] == IGNORED) | (parts[1] == IGNORED))
        faces[True] += int(unknown.sum())
        faces[False] += int(ends.sum() - unknown.sum())
    return nearest_label(labels) if faces[True] > faces[False] else labels


def _slices_with_foreground(labels: np.ndarray, focus: int | None) -> np.ndarray:
    """Up to `MAX_SLICES` slices of (z, y, x), evenly spread over those with the class in focus, or any foreground."""
    found = np.flatnonzero((labels == focus).any(axis=(1, 2)) if focus is not None else np.zeros(0))
    if not len(found):
        found = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    chosen = np.linspace(0, len(found) - 1, min(MAX_SLICES, len(found))).round().astype(int)
    return labels[found[chosen]]
