"""The three signs of latent diffusion during training (a plot) and after it (a table over validation cases)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from ldseg_auto.evaluation import latent_signs
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.precision import autocast
from ldseg_auto.trainers.whole_files import save_json_whole

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402, the backend comes first

SUMMARY_FILE = "latent_signs.json"
PLOT_FILE = "latent_signs.png"
SAMPLES = 5  # of each case, whatever the plans' sampler: one sample would tell nothing of their spread
_MAX_CASES = 40


def plot_signs(logging: dict[str, list[float]], output_folder: str) -> None:
    """The series of `LatentSigns` over epochs, as `latent_signs.png`."""
    figure, axes = plt.subplots(figsize=(9, 5))
    for name in latent_signs.SERIES:
        axes.plot(logging[name], label=name)
    axes.set(xlabel="epoch", ylabel="Dice on validation patches", title="Signs of latent diffusion")
    axes.legend()
    figure.tight_layout()
    figure.savefig(Path(output_folder) / PLOT_FILE)
    plt.close(figure)


def measure_on_cases(trainer: Any, network: LDSegNet) -> dict[str, torch.Tensor]:
    """Every Dice of the signs for up to 40 validation cases, one patch a case, centred on its foreground."""
    _, dataset = trainer.get_tr_and_val_datasets()
    keys = sorted(dataset.identifiers)
    keys = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, min(_MAX_CASES, len(keys))).astype(int))]
    to_target = trainer.get_validation_transforms(
        None, is_cascaded=trainer.is_cascaded, foreground_labels=trainer.label_manager.foreground_labels,
        regions=trainer.label_manager.foreground_regions if trainer.label_manager.has_regions else None,
        ignore_label=trainer.label_manager.ignore_label)
    generator = torch.Generator().manual_seed(0)
    network.eval()
    per_case = []
    for key in keys:
        data, segmentation, first_stage, _ = dataset.load_case(key)
        segmentation = segmentation[:] if first_stage is None else np.vstack([segmentation[:], first_stage[:][None]])
        image, labels = central_patch(data[:], segmentation, trainer.configuration_manager.patch_size,
                                      trainer.label_manager.ignore_label)
        sample = to_target(image=torch.from_numpy(image).float(), segmentation=torch.from_numpy(labels).to(torch.int16))
        with autocast(trainer.device):
            per_case.append(latent_signs.signs_per_patch(
                network, sample["image"][None].to(trainer.device), sample["segmentation"][None].to(trainer.device),
                generator, SAMPLES, network.config.sampler_steps))
    return {name: torch.cat([case[name].cpu() for case in per_case]) for name in latent_signs.SERIES}


def central_patch(data: np.ndarray, labels: np.ndarray, patch_size: list[int],
                  ignore_label: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, z, y, x) and labels (n, z, y, x), the truth first -> the patch around the foreground's centre (of what
    is labelled, where there is none), of the slice with most foreground if the patch is 2D."""
    known = labels[0] != ignore_label if ignore_label is not None else np.ones(labels[0].shape, bool)
    wanted = known & (labels[0] > 0)
    wanted = wanted if wanted.any() else known
    if len(patch_size) == 2:
        slice_index = int(wanted.sum(axis=(1, 2)).argmax())
        data, labels, wanted = data[:, slice_index], labels[:, slice_index], wanted[slice_index]
    foreground = np.argwhere(wanted)
    corners = (foreground.min(0), foreground.max(0) + 1) if len(foreground) else (np.zeros(labels.ndim - 1),
                                                                                labels.shape[1:])
    start = [int(a + b - size) // 2 for a, b, size in zip(*corners, patch_size, strict=True)]
    box = [[a, a + size] for a, size in zip(start, patch_size, strict=True)]
    return crop_and_pad_nd(data, box, 0), crop_and_pad_nd(labels, box, -1)


def save_summary(per_case: dict[str, torch.Tensor], steps: int, output_folder: str,
                 log: Callable[..., None]) -> None:
    """Write `latent_signs.json` and say which sign holds."""
    result = latent_signs.summary(per_case, SAMPLES, steps)
    save_json_whole(result, str(Path(output_folder) / SUMMARY_FILE), sort_keys=False)
    log(f"Signs of latent diffusion on {result['cases']} cases: {latent_signs.in_words(result)}.")
    if result["use_of_latent"] is not None and result["use_of_latent"] < latent_signs.WARN_USE_OF_LATENT:
        log("WARNING: the denoiser hardly uses z_t: this model is a regressor, its samples carry no uncertainty.")
