"""Where the time of a prediction goes: encoding a tile, sampling five codes in two steps, decoding them.

    python benchmarks/latency.py PLANS_JSON [CONFIGURATION] [--threads 2]

Untrained weights, one tile, no mirroring, the device that torch finds. Prints the median of ten runs of each part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from ldseg_auto.devices import select_device

SAMPLES, STEPS, RUNS = 5, 2, 10


def milliseconds(work: Callable[[], torch.Tensor]) -> float:
    times = []
    for _ in range(RUNS + 2):
        started = perf_counter()
        work().sum().item()  # waits for the device
        times.append(perf_counter() - started)
    return 1e3 * median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("configuration", nargs="?", default="3d_fullres")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plans = json.loads(options.plans.read_text())
    plan = plans["configurations"][options.configuration]
    inputs = len(plans["foreground_intensity_properties_per_channel"])
    heads = len(plan["ldseg"]["latent"]["candidates"][0]["per_class"])
    heads += plan["architecture"]["arch_kwargs"]["output"] == "softmax"  # the background
    architecture, device = plan["architecture"], select_device()
    network = get_network_from_plans(architecture["network_class_name"], architecture["arch_kwargs"],
                                     architecture["_kw_requires_import"], inputs, heads,
                                     deep_supervision=False).to(device).eval()
    image = torch.randn(1, inputs, *plan["patch_size"], device=device)
    grid = [size // step for size, step in zip(plan["patch_size"], network.config.latent_stride, strict=True)]
    noise = torch.randn(SAMPLES, network.config.latent_channels, *grid, device=device)
    with torch.inference_mode():
        condition = network.encode_image(image).expand(SAMPLES, -1, *grid)
        latent = network.sample(condition, noise, STEPS)
        parts = {"encode": milliseconds(lambda: network.encode_image(image)),
                 f"sample, {SAMPLES} x {STEPS}": milliseconds(lambda: network.sample(condition, noise, STEPS)),
                 "decode": milliseconds(lambda: network.decode(latent))}
    print(f"{plans['dataset_name']} {options.configuration}, patch {'x'.join(map(str, plan['patch_size']))}, denoiser "
          f"{network.config.denoiser_features}: " + ", ".join(f"{part} {ms:.1f} ms" for part, ms in parts.items()))


if __name__ == "__main__":
    main()
