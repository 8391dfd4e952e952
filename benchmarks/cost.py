"""Seconds and peak memory of predicting one case: our operating points, nnU-Net, and diffusion in image space.

    python benchmarks/cost.py Dataset004_Hippocampus [--threads 1] [--sizes 40 64 128] [--patches 128]

Needs both plans in nnUNet_preprocessed, no training: weights do not change what a pass costs. Every measurement has a
process of its own; memory is what its peak adds to what it held with the model and the image loaded. nnU-Net returns
logits, ours writes probabilities to a file by rows, as the two commands do. Same tiles, batch 1, the same mirroring on
both sides. "Image space" is nnU-Net's U-Net, which takes the noisy labels beside the image in every step, without
mirroring. `--sides` measures one side anew and keeps the other's rows of an earlier call. Writes
benchmarks/results/cost_*.json and the section of RESULTS.md.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from peers import SIDES, in_16_bits
from record import HERE, conditions, in_own_process, parser, table, under, write_json, write_section

from ldseg_auto.folders import load_plans
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.volumes import VolumeOnDisk
from ldseg_auto.precision import VARIABLE


@dataclass(frozen=True)
class Work:
    """What is measured: a side on a cube of `size` voxels an axis (None: one patch of nnU-Net's), in tiles of `patch`
    voxels an axis (None: nnU-Net's patch); `bits` None: 32 for nnU-Net, for ours what the CPU is quicker with."""

    name: str
    side: str
    samples: int = 1
    steps: int = 1
    mirroring: bool = False
    image_space: bool = False
    size: int | None = None
    patch: int | None = None
    bits: int | None = None
    repeats: int = 3


def works(sizes: list[int], patches: list[int], image_steps: list[int]) -> list[Work]:
    found = []
    for mirroring in (False, True):
        suffix = ", mirroring" * mirroring
        found.append(Work(f"nnU-Net{suffix}", "nnunet", mirroring=mirroring))
        found += [Work(f"ours {samples} x {steps}{suffix}", "ldseg", samples, steps, mirroring)
                  for samples, steps in ((1, 1), (5, 2), (16, 2))]
    found += [Work("ours 1 x 1 in 32 bits", "ldseg", bits=32), Work("ours 16 x 2 in 32 bits", "ldseg", 16, 2, bits=32),
              Work("nnU-Net in 16 bits", "nnunet", bits=16)]
    found += [Work(f"ours {samples} x {steps}", "ldseg", samples, steps)
              for samples, steps in ((1, 2), (1, 4), (1, 10), (20, 2))]
    found += [Work(f"image space, {steps} steps", "nnunet", steps=steps, image_space=True, repeats=1)
              for steps in image_steps]
    for size in sizes:
        found += [Work(f"nnU-Net, {size}^3", "nnunet", size=size, repeats=1),
                  Work(f"ours 1 x 1, {size}^3", "ldseg", size=size, repeats=1),
                  Work(f"ours 5 x 2, {size}^3", "ldseg", 5, 2, size=size, repeats=1)]
    for patch in patches:
        found += [Work(f"nnU-Net, a tile of {patch}^3", "nnunet", size=patch, patch=patch, repeats=1),
                  Work(f"ours 1 x 1, a tile of {patch}^3", "ldseg", size=patch, patch=patch, repeats=1),
                  Work(f"ours 16 x 2, a tile of {patch}^3", "ldseg", 16, 2, size=patch, patch=patch, repeats=1)]
    return found


def measure(work: Work, dataset: str, threads: int) -> dict[str, float]:
    """Median seconds, and the peak of resident memory less that before, GB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if work.side == "ldseg" and work.bits is not None:
        os.environ[VARIABLE] = {16: "bfloat16", 32: "float32"}[work.bits]
    precision = in_16_bits if work.side != "ldseg" and work.bits == 16 else nullcontext
    predictor, inputs, patch = _predictor(work, dataset)
    image = torch.randn(inputs, *(patch if work.size is None else [work.size] * len(patch)))
    run = _prediction(work, predictor, image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(work.repeats + (work.repeats > 1)):  # where there are several, the first one is a warm-up
        started = perf_counter()
        with precision():
            run()
        seconds.append(perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": median(seconds[-work.repeats:]), "memory_gb": peak * 1024 / 1e9}


def _prediction(work: Work, predictor: Any, image: torch.Tensor) -> Callable[[], Any]:
    if work.image_space:
        return lambda: _image_space(predictor, image, work.steps)
    if not SIDES[work.side].is_ours:
        return lambda: predictor.predict_logits_from_preprocessed_data(image)

    def to_file() -> None:
        with tempfile.TemporaryDirectory() as folder:
            shape = predictor.shape_of_prediction(tuple(image.shape))
            predictor.predict_to(image, VolumeOnDisk.create(Path(folder) / "prediction", shape))

    return to_file


def _predictor(work: Work, dataset: str) -> tuple[Any, int, tuple[int, ...]]:
    side = SIDES[work.side]
    plans_manager = PlansManager(load_plans(dataset, side.plans))
    configuration = plans_manager.get_configuration("3d_fullres")
    description = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "dataset.json").read_text())
    inputs = len(description["channel_names"])
    heads = plans_manager.get_label_manager(description).num_segmentation_heads
    network = side.trainer.build_network_architecture(
        plans_manager, configuration, inputs + heads * work.image_space, heads, False).eval()
    common: dict[str, Any] = {"use_mirroring": work.mirroring, "perform_everything_on_device": False,
                              "device": torch.device("cpu"), "allow_tqdm": False}
    predictor = (LDSegPredictor(**common, samples=work.samples, steps=work.steps) if side.is_ours
                 else nnUNetPredictor(**common))
    patch = tuple(PlansManager(load_plans(dataset, SIDES["nnunet"].plans)).get_configuration("3d_fullres").patch_size)
    if work.patch is not None:
        patch = (work.patch,) * len(patch)
    configuration.configuration["patch_size"] = list(patch)  # the same tiles for both
    weights = deepcopy(network.state_dict())  # a fold's weights lie beside the network's, as after loading them
    predictor.manual_initialization(network, plans_manager, configuration, [weights], description,
                                    side.trainer.__name__, tuple(range(len(patch))))
    return predictor, inputs, patch


@torch.inference_mode()
def _image_space(predictor: nnUNetPredictor, image: torch.Tensor, steps: int) -> torch.Tensor:
    """Deterministic steps on one patch: the U-Net estimates the labels, which are mixed with the noise again."""
    heads = predictor.label_manager.num_segmentation_heads
    noise = torch.randn(1, heads, *image.shape[1:])
    z = noise
    for step in range(steps):
        estimate = predictor.network(torch.cat([image[None], z], 1)).softmax(1)
        z = torch.lerp(noise, estimate, (step + 1) / steps)
    return z


def earlier_row(file: Path, work: Work) -> dict[str, Any]:
    """What an earlier call found of the same work."""
    rows = json.loads(file.read_text())["results"] if file.is_file() else []
    for row in rows:
        if all(row[key] == value for key, value in asdict(work).items()):
            return dict(row)
    raise SystemExit(f"{file} has no row of {work.name!r}. Measure its side too: --sides {work.side}.")


def report(found: list[dict[str, Any]]) -> str:
    rows = []
    for row in found:
        reference = next(r for r in found if r["side"] == "nnunet" and r["bits"] is None and not r["image_space"]
                         and all(r[key] == row[key] for key in ("size", "patch", "mirroring")))
        rows.append([row["name"], f"{row['seconds']:.3f}", f"{row['seconds'] / reference['seconds']:.2f}",
                     f"{row['memory_gb']:.3f}", f"{row['memory_gb'] / max(reference['memory_gb'], 1e-3):.2f}"])
    return table(["prediction", "s", "of nnU-Net's", "peak, GB", "of nnU-Net's"], rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--sizes", type=int, nargs="*", default=[], help="voxels an axis of growing volumes")
    arguments.add_argument("--image_steps", type=int, nargs="*", default=[50], help="steps of diffusion in image space")
    arguments.add_argument("--patches", type=int, nargs="*", default=[], help="voxels an axis of larger tiles")
    arguments.add_argument("--sides", nargs="+", choices=("nnunet", "ldseg"), default=["nnunet", "ldseg"])
    options = arguments.parse_args()
    name = f"cost_{options.dataset}_{options.threads}threads"
    found = []
    for work in works(options.sizes, options.patches, options.image_steps):
        row = (asdict(work) | in_own_process(measure, work, options.dataset, options.threads)
               if work.side in options.sides else earlier_row(HERE / "results" / f"{name}.json", work))
        found.append(row)
        print(f"{row['name']}: {row['seconds']:.3f} s, {row['memory_gb']:.3f} GB", flush=True)
    context = conditions(options.threads)
    write_json(name, {**context, "results": found})
    write_section(f"cost {options.dataset} {options.threads}", f"{report(found)}\n\n{under(context)}")
    print(report(found))


if __name__ == "__main__":
    main()
