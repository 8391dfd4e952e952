"""Rows handed on one after the other against the mean of all tiles at once."""

import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from ldseg_auto.inference.accumulate import RowAccumulator
from ldseg_auto.inference.tiling import cut_into_tiles

CPU = torch.device("cpu")


def run(tiling, patch, values, weight=None, channels=2, move_at=None):
    weight = torch.ones(patch) if weight is None else weight
    rows = []
    accumulator = RowAccumulator(tiling, weight, channels, CPU, lambda first, part: rows.append((first, part.clone())))
    held = 0
    for i, tile in enumerate(tiling.tiles):
        if i == move_at:
            accumulator.move(CPU)
        accumulator.add(tile, accumulator.share(tile), values[i])
        held = max(held, accumulator._sum.shape[1])
    accumulator.close()
    assert [first for first, _ in rows] == [sum(p.shape[1] for _, p in rows[:i]) for i in range(len(rows))]
    return torch.cat([part for _, part in rows], 1), held


@pytest.mark.parametrize("shape, patch, stride, step", [
    ((37, 20, 9), (8, 12, 12), (2, 4, 4), 0.5), ((40, 9, 30), (16, 8, 8), (4, 4, 4), 0.3),
    ((5, 20, 21), (8, 8, 8), (2, 2, 2), 1.0), ((6, 20, 21), (8, 8), (2, 2), 0.5), ((1, 9, 30), (16, 8), (4, 4), 0.4)])
def test_it_is_the_weighted_mean(shape, patch, stride, step):
    tiling = cut_into_tiles(shape, patch, stride, step)
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand((2, *patch), generator=generator) for _ in tiling.tiles]
    weight = compute_gaussian(patch, 1 / 8, 10, torch.float32, CPU)
    total, weights = torch.zeros((2, *tiling.shape)), torch.zeros(tiling.shape)
    for tile, value in zip(tiling.tiles, values, strict=True):
        total[(slice(None), *tile.slicer)] += value * weight
        weights[tile.slicer] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(tiling.before, shape, strict=True))
    expected = (total / weights)[(slice(None), *inside)]
    for move_at in (None, len(values) // 2):
        mean, held = run(tiling, patch, values, weight, move_at=move_at)
        assert mean.shape == (2, *shape)
        assert torch.allclose(mean, expected, atol=1e-6)
        assert held == (patch[0] if len(patch) == 3 else 1), "no more rows than a tile has"


def test_tiles_out_of_order_are_refused():
    tiling = cut_into_tiles((40, 8, 8), (8, 8, 8), (2, 2, 2), 0.5)
    accumulator = RowAccumulator(tiling, torch.ones(8, 8, 8), 1, CPU, lambda *_: None)
    last, first = tiling.tiles[-1], tiling.tiles[0]
    accumulator.add(last, accumulator.share(last), torch.ones(1, 8, 8, 8))
    with pytest.raises(ValueError, match="came after"):
        accumulator.add(first, accumulator.share(first), torch.ones(1, 8, 8, 8))
