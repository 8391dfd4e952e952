"""How well a latent of a given stride and width can hold the labels, and which latent that makes the cheapest.

Pure: numpy only. A *block* is the group of voxels one latent position stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

import numpy as np

CHANNELS = (1, 2, 4, 8, 16, 32)
JOINT_MAX_DIMENSIONS = 4000  # above, linear coding of all classes at once is slow and far below what is learned
JOINT_MAX_CLASSES = 6
# Reason for the targets: label coding may cost at most half of the prediction's error, and a good segmentation of a
# difficult structure has a Dice of about .85. Where the ceiling is that high, learned codes came within .03 of it or
# above (measured: benchmarks/RESULTS.md).
TARGET_MEAN = 0.925
TARGET_WORST = 0.90
MAX_BLOCK_VOXELS = 512  # of larger blocks learned codes stayed .35 and more below the ceiling (the same place)
# Of the Gaussian that smooths images in prediction, in voxels: noise of the image's own strength then costs a third of
# the Dice that it costs without, and clean images lose next to nothing (measured: benchmarks/RESULTS.md). Where a
# latent position is two voxels wide, thin structures are being segmented: there it leaves the image nearly as it is.
SIGMA_PER_STRIDE = 0.14
MAX_SIGMA = 0.55
_FIT_VALUES = 8_000_000  # numbers in the matrix the axes are fitted to: 32 MB in float32
_EVAL_VALUES = 16_000_000
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class LatentCeiling:
    """Dice that survives coding the labels with `channels` linear components per block.

    `dice_per_class` has one entry per foreground class (or region), NaN where the class does not occur.
    """

    stride: tuple[int, ...]
    channels: int
    dice_per_class: tuple[float, ...]
    method: str  # "joint" or "one against the rest"

    @property
    def mean(self) -> float:
        present = self._present()
        return float(present.mean()) if len(present) else 0.0  # nothing was seen (ignored everywhere): no evidence

    @property
    def worst(self) -> float:
        present = self._present()
        return float(present.min()) if len(present) else 0.0

    @property
    def seen(self) -> bool:
        """Whether any class occurred where nothing was ignored."""
        return len(self._present()) > 0

    def _present(self) -> np.ndarray:
        dice = np.asarray(self.dice_per_class, dtype=float)
        return dice[~np.isnan(dice)]


@dataclass(frozen=True)
class LatentChoice:
    """The latent taken; `cleared` is False where no candidate reached the targets and the best one was taken."""

    ceiling: LatentCeiling
    cleared: bool


def candidate_strides(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Voxels per latent position, per axis, at each stage of the pooling path, finest first; (1, ..., 1) left out."""
    cumulative = np.cumprod(np.asarray(strides, dtype=int), axis=0)
    found = dict.fromkeys(tuple(int(s) for s in row) for row in cumulative)
    return [stride for stride in found if prod(stride) > 1]


def label_coding_ceiling(label_maps: Sequence[np.ndarray], num_classes: int, stride: Sequence[int],
                         channels: Sequence[int] = CHANNELS, *, regions: Sequence[Sequence[int]] | None = None,
                         max_fit_blocks: int = 20_000, max_blocks: int = 50_000,
                         seed: int = 0) -> list[LatentCeiling]:
    """Dice per foreground class after coding each block of the label maps with a few linear components.

    The maps are cut into blocks of the stride's size (padded with background), the blocks written one-hot (regions:
    multi-hot), principal components fitted to the blocks that hold more than one label, drawn so that every class
    weighs the same, those blocks rebuilt from `channels` components, and each voxel given the largest class (regions:
    above 0.5). Blocks of one label count as perfect. Two-fold: the components that rebuild one half of the maps are
    fitted to the other half, because on few cases as many components as blocks would look perfect; a class that only
    one half holds is rebuilt by components of both. Dice is pooled over all voxels.

    Above 4,000 dimensions or 6 classes each class is coded against the rest instead, with channels / log2(classes)
    components (at most half): a block must hold the border's shape and which of the classes meet there, and a linear
    code of the class takes that many numbers for each component (measured: benchmarks/RESULTS.md).

    Args:
        label_maps: integer arrays in the patch's order of axes at target spacing, values 0 .. num_classes - 1;
            blocks that hold a negative value (ignore label) are dropped.
        num_classes: labels including background.
        stride: voxels per latent position, per axis.
        channels: latent channels to try.
        regions: label values of each region; None where labels exclude each other.
        max_fit_blocks: blocks the components are fitted to, drawn at random.
        max_blocks: blocks rebuilt (per half), drawn at random, every class equally often, and weighted back.
        seed: of both draws.

    Returns:
        one ceiling per entry of `channels`.
    """
    stride = tuple(int(s) for s in stride)
    codes, is_region = _head_codes(num_classes, regions)
    maps_blocks = [_cut_blocks(label_map, stride) for label_map in _at_least_two(label_maps, stride)]
    limits = (max_fit_blocks, max_blocks)
    joint = prod(stride) * codes.shape[1] <= JOINT_MAX_DIMENSIONS and codes.shape[1] <= JOINT_MAX_CLASSES
    if joint:
        dice = _coding_dice(maps_blocks, codes, channels, is_region, limits, seed)
        dice = dice if is_region else dice[:, 1:]
    else:
        foreground = range(0 if is_region else 1, codes.shape[1])
        share = max(2, ceil(log2(codes.shape[1])))
        shapes = [c // share for c in channels]
        limits = (max_fit_blocks // 4, max_blocks // 4)  # one shape has fewer components to fit, and there are many
        dice = np.concatenate([_coding_dice(maps_blocks, codes[:, [head]], shapes, True, limits, seed)
                               for head in foreground], axis=1)
    method = "joint" if joint else "one against the rest"
    # rounded: machines add up in different orders, the choice must not depend on it
    return [LatentCeiling(stride, int(c), tuple(round(float(d), 4) for d in row), method)
            for c, row in zip(channels, dice, strict=True)]


def choose_latent(ceilings: Sequence[LatentCeiling], patch: Sequence[int] | None = None,
                  target_mean: float = TARGET_MEAN, target_worst: float = TARGET_WORST,
                  min_edge: int = 2) -> LatentChoice | None:
    """The cheapest latent whose ceiling clears both targets.

    Cheapest: fewest latent positions per voxel (they set the denoiser's time), then fewest channels. Where none
    clears, the one with the smallest shortfall, then the highest mean.

    Args:
        ceilings: candidates, any order.
        patch: voxels per axis; strides that leave fewer than `min_edge` positions on an axis they shrink are out.
        min_edge: positions per axis.

    Returns:
        None where the patch leaves no candidate.
    """
    possible = [c for c in ceilings if patch is None or grid_is_large_enough(patch, c.stride, min_edge)]
    if not possible:
        return None
    clearing = [c for c in possible if c.mean >= target_mean and c.worst >= target_worst]
    if clearing:
        return LatentChoice(min(clearing, key=lambda c: (-prod(c.stride), c.channels)), cleared=True)
    best = max(possible, key=lambda c: (min(c.mean - target_mean, c.worst - target_worst), c.mean, prod(c.stride)))
    return LatentChoice(best, cleared=False)


def grid_is_large_enough(patch: Sequence[int], stride: Sequence[int], min_edge: int) -> bool:
    """Whether every axis that the stride shrinks keeps at least `min_edge` positions."""
    return all(s == 1 or p // s >= min_edge for p, s in zip(patch, stride, strict=True))


def _at_least_two(label_maps: Sequence[np.ndarray], stride: tuple[int, ...]) -> Sequence[np.ndarray]:
    """A single map is cut in two, so that what is rebuilt was not fitted to."""
    if len(label_maps) != 1 or label_maps[0].ndim != len(stride):
        return label_maps
    axis = int(np.argmax([n // step for n, step in zip(label_maps[0].shape, stride, strict=True)]))
    middle = stride[axis] * (-(-label_maps[0].shape[axis] // stride[axis]) // 2)
    return [part for part in np.split(label_maps[0], [middle], axis=axis) if part.size]


def _head_codes(num_classes: int, regions: Sequence[Sequence[int]] | None) -> tuple[np.ndarray, bool]:
    """What each label value is to each output: (num_classes, heads), 0 or 1; and whether outputs overlap."""
    if regions is None:
        return np.eye(num_classes, dtype=np.float32), False
    return np.array([[label in region for region in regions] for label in range(num_classes)], np.float32), True


def _cut_blocks(label_map: np.ndarray, stride: tuple[int, ...]) -> np.ndarray:
    """(blocks, voxels per block); blocks with a negative value are left out."""
    if label_map.ndim != len(stride):
        raise ValueError(f"A label map has {label_map.ndim} axes, the stride {stride} has {len(stride)}.")
    label_map = np.pad(label_map, [(0, -n % s) for n, s in zip(label_map.shape, stride, strict=True)])
    split = [edge for n, s in zip(label_map.shape, stride, strict=True) for edge in (n // s, s)]
    dim = len(stride)
    order = [*range(0, 2 * dim, 2), *range(1, 2 * dim, 2)]
    blocks = label_map.reshape(split).transpose(order).reshape(-1, prod(stride))
    return blocks[(blocks >= 0).all(axis=1)]


def _coding_dice(maps_blocks: Sequence[np.ndarray], codes: np.ndarray, channels: Sequence[int], is_region: bool,
                 limits: tuple[int, int], seed: int) -> np.ndarray:
    """(channels, heads) Dice, two-fold over the maps."""
    kinds, kind_of_label = np.unique(codes, axis=0, return_inverse=True)  # labels no output tells apart are one kind
    kind_of_label = kind_of_label.reshape(-1)
    middle = (len(maps_blocks) + 1) // 2  # neighbours (slices of one case) stay on one side
    halves = [_split_constant(part, kinds, kind_of_label) for part in (maps_blocks[:middle], maps_blocks[middle:])]
    overlap = np.zeros((len(channels), codes.shape[1]))
    total = np.zeros_like(overlap)  # voxels predicted plus voxels true
    everywhere = np.concatenate([border for border, _ in halves if len(border)] or [np.zeros((0, 1), np.uint8)])
    for index, (border, constant) in enumerate(halves):
        overlap += constant
        total += 2 * constant
        if not len(border):
            continue
        other = halves[1 - index][0]
        drawn, weights = _draw_weighted(border, limits[1], kinds, seed)
        held_out = len(other) > 0
        both = _coded(drawn, weights, other if held_out else border, kinds, channels, is_region, limits[0], seed)
        only_here = ~_heads_in(other, kinds) & _heads_in(border, kinds)
        if held_out and only_here.any():
            # a class that occurs in one half only: nothing else can tell how it is coded
            together = _coded(drawn, weights, everywhere, kinds, channels, is_region, limits[0], seed)
            both = np.where(only_here, together, both)
        overlap += both[0]
        total += both[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * overlap / total


def _split_constant(parts: Sequence[np.ndarray], kinds: np.ndarray,
                    kind_of_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks that hold a border, as kinds (blocks, voxels), and the voxels per head in all other blocks."""
    borders = []
    constant = np.zeros(kinds.shape[1])
    for labels in parts:
        blocks = kind_of_label[labels].astype(np.uint8)
        has_border = (blocks != blocks[:, :1]).any(axis=1)
        borders.append(blocks[has_border])
        counts = np.bincount(blocks[~has_border, 0], minlength=len(kinds)) * blocks.shape[1]
        constant += counts @ kinds
    return (np.concatenate(borders) if borders else np.zeros((0, 1), np.uint8)), constant


def _draw_weighted(blocks: np.ndarray, limit: int, kinds: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All blocks, or a number in which every head is drawn equally often; and how many blocks each stands for."""
    limit = max(1, min(limit, _EVAL_VALUES // (blocks.shape[1] * kinds.shape[1])))
    if len(blocks) <= limit:
        return blocks, np.ones(len(blocks))
    probabilities = _balance(blocks, kinds)
    drawn = np.random.default_rng(seed).choice(len(blocks), limit, p=probabilities)
    return blocks[drawn], 1 / (limit * probabilities[drawn])


def smoothing_sigma(stride: Sequence[int], per_stride: float = SIGMA_PER_STRIDE) -> tuple[float, ...]:
    """Standard deviation along each axis, in voxels, of the Gaussian that images pass before the encoder.

    Args:
        stride: of the latent, voxels.
        per_stride: standard deviation for each voxel of the stride, up to `MAX_SIGMA` in all.
    """
    return tuple(min(per_stride * s, MAX_SIGMA) if s > 1 else 0.0 for s in stride)


def _coded(blocks: np.ndarray, weights: np.ndarray, fit_to: np.ndarray, kinds: np.ndarray, channels: Sequence[int],
           is_region: bool, max_fit_blocks: int, seed: int) -> np.ndarray:
    """`_rebuild` of the blocks, by axes fitted to some of `fit_to` in which every head weighs the same."""
    rng = np.random.default_rng(seed)
    limit = max(1, min(max_fit_blocks, _FIT_VALUES // (fit_to.shape[1] * kinds.shape[1])))
    fitted = fit_to[rng.choice(len(fit_to), limit, p=_balance(fit_to, kinds))]
    return _rebuild(blocks, weights, kinds, *_principal_axes(fitted, kinds, max(channels), rng), channels, is_region)


def _heads_in(blocks: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Which heads occur, bool."""
    return kinds[np.unique(blocks)].any(axis=0) if len(blocks) else np.zeros(kinds.shape[1], bool)


def _balance(blocks: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Probability of drawing each block, so that every head is drawn equally often: a large organ's border would
    otherwise take all components, and a small lesion's none, although the loss weighs them alike."""
    holds = np.stack([(blocks == kind).any(axis=1) for kind in range(len(kinds))], axis=1).astype(float) @ kinds > 0
    numbers = holds.sum(axis=0)
    weights = (holds / np.maximum(numbers, 1)).sum(axis=1)
    return weights / weights.sum()


def _principal_axes(blocks: np.ndarray, kinds: np.ndarray, count: int,
                    rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and leading principal axes (count, D) by randomised subspace iteration (Halko et al. 2011, 4.4)."""
    samples = kinds[blocks].reshape(len(blocks), -1)
    mean = samples.mean(axis=0)
    samples -= mean
    dimensions = samples.shape[1]
    basis = rng.standard_normal((dimensions, min(dimensions, count + 8))).astype(np.float32)
    for _ in range(5):
        basis = np.linalg.qr(samples.T @ (samples @ basis))[0]
    projected = samples @ basis
    rotation = np.linalg.eigh(projected.T @ projected)[1][:, ::-1]
    return mean, (basis @ rotation).T[:count]


def _rebuild(blocks: np.ndarray, weights: np.ndarray, kinds: np.ndarray, mean: np.ndarray, axes: np.ndarray,
             channels: Sequence[int], is_region: bool) -> np.ndarray:
    """(2, channels, heads): voxels where truth and rebuilt label agree, and the sum of voxels of both; weighted."""
    heads = kinds.shape[1]
    result = np.zeros((2, len(channels), heads))
    chunk = max(1, _CHUNK_VALUES // len(mean))
    for start in range(0, len(blocks), chunk):
        truth = kinds[blocks[start:start + chunk]]  # (n, voxels, heads)
        weight = weights[start:start + chunk]
        coefficients = (truth.reshape(len(truth), -1) - mean) @ axes.T
        for index, count in enumerate(channels):
            rebuilt = (mean + coefficients[:, :count] @ axes[:count]).reshape(truth.shape)
            predicted = rebuilt > 0.5 if is_region else rebuilt.argmax(-1)[..., None] == np.arange(heads)
            result[0, index] += weight @ (predicted & (truth > 0.5)).sum(1)
            result[1, index] += weight @ (predicted.sum(1) + truth.sum(1))
    return result
