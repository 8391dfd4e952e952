"""Why a latent was chosen, as it stands in the plans under `ldseg.latent`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, prod
from typing import Any

import numpy as np

from ldseg_auto.planners.latent_geometry import LatentCeiling, LatentChoice


def latent_evidence(choice: LatentChoice, candidates: Sequence[LatentCeiling], patch: Sequence[int],
                    class_names: Sequence[str], targets: tuple[float, float]) -> dict[str, Any]:
    """The choice, the targets and every candidate.

    Args:
        choice: one of the candidates.
        candidates: all that were measured.
        patch: voxels per axis.
        class_names: in the order of the ceilings' classes.
        targets: for the mean and for the worst class.
    """
    chosen = choice.ceiling
    return {
        "stride": list(chosen.stride),
        "channels": chosen.channels,
        "grid": [p // s for p, s in zip(patch, chosen.stride, strict=True)],
        "cleared": choice.cleared,
        "target_mean": targets[0],
        "target_worst": targets[1],
        "reason": ("the coarsest stride, then the fewest channels, that clear both targets" if choice.cleared else
                   "no candidate clears both targets: the smallest shortfall"),
        "candidates": [_candidate(c, class_names, c == chosen) for c in candidates],
    }


def _candidate(ceiling: LatentCeiling, class_names: Sequence[str], chosen: bool) -> dict[str, Any]:
    return {
        "stride": list(ceiling.stride),
        "channels": ceiling.channels,
        "mean": round(ceiling.mean, 4),
        "worst": round(ceiling.worst, 4),
        "per_class": {name: None if isnan(dice) else round(dice, 4)
                      for name, dice in zip(class_names, ceiling.dice_per_class, strict=True)},
        "method": ceiling.method,
        "chosen": chosen,
    }


def thin_class_warnings(choice: LatentChoice, candidates: Sequence[LatentCeiling], spacing_mm: Sequence[float],
                        class_names: Sequence[str], target_worst: float,
                        thickness_mm: Mapping[str, float | None]) -> list[str]:
    """A sentence for each class that is too thin for any latent, or for any but the finest, or was not seen.

    Args:
        choice: one of the candidates.
        candidates: all that were measured.
        spacing_mm: of the configuration.
        class_names: in the order of the ceilings' classes.
        target_worst: Dice that every class should keep.
        thickness_mm: of the classes, where it is known.
    """
    chosen = choice.ceiling
    edge = " x ".join(f"{stride * step:.3g}" for stride, step in zip(chosen.stride, spacing_mm, strict=True))
    named = [name if thickness_mm.get(name) is None else f"{name} (thickness {thickness_mm[name]:.2g} mm)"
             for name in class_names]
    unseen = [f"Class {name} was not found in the label maps that were read: the latent is chosen without it."
              for name, dice in zip(named, chosen.dice_per_class, strict=True) if isnan(dice)]
    if not choice.cleared:
        thin = [f"Class {name} keeps a Dice of only {dice:.2f} in the finest latent, whose positions are {edge} mm: "
                "its predictions lose about as much. A finer target spacing (-overwrite_target_spacing) helps."
                for name, dice in zip(named, chosen.dice_per_class, strict=True) if dice < target_worst]
        return unseen + (thin or [f"The finest latent keeps a mean Dice of only {chosen.mean:.2f}."])
    coarser = [c for c in candidates if prod(c.stride) > prod(chosen.stride)]
    if not coarser or prod(chosen.stride) > min(prod(c.stride) for c in candidates):
        return unseen
    best = np.array([c.dice_per_class for c in coarser]).max(axis=0)
    return unseen + [
        f"Class {name} is too thin for any but the finest latent, whose positions are {edge} mm: the next coarser one "
        f"keeps a Dice of at most {dice:.2f}. Sampling takes longer for it."
        for name, dice in zip(named, best, strict=True) if dice < target_worst]
