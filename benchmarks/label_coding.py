"""Does the planner's label-coding ceiling predict what the learned label autoencoder reaches?

    python benchmarks/label_coding.py DATASET STRIDE/CHANNELS [STRIDE/CHANNELS ...] [--seconds 120]

for example `Dataset004_Hippocampus 4,4,4/8 8,8,8/16`. Needs nnUNet_raw, nnUNet_preprocessed and a data set that has
been planned. For each point the label encoder and decoder of `LDSegNet` are trained alone, as the trainer starts and
trains them, on the label maps that the planner looks at, but for the last third of them; Dice is pooled over these. The
ceiling is the planner's, of all maps. Prints a line and writes a JSON file into benchmarks/results for each point;
`--summary` prints all that are there, with rank correlation and offset.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from scipy.stats import spearmanr

from ldseg_auto.evaluation.peak_memory import segmentation_loss
from ldseg_auto.folders import find_dataset, load_plans
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.planners.label_maps import nearest_label
from ldseg_auto.planners.latent_geometry import (
    MAX_BLOCK_VOXELS,
    TARGET_MEAN,
    TARGET_WORST,
    label_coding_ceiling,
)
from ldseg_auto.planners.ldseg_planner import NETWORK_CLASS, LDSegPlanner
from ldseg_auto.trainers.code_start import start_from_principal_components

RESULTS = Path(__file__).resolve().parent / "results"
_BATCH, _LEARNING_RATE, _PATCH_VOXELS = 4, 3e-3, 64 ** 3


def label_maps(planner: LDSegPlanner, spacing: Sequence[float]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """To train on and held out."""
    maps = [nearest_label(each) for each in planner._maps(tuple(spacing))]
    if len(maps) < 3:
        raise SystemExit("At least three label maps are needed: two to train on, one held out.")
    first = len(maps) - max(1, len(maps) // 3)
    return maps[:first], maps[first:]


def network_for(planner: LDSegPlanner, plan: dict, stride: Sequence[int], channels: int) -> LDSegNet:
    """The plan's network with another latent."""
    kwargs = plan["architecture"]["arch_kwargs"] | {"latent_stride": list(stride), "latent_channels": channels}
    return get_network_from_plans(NETWORK_CLASS, kwargs, plan["architecture"]["_kw_requires_import"], 1,
                                  planner._num_heads, deep_supervision=False)


def draw(maps: Sequence[np.ndarray], patch: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
    """A batch of patches, half of them around foreground, each axis flipped or not, (B, 1, *patch)."""
    batch = []
    for index in range(_BATCH):
        labels = maps[rng.integers(len(maps))]
        labels = np.pad(labels, [(0, max(0, size - n)) for size, n in zip(patch, labels.shape, strict=True)])
        corner = [rng.integers(n - size + 1) for size, n in zip(patch, labels.shape, strict=True)]
        if index % 2 == 0:
            present = [label for label in np.unique(labels) if label > 0]
            found = np.argwhere(labels == rng.choice(present)) if present else np.zeros((1, labels.ndim), int)
            corner = [int(np.clip(c - size // 2, 0, n - size))
                      for c, size, n in zip(found[rng.integers(len(found))], patch, labels.shape, strict=True)]
        part = labels[tuple(slice(c, c + size) for c, size in zip(corner, patch, strict=True))]
        batch.append(np.flip(part, [axis for axis in range(part.ndim) if rng.integers(2)]))
    return torch.from_numpy(np.stack(batch)[:, None].astype(np.float32))


def train(network: LDSegNet, maps: Sequence[np.ndarray], patch: Sequence[int], seconds: float) -> int:
    """Iterations done; started from principal components where the trainer would."""
    rng, loss = np.random.default_rng(0), segmentation_loss(regions=False)
    start_from_principal_components(network, (draw(maps, patch, rng) for _ in range(20)))
    parameters = [*network.label_encoder.parameters(), *network.label_decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE)
    started, iterations = monotonic(), 0
    while (spent := (monotonic() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - spent) ** 0.9
        target = draw(maps, patch, rng)
        value = loss(network.decode(network.encode_label(target)), target)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 12)
        optimizer.step()
        iterations += 1
    return iterations


@torch.no_grad()
def coding_dice(network: LDSegNet, maps: Sequence[np.ndarray], stride: Sequence[int]) -> np.ndarray:
    """Per foreground class, pooled over the maps."""
    network.eval()
    overlap, total = np.zeros(network.num_classes), np.zeros(network.num_classes)
    for labels in maps:
        target = np.pad(labels, [(0, -n % step) for n, step in zip(labels.shape, stride, strict=True)])
        code = network.encode_label(torch.from_numpy(target[None, None].astype(np.float32)))
        predicted = network.decode(code)[0].argmax(0).numpy()
        for label in range(network.num_classes):
            a, b = predicted == label, target == label
            overlap[label] += (a & b).sum()
            total[label] += a.sum() + b.sum()
    return 2 * overlap[1:] / np.where(total[1:] > 0, total[1:], np.nan)


def measure(dataset: str, point: str, seconds: float) -> None:
    """One point, printed and written."""
    torch.manual_seed(0)
    stride = [int(step) for step in point.split("/")[0].split(",")]
    channels = int(point.split("/")[1])
    planner = LDSegPlanner(dataset)
    plan = load_plans(dataset)["configurations"]["2d" if len(stride) == 2 else "3d_fullres"]
    network = network_for(planner, plan, stride, channels)
    training, held_out = label_maps(planner, plan["spacing"])
    ceiling, = label_coding_ceiling([*training, *held_out], network.num_classes, stride, [channels])
    total = plan["architecture"]["arch_kwargs"]["strides"]
    total = np.prod(np.array(total), axis=0)
    patch = [int(step) * max(1, min(size // int(step), round(_PATCH_VOXELS ** (1 / 3) / step)))
             for step, size in zip(total, plan["patch_size"], strict=True)]
    iterations = train(network, training, patch, seconds)
    dice = coding_dice(network, held_out, stride)
    result = {"dataset": dataset, "stride": stride, "channels": channels, "method": ceiling.method,
              "ceiling_mean": ceiling.mean, "ceiling_worst": ceiling.worst,
              "learned_mean": float(np.nanmean(dice)), "learned_worst": float(np.nanmin(dice)),
              "iterations": iterations, "seconds": seconds, "patch": patch}
    RESULTS.mkdir(exist_ok=True)
    name = f"label_coding_{dataset}_{'x'.join(map(str, stride))}_{channels}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1))
    print(line(result), flush=True)


def line(result: dict) -> str:
    stride = "x".join(map(str, result["stride"]))
    return (f"| {result['dataset'].split('_', 1)[1]} | {stride} | {result['channels']} | {result['method']} "
            f"| {result['ceiling_mean']:.3f} {result['ceiling_worst']:.3f} "
            f"| {result['learned_mean']:.3f} {result['learned_worst']:.3f} | {result['iterations']} |")


def summary() -> None:
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("label_coding_*.json"))]
    print(*map(line, results), sep="\n")
    small = [r for r in results if np.prod(r["stride"]) <= MAX_BLOCK_VOXELS]
    print(f"Of the {len(small)} points whose blocks hold at most {MAX_BLOCK_VOXELS} voxels:")
    for which, target in (("mean", TARGET_MEAN), ("worst", TARGET_WORST)):
        ceiling, learned = (np.array([r[f"{side}_{which}"] for r in small]) for side in ("ceiling", "learned"))
        offset = learned - ceiling
        cleared = offset[ceiling >= target]
        print(f"{which}: rank correlation {spearmanr(ceiling, learned).statistic:.2f}; learned minus ceiling: median "
              f"{np.median(offset):+.3f}, from {offset.min():+.3f} to {offset.max():+.3f}; of the {len(cleared)} that "
              f"clear the target {target:g}, {cleared.min():+.3f} to {cleared.max():+.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("points", nargs="*", metavar="STRIDE/CHANNELS")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    for point in options.points:
        measure(find_dataset(options.dataset, ("nnUNet_raw",)), point, options.seconds)
    if options.summary:
        summary()


if __name__ == "__main__":
    main()
