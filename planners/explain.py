"""The plans in plain sentences: each decision, its evidence and the alternatives turned down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any


def explain(plans: Mapping[str, Any]) -> str:
    """What was planned and why, one section per configuration of `LDSegPlans.json`."""
    head = (f"Plans {plans['plans_name']} for {plans['dataset_name']}\n"
            f"Images are read by {plans['image_reader_writer']}, axes reordered {plans['transpose_forward']}; median "
            f"spacing {_mm(plans['original_median_spacing_after_transp'])}, median size "
            f"{_times(plans['original_median_shape_after_transp'])} voxels.")
    sections = [_configuration(name, plan) if "ldseg" in plan else f"{name}: written by hand, nothing to explain."
                for name, plan in plans["configurations"].items()]
    return "\n\n".join([head, *sections])


def _configuration(name: str, plan: Mapping[str, Any]) -> str:
    latent, denoiser, memory = (plan["ldseg"][part] for part in ("latent", "denoiser", "memory"))
    network = plan["architecture"]["arch_kwargs"]
    parts = ", ".join(f"{part.replace('_', ' ')} {elements / 1e6:.1f}" for part, elements in memory["parts"].items())
    return "\n".join([
        f"Configuration {name}",
        f"  Spacing {_mm(plan['spacing'])}; patch {_times(plan['patch_size'])} voxels; batch size "
        f"{plan['batch_size']}.",
        f"  Encoder: {network['n_stages']} stages, strides {' '.join(_times(s) for s in network['strides'])}.",
        f"  Latent: stride {_times(latent['stride'])}, {latent['channels']} channels, so a grid of "
        f"{_times(latent['grid'])} ({_values_per_voxel(latent):.3g} values per voxel).",
        f"  Why: {latent['reason']} (Dice after coding the labels: mean at least {latent['target_mean']:g}, worst "
        f"class at least {latent['target_worst']:g}; measured on {latent['label_maps']} label maps).",
        *_candidates(latent),
        f"  Denoiser: widths {_times(denoiser['features'])}, {denoiser['share_of_image_encoder']:.0%} of the image "
        f"encoder's multiply-adds per call (limit {denoiser['limit']:.0%}): {denoiser['reason']}.",
        f"  Memory: about {memory['estimate_gb']:.2g} of {memory['target_gb']:g} GB in training; "
        f"{memory['elements_per_sample'] / 1e6:.1f} million feature-map values per sample ({parts}; the label decoder "
        "runs twice).",
    ])


def _candidates(latent: Mapping[str, Any]) -> list[str]:
    """A table of every latent that was measured and what spoke against it."""
    lines = [f"    {'stride':>10} {'channels':>8} {'mean':>6} {'worst':>6}  per class"]
    for candidate in latent["candidates"]:
        dice = ", ".join(f"{name} {'not seen' if value is None else f'{value:.3f}'}"
                         for name, value in candidate["per_class"].items())
        lines.append(f"    {_times(candidate['stride']):>10} {candidate['channels']:>8} {candidate['mean']:>6.3f} "
                     f"{candidate['worst']:>6.3f}  {dice}: {_verdict(candidate, latent)}")
    return lines


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
