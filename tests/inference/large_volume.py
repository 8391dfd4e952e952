"""Predicts one large volume from file to file in a process of its own, and prints how much memory that took.

    python tests/inference/large_volume.py FOLDER Z Y X [--then_rows Z] [--network stand-in | real] [--processes N]

Prints JSON, a line a volume: for each phase its seconds and the peak of memory, in MiB above what is there before the
prediction: with no other processes the peak that the kernel keeps, else that of samples of this process and its
children (proportional set size, so that pages that they share count once).
"""

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from math import prod
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from ldseg_auto.inference import cases
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.networks.ldseg_net import LDSegNet

LABELS = 5
DATASET = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "file_ending": ".mha",
           "channel_names": {"0": "CT"}}
SPACING = (1.0, 0.8, 0.8)  # of the image, (z, y, x)


class StandIn(nn.Module):
    """As LDSegNet to the predictor, without layers: samples are noise, and the condition decides the class."""

    def __init__(self, config):
        super().__init__()
        self.config, self.num_classes = config, LABELS

    def encode_image(self, image):
        return nn.functional.avg_pool3d(image, self.config.latent_stride)

    def sample(self, condition, noise, *_, **__):
        return condition + 0.1 * noise[:, :1]

    def decode(self, latent):
        full = nn.functional.interpolate(latent, scale_factor=self.config.latent_stride)
        return torch.cat([full * k for k in range(self.num_classes)], 1)

    def probabilities(self, logits):
        return logits.softmax(1)


def plans_for(target_spacing, patch) -> PlansManager:
    def resampling(order):
        return {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}

    function = "resample_data_or_seg_to_shape"
    network = {
        "n_stages": 5, "features_per_stage": [32, 64, 128, 256, 320], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 5, "strides": [[1, 1, 1]] + [[2, 2, 2]] * 4, "n_conv_per_stage": [2] * 5,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}, "latent_stride": [4, 4, 4],
        "latent_channels": 16, "label_features": 32, "denoiser_features": [24, 48]}
    return PlansManager({
        "dataset_name": "Dataset001_Large", "plans_name": "P", "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}},
        "configurations": {"3d_fullres": {
            "preprocessor_name": "DefaultPreprocessor", "spacing": list(target_spacing), "batch_size": 2,
            "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "patch_size": list(patch),
            "resampling_fn_data": function, "resampling_fn_data_kwargs": resampling(3),
            "resampling_fn_seg": function, "resampling_fn_seg_kwargs": resampling(1),
            "resampling_fn_probabilities": function, "resampling_fn_probabilities_kwargs": resampling(1),
            "architecture": {"network_class_name": "ldseg_auto.networks.ldseg_net.LDSegNet", "arch_kwargs": network,
                             "_kw_requires_import": ["conv_op", "norm_op", "nonlin"]}}}})


def write_volume(file: Path, shape) -> None:
    """int16 texture that fills the box, uncompressed."""
    rng = np.random.default_rng(0)
    slab = rng.integers(-900, 900, (8, *shape[1:]), dtype=np.int16)
    slab[slab == 0] = 1
    image = sitk.GetImageFromArray(np.concatenate([np.roll(slab, i, 2) for i in range(-(-shape[0] // 8))])[:shape[0]])
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(file))


class OwnPeak:
    """Peak of this process's resident memory in each phase, kept by the kernel: no phase is too short for it."""

    def __init__(self):
        self.peaks = {}
        self._start("before")

    def _start(self, phase):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        self._phase = phase

    def enter(self, phase):
        status = Path("/proc/self/status").read_text().splitlines()
        self.peaks[self._phase], = (int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
        self._start(phase)

    def stop(self):
        self.enter("after")


class SampledPeak(threading.Thread):
    """Peak of this process and its children in each phase, by samples."""

    def __init__(self):
        super().__init__(daemon=True)
        self.phase, self.peaks, self.running = "before", {"before": 0.0}, True
        self.start()

    def enter(self, phase):
        self.phase = phase

    def run(self):
        while self.running:
            phase, now = self.phase, memory_mib()
            if phase == self.phase:
                self.peaks[phase] = max(self.peaks.get(phase, 0), now)
            time.sleep(0.05)

    def stop(self):
        self.running = False


def memory_mib() -> float:
    total = 0
    for pid in (os.getpid(), *(process.pid for process in multiprocessing.active_children())):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def build(arguments) -> LDSegPredictor:
    plans = plans_for(arguments.spacing, arguments.patch)
    configuration = plans.get_configuration("3d_fullres")
    if arguments.network == "real":
        torch.manual_seed(0)
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        network = get_network_from_plans(configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
                                         configuration.network_arch_init_kwargs_req_import, 1, LABELS,
                                         allow_init=True, deep_supervision=False)
    else:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        network = StandIn(get_network_from_plans(
            configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import, 1, LABELS, False, False).config)
    assert isinstance(network, (LDSegNet, StandIn))
    predictor = LDSegPredictor(device=torch.device("cpu"), samples=4, use_mirroring=False, allow_tqdm=False,
                               tile_step_size=arguments.step_size)
    predictor.manual_initialization(network, plans, configuration, [network.state_dict()], DATASET, "T", None)
    return predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", type=int, nargs=3)
    parser.add_argument("--network", choices=("stand-in", "real"), default="stand-in")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.25, 1.0, 1.0))
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 160, 160))
    parser.add_argument("--step_size", type=float, default=0.5)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--then_rows", type=int, nargs="*", default=(), help="again with as many")
    arguments = parser.parse_args()
    predictor = build(arguments)
    steps = cases._predict, cases._export_of
    for rows in (arguments.shape[0], *arguments.then_rows):
        cases._predict, cases._export_of = steps
        print(json.dumps(measure(predictor, arguments, (rows, *arguments.shape[1:]))), flush=True)


def measure(predictor: LDSegPredictor, arguments: argparse.Namespace, shape) -> dict:
    image = arguments.folder / "case_0000.mha"
    write_volume(image, shape)
    watch = SampledPeak() if arguments.processes else OwnPeak()
    time.sleep(0.2)  # for a sample of what is there
    began = {}

    def announce(phase):
        began[phase] = time.monotonic()
        watch.enter(phase)

    def announced(phase, function):
        def entered(*values):
            announce(phase)
            return function(*values)
        return entered

    cases._predict = announced("prediction", cases._predict)
    cases._export_of = announced("writing", cases._export_of)
    announce("preprocessing")
    failures = cases.predict_cases(predictor, {arguments.folder / "case": [str(image)]}, False, arguments.processes,
                                   arguments.processes)
    began["end"] = time.monotonic()
    watch.stop()
    if failures:
        sys.exit(str(failures))
    times, phases, before = list(began.values()), [name for name in began if name != "end"], watch.peaks["before"]
    return {"voxels": prod(shape), "before_mib": round(before), **{
        name: {"seconds": round(times[i + 1] - times[i], 1), "mib": round(watch.peaks[name] - before)}
        for i, name in enumerate(phases)}}


if __name__ == "__main__":
    main()
