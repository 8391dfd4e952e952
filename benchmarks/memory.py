"""The planner's memory model against the tensors that a training step and a prediction really allocate.

    python benchmarks/memory.py

Twenty networks (2D and 3D, patches, strides, batch sizes, classes, both encoders), in 32 bits and under autocast to 16;
no data, no GPU, about five minutes on one core. Prints a table and writes benchmarks/results/memory_*.json.
`--unet` counts nnU-Net's own U-Net near its 8 GB reference the same way: that is where `TENSOR_SHARE` comes from.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from math import prod
from pathlib import Path

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from ldseg_auto.config import LDSegConfig
from ldseg_auto.evaluation.peak_memory import (
    peak_bytes,
    prediction_peak_bytes,
    segmentation_loss,
    training_peak_bytes,
)
from ldseg_auto.planners.memory import convolutions_per_stage, prediction_bytes, training_bytes

RESULTS = Path(__file__).resolve().parent / "results"
# spacing, patch, index of the latent's stride on the pooling path, channels, encoder, inputs, classes, batch size
PLANS = [
    ((1, 1, 1), (40, 56, 40), 1, 8, "plain", 1, 3, 7), ((1, 1, 1), (64, 64, 64), 1, 16, "plain", 1, 2, 4),
    ((1, 1, 1), (96, 96, 96), 1, 8, "plain", 2, 5, 2), ((1, 1, 1), (128, 128, 128), 2, 16, "plain", 1, 3, 2),
    ((1, 1, 1), (128, 128, 128), 1, 8, "plain", 4, 4, 2), ((1, 1, 1), (160, 128, 112), 1, 16, "plain", 1, 21, 2),
    ((5, 1, 1), (20, 160, 160), 1, 8, "plain", 1, 4, 3), ((10, 1, 1), (14, 256, 224), 2, 16, "plain", 1, 4, 2),
    ((1, 1, 1), (96, 160, 160), 0, 4, "plain", 1, 2, 2), ((1, 1, 1), (80, 96, 80), 1, 8, "residual", 1, 3, 4),
    ((1, 1, 1), (128, 128, 128), 1, 8, "residual", 1, 3, 2), ((1, 1, 1), (32, 32, 32), 0, 4, "plain", 1, 3, 9),
    ((1, 1, 1), (64, 128, 128), 1, 32, "plain", 1, 2, 3), ((1, 1, 1), (192, 160, 64), 2, 32, "plain", 1, 14, 2),
    ((1, 1), (56, 40), 2, 16, "plain", 1, 3, 200), ((1, 1), (256, 256), 2, 8, "plain", 3, 2, 30),
    ((1, 1), (512, 512), 2, 16, "plain", 3, 4, 12), ((1, 1), (512, 512), 1, 8, "plain", 1, 21, 12),
    ((1, 1), (320, 256), 2, 16, "residual", 1, 4, 20), ((1, 1), (768, 512), 3, 32, "plain", 3, 3, 6)]


def network(spacing: tuple, patch: tuple, latent: int, channels: int, encoder: str) -> LDSegConfig:
    """As nnU-Net's planner would pool this patch."""
    dim = len(patch)
    _, strides, kernels, _, _ = get_pool_and_conv_props(spacing, patch, 4, 999999)
    strides = tuple(tuple(int(s) for s in stride) for stride in strides)
    stages = len(strides)
    cumulative = dict.fromkeys(tuple(int(s) for s in row) for row in np.cumprod(np.array(strides), axis=0))
    stride = [stride for stride in cumulative if max(stride) > 1][latent]
    blocks = (2,) * stages if encoder == "plain" else (1, 3, 4, 6, 6, 6, 6, 6, 6)
    return LDSegConfig(
        n_stages=stages, features_per_stage=tuple(min(512 if dim == 2 else 320, 32 * 2 ** i) for i in range(stages)),
        conv_op=nn.Conv2d if dim == 2 else nn.Conv3d, kernel_sizes=tuple(map(tuple, kernels)), strides=strides,
        n_conv_per_stage=convolutions_per_stage(blocks, strides, stride), latent_stride=stride,
        latent_channels=channels,
        norm_op=nn.InstanceNorm2d if dim == 2 else nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, encoder=encoder, denoiser_features=(48, 96))


def compare() -> None:
    rows = []
    print("| patch | stride | channels | encoder | classes | batch | bits | training, GB | error | prediction, GB "
          "| error |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for spacing, patch, latent, channels, encoder, inputs, classes, batch in PLANS:
        config = network(spacing, patch, latent, channels, encoder)
        for half in (True, False):
            counted = (training_peak_bytes(config, patch, batch, inputs, classes, half),
                       prediction_peak_bytes(config, patch, 1, inputs, classes, half))
            model = (training_bytes(config, patch, batch, inputs, classes, half),
                     prediction_bytes(config, patch, 1, inputs, classes, half))
            errors = [m / c - 1 for m, c in zip(model, counted, strict=True)]
            rows.append({"patch": patch, "stride": config.latent_stride, "channels": channels, "encoder": encoder,
                         "classes": classes, "batch_size": batch, "half": half, "counted_bytes": counted,
                         "model_bytes": model, "errors": errors})
            print(f"| {'x'.join(map(str, patch))} | {'x'.join(map(str, config.latent_stride))} | {channels} "
                  f"| {encoder} | {classes} | {batch} | {16 if half else 32} | {counted[0] / 1e9:.2f} "
                  f"| {errors[0]:+.1%} | {counted[1] / 1e9:.3f} | {errors[1]:+.1%} |", flush=True)
    for index, name in enumerate(("training", "prediction")):
        errors = [abs(row["errors"][index]) for row in rows]
        print(f"{name}: {len(rows)} comparisons, error {np.mean(errors):.1%} on average, {max(errors):.1%} at most")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"memory_{date.today()}.json").write_text(json.dumps(rows, indent=1))


def count_unet(patch: tuple[int, ...], batch: int, stages: int, reference: float, reference_batch: int) -> None:
    """nnU-Net's plain U-Net with deep supervision and its SGD, under autocast; reference: elements for 8 GB."""
    dim = len(patch)

    def prepare():  # noqa: ANN202, see peak_bytes
        unet = PlainConvUNet(
            1, stages, [min(512 if dim == 2 else 320, 32 * 2 ** i) for i in range(stages)],
            nn.Conv2d if dim == 2 else nn.Conv3d, 3, [1] + [2] * (stages - 1), 2, 3, 2, True,
            nn.InstanceNorm2d if dim == 2 else nn.InstanceNorm3d, {"affine": True}, None, None, nn.LeakyReLU,
            {"inplace": True}, deep_supervision=True)
        weights = np.array([0.5 ** i for i in range(stages - 2)] + [0])
        loss = DeepSupervisionWrapper(segmentation_loss(regions=False), weights / weights.sum())
        optimizer = torch.optim.SGD(unet.parameters(), 1e-2, momentum=0.99, nesterov=True)
        elements.append(unet.compute_conv_feature_map_size(patch))

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                outputs = unet(torch.zeros(batch, 1, *patch))
                value = loss(outputs, [torch.zeros(batch, 1, *output.shape[2:]) for output in outputs])
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, [unet, optimizer]

    elements: list[float] = []
    counted = peak_bytes(prepare) / 1e9
    by_nnunet = 8 * elements[0] * batch / (reference * reference_batch)
    print(f"U-Net {'x'.join(map(str, patch))}, batch {batch}: tensors {counted:.2f} GB, by nnU-Net's reference "
          f"{by_nnunet:.2f} GB, share {counted / by_nnunet:.2f} ({prod(patch) * batch / 1e6:.1f} million voxels)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", action="store_true")
    if parser.parse_args().unet:
        count_unet((128, 128, 128), 2, 6, 560e6, 2)
        count_unet((96, 160, 160), 2, 6, 560e6, 2)
        count_unet((512, 512), 12, 8, 85e6, 12)
    else:
        compare()


if __name__ == "__main__":
    main()
