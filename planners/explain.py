"""The plans in plain sentences: each decision, its evidence and the alternatives turned down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ldseg_auto.evaluation.setting import is_flat
from ldseg_auto.folders import resolved

_WARNING = "WARNING: "


def explain(plans: Mapping[str, Any]) -> str:
    """What was planned and why, one section per configuration of `LDSegPlans.json`."""
    head = "\n".join([f"Plans {plans['plans_name']} for {plans['dataset_name']}", *describe_data(plans)])
    sections = [_section(name, resolved(plans, name)) if is_explained(plan)
                else f"{name}: written by hand, nothing to explain." for name, plan in plans["configurations"].items()]
    return "\n\n".join([head, *sections])


def warnings(plans: Mapping[str, Any]) -> list[str]:
    """What a user should know even without the explanation."""
    return [f"{plans['dataset_name']}, {name}: {_WARNING}{warning}" for name, plan in plans["configurations"].items()
            for warning in plan.get("ldseg", {}).get("latent", {}).get("warnings", ())]


def describe_data(plans: Mapping[str, Any]) -> list[str]:
    """Sentences about what all configurations share."""
    spacing, shape = plans["original_median_spacing_after_transp"], plans["original_median_shape_after_transp"]
    described = (f"flat pictures, median size {_times(shape[1:])} pixels, a pixel counts as 1 mm"
                 if is_flat([int(size) for size in shape], spacing) else
                 f"median spacing {_mm(spacing)}, median size {_times(shape)} voxels")
    origin = plans.get("taken_over_from")
    return [f"Images are read by {plans['image_reader_writer']}, axes reordered {plans['transpose_forward']}; "
            f"{described}.",
            *([] if origin is None else [f"Taken over from {origin['plans_name']} of {origin['dataset_name']}: patch, "
                                         "spacing, latent and network are as they were planned there."])]


def describe_configuration(plan: Mapping[str, Any]) -> list[str]:
    """Sentences about one configuration, each a decision and its evidence."""
    latent, denoiser, memory = (plan["ldseg"][part] for part in ("latent", "denoiser", "memory"))
    network = plan["architecture"]["arch_kwargs"]
    parts = ", ".join(f"{part.replace('_', ' ')} {elements / 1e6:.1f}" for part, elements in memory["parts"].items())
    return [
        *([f"A cascade's second stage: the segmentation of {plan['previous_stage']} is "
           f"{network['previous_stage_channels']} more channels of the image, and part of the condition."]
          if "previous_stage" in plan else ()),
        f"Spacing {_mm(plan['spacing'])}; patch {_times(plan['patch_size'])} voxels; batch size {plan['batch_size']}.",
        f"Encoder: {network['encoder']}, {network['n_stages']} stages, strides "
        f"{' '.join(_times(s) for s in network['strides'])}.",
        *([f"Prediction smooths images by a Gaussian of {_times(network['smoothing_sigma'])} voxels: most noise "
           "is finer, the latent is coarser."] if any(network.get("smoothing_sigma", ())) else ()),
        f"Latent: stride {_times(latent['stride'])}, {latent['channels']} channels, so a grid of "
        f"{_times(latent['grid'])} ({_values_per_voxel(latent):.3g} values per voxel).",
        f"Why: {latent['reason']} (Dice after coding the labels: mean at least {latent['target_mean']:g}, worst "
        f"class at least {latent['target_worst']:g}; measured on {latent['label_maps']} label maps).",
        f"Denoiser: widths {_times(denoiser['features'])}, {denoiser['share_of_image_encoder']:.0%} of the image "
        f"encoder's multiply-adds per call (limit {denoiser['limit']:.0%}): {denoiser['reason']}.",
        f"Memory: about {memory['estimate_gb']:.2g} of {memory['target_gb']:g} GB in training, "
        f"{memory['training_tensors_gb']:.2g} GB of it tensors; encoding and decoding one tile "
        f"takes {memory['prediction_tensors_gb']:.2g} GB; {memory['parameters'] / 1e6:.1f} million parameters. "
        f"Feature-map values per sample, in millions: {parts} (the label decoder runs twice).",
        *(f"{_WARNING}{warning}" for warning in latent.get("warnings", ())),
    ]


def is_explained(plan: Mapping[str, Any]) -> bool:
    """Whether this version's planner wrote the configuration; others are a user's or an older version's."""
    return "training_tensors_gb" in plan.get("ldseg", {}).get("memory", {})


def candidate_rows(latent: Mapping[str, Any]) -> list[list[str]]:
    """Every latent that was measured: stride, channels, mean, worst class, per class, what speaks for or against it."""
    rows = []
    for candidate in latent["candidates"]:
        dice = ", ".join(f"{name} {'not seen' if value is None else f'{value:.3f}'}"
                         for name, value in candidate["per_class"].items())
        rows.append([_times(candidate["stride"]), str(candidate["channels"]), f"{candidate['mean']:.3f}",
                     f"{candidate['worst']:.3f}", dice, _verdict(candidate, latent)])
    return rows


def _section(name: str, plan: Mapping[str, Any]) -> str:
    lines = [f"Configuration {name}", *(f"  {sentence}" for sentence in describe_configuration(plan)),
             "  Latents measured:", f"    {'stride':>10} {'channels':>8} {'mean':>6} {'worst':>6}  per class"]
    lines += [f"    {stride:>10} {channels:>8} {mean:>6} {worst:>6}  {dice}: {verdict}"
              for stride, channels, mean, worst, dice, verdict in candidate_rows(plan["ldseg"]["latent"])]
    return "\n".join(lines)


def _verdict(candidate: Mapping[str, Any], latent: Mapping[str, Any]) -> str:
    if candidate["chosen"]:
        return "CHOSEN"
    if candidate["mean"] < latent["target_mean"]:
        return "mean below the target"
    if candidate["worst"] < latent["target_worst"]:
        return "worst class below the target"
    if prod(candidate["stride"]) < prod(latent["stride"]):
        return "enough, but more positions for the denoiser"
    return "enough, but more channels"


def _values_per_voxel(latent: Mapping[str, Any]) -> float:
    return latent["channels"] / prod(latent["stride"])


def _times(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"
