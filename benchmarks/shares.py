"""Where the time of a prediction goes, from the image's file to the segmentation's: reading, resampling, encoding,
denoising, decoding, writing.

    python benchmarks/shares.py Dataset004_Hippocampus [--configuration 3d_fullres] [--threads 1] [--samples 1 5 16]

Needs the plans of ldseg_plan_and_preprocess, no training: weights do not change what a pass costs. An image of random
values, `--edge` voxels an axis and .8 of the plans' spacing, is predicted as ldseg_predict does it, in one process and
without mirroring. Writes benchmarks/results/shares_*.json and the section of RESULTS.md.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from record import conditions, parser, table, under, write_json, write_section

from ldseg_auto.folders import load_plans
from ldseg_auto.inference import cases
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.resampling import Resampling
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

# what is timed; what one of these calls of another is taken from the outer one
PARTS = {"resampling": (Resampling, "rows"), "reading": (cases, "preprocess"), "encoding": (LDSegNet, "encode_image"),
         "denoising": (LDSegNet, "sample"), "decoding": (LDSegNet, "decode"), "writing": (cases, "export_case")}
NOISE_AND_MEAN = "noise, mean of tiles"


class Clock:
    """Seconds of each part, without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys([*PARTS, NOISE_AND_MEAN], 0.0)
        self._inside = [0.0]

    def timed(self, name: str, function: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            started = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                taken = perf_counter() - started
                self.seconds[name] += taken - self._inside.pop()
                self._inside[-1] += taken
        return run

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, (owner, attribute) in PARTS.items():
                stack.enter_context(patch.object(owner, attribute, self.timed(name, getattr(owner, attribute))))
            stack.enter_context(patch.object(LDSegPredictor, "predict_to",
                                             self.timed(NOISE_AND_MEAN, LDSegPredictor.predict_to)))
            yield


def predictor(dataset: str, configuration_name: str, samples: int, steps: int) -> LDSegPredictor:
    """Of untrained weights."""
    plans_manager = PlansManager(load_plans(dataset, "LDSegPlans"))
    configuration = plans_manager.get_configuration(configuration_name)
    description = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "dataset.json").read_text())
    network = LDSegTrainer.build_network_architecture(
        plans_manager, configuration, len(description["channel_names"]),
        plans_manager.get_label_manager(description).num_segmentation_heads, False)
    made = LDSegPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False, samples=samples,
                          steps=steps)
    made.manual_initialization(network, plans_manager, configuration, [network.state_dict()], description,
                               LDSegTrainer.__name__, None)
    return made


def measure(made: LDSegPredictor, edge: int) -> dict[str, float]:
    """Seconds of each part for one image."""
    spacing = [0.8 * float(s) for s in made.configuration_manager.spacing]
    spacing = [spacing[0]] * (3 - len(spacing)) + spacing
    writer, ending = made.plans_manager.image_reader_writer_class(), made.dataset_json["file_ending"]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        image = np.random.default_rng(0).normal(100, 20, (edge,) * 3).astype(np.float32)
        files = [str(Path(folder) / f"case_{channel:04d}{ending}")
                 for channel in range(len(made.dataset_json["channel_names"]))]
        for file in files:
            writer.write_seg(image, file, {"sitk_stuff": {
                "spacing": spacing[::-1], "origin": (0.0, 0.0, 0.0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}})
        with clock.running():
            made.predict_from_files_sequential([files], [str(Path(folder) / "out" / "case")])
    return clock.seconds


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--configuration", default="3d_fullres")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--edge", type=int, default=96)
    arguments.add_argument("--samples", type=int, nargs="+", default=[1, 5, 16])
    arguments.add_argument("--steps", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    for samples in options.samples:
        made = predictor(options.dataset, options.configuration, samples, options.steps)
        measure(made, options.edge)  # the first one warms up
        found[f"{samples} x {options.steps}"] = measure(made, options.edge)
    parts = list(next(iter(found.values())))
    rows = [[name, f"{sum(seconds.values()):.2f}", *(f"{seconds[part] / sum(seconds.values()):.0%}" for part in parts)]
            for name, seconds in found.items()]
    context = conditions(options.threads)
    name = f"shares_{options.dataset}_{options.configuration}"
    write_json(name, {**context, "edge": options.edge, "results": found})
    text = table(["samples x steps", "s", *parts], rows)
    write_section(name, f"An image of {options.edge}^3 voxels at .8 of the spacing, no mirroring:\n\n{text}\n\n"
                  f"{under(context)}")
    print(text)


if __name__ == "__main__":
    main()
