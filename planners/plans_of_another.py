"""Plans of another data set taken over, so that weights which were trained by them fit.

What nnUNetv2_move_plans_between_datasets does, for plans of ours. Patch, spacing, normalisation, latent and network
stay as they are; outputs and files follow from this data set, and how well that latent codes its labels is measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.plans_for_pretraining import move_plans_between_datasets as nnunet

from ldseg_auto.checks.problem import PLANS_KEY, read_facts
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    PREPROCESSED,
    RAW,
    dataset_id,
    find_dataset,
    folder_of,
    load_plans,
    read_json,
    resolved,
    write_text,
)
from ldseg_auto.inference.binding import bound
from ldseg_auto.planners.evidence import latent_evidence
from ldseg_auto.planners.latent_geometry import LatentChoice
from ldseg_auto.planners.ldseg_planner import NETWORK_CLASS, LDSegPlanner

ORIGIN_KEY = "taken_over_from"  # of the plans: {"dataset_name", "plans_name"}


def read_source(source: str | int, plans_name: str, target: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The plans to take over.

    Args:
        source: name or ID of the data set that they are of.
        plans_name: their name.
        target: full name of the data set that is to be trained by them.
        description: its dataset.json.

    Raises:
        LDSegError: there are none, they are not of `LDSegNet`, or the images have another number of channels.
    """
    name = find_dataset(source, (PREPROCESSED,))
    if name == target:
        raise LDSegError(f"-s names {target} itself.", "Name the data set whose plans are to be taken over.")
    plans = load_plans(name, plans_name)
    here = list(description["channel_names"].values())
    for plan in plans["configurations"].values():
        if plan.get("architecture", {}).get("network_class_name", NETWORK_CLASS) != NETWORK_CLASS:
            raise LDSegError(f"The plans {plans_name} of {name} are of another network than ours.",
                             "Take over plans that ldseg_plan_and_preprocess has written.")
        there = len(plan.get("normalization_schemes", here))
        if there != len(here):
            raise LDSegError(f"{name} has {there} channels and {target} {len(here)}: its plans do not fit.",
                             f"Plan {target} by itself, without -s; -pretrained_weights loads what fits all the same.")
    return plans


def name_of_taken_over(plans: Mapping[str, Any]) -> str:
    """A name beside which the data set's own plans stay: LDSegPlansFrom004."""
    return f"{plans['plans_name']}From{dataset_id(plans['dataset_name']):03d}"


def take_over(target: str, source: Mapping[str, Any], plans_name: str) -> dict[str, Any]:
    """Write the plans of another data set as `plans_name` of this one, which is fingerprinted.

    Args:
        target: full name.
        source: see `read_source`.
        plans_name: of the new plans.

    Returns:
        The new plans.
    """
    plans = _moved(target, source, plans_name)
    folder = folder_of(PREPROCESSED) / target
    planner = _LabelsByPlans(target, plans)
    fingerprint = read_json(folder / "dataset_fingerprint.json")
    for key, of in (("spacing", "spacings"), ("shape", "shapes_after_crop")):
        median = np.median(fingerprint[of], 0)[plans["transpose_forward"]]
        plans[f"original_median_{key}_after_transp"] = [float(m) if key == "spacing" else round(m) for m in median]
    plans[PLANS_KEY] = read_facts(folder)
    plans[ORIGIN_KEY] = {key: source[key] for key in ("dataset_name", "plans_name")}
    for name, plan in plans["configurations"].items():
        if "architecture" in plan:
            network = plan["architecture"]["arch_kwargs"]
            network |= planner.output_of_network()
            if network.get("previous_stage_channels"):
                network["previous_stage_channels"] = len(planner.label_manager.foreground_labels)
        if "latent" in plan.get("ldseg", {}):
            plan["ldseg"]["latent"] = planner.evidence(resolved(plans, name))
    shutil.copy(folder_of(RAW) / target / "dataset.json", folder / "dataset.json")
    write_text(folder / f"{plans_name}.json", json.dumps(plans, indent=4))
    print(f"{target}: took over {source['plans_name']} of {source['dataset_name']} as {plans_name}: patch, spacing, "
          f"normalisation, latent and network are as planned there, outputs and files as here. Give -p {plans_name} to "
          "the other commands.")
    return plans


def _moved(target: str, source: Mapping[str, Any], plans_name: str) -> dict[str, Any]:
    """nnU-Net's adaptation: names, the reader and the folders of preprocessed cases."""
    result: list[dict[str, Any]] = []
    with bound(nnunet, save_json=lambda plans, *_, **__: result.append(plans)):
        nnunet.move_plans_between_datasets(source["dataset_name"], target, source["plans_name"], plans_name)
    return result[0]


class _LabelsByPlans(LDSegPlanner):
    """What a data set's labels look like to plans that were made for another one."""

    def __init__(self, dataset: str, plans: Mapping[str, Any]):
        super().__init__(dataset)
        self._plans = plans

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        return self._plans["transpose_forward"], self._plans["transpose_backward"]

    def output_of_network(self) -> dict[str, Any]:
        """Of arch_kwargs what follows from the labels."""
        return {"output": "sigmoid" if self.label_manager.has_regions else "softmax",
                "ignore_label": self.label_manager.ignore_label}

    def evidence(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """As the planner writes it, of the one latent stride that there is."""
        planned, spacing = plan["ldseg"]["latent"], tuple(float(s) for s in plan["spacing"])
        measured = self._measure(tuple(planned["stride"]), spacing)
        ceiling = next((each for each in measured if each.channels == planned["channels"]), measured[-1])
        names = self._class_names()
        cleared = ceiling.mean >= self.target_mean and ceiling.worst >= self.target_worst
        found = latent_evidence(LatentChoice(ceiling, cleared), measured, plan["patch_size"], names,
                                (self.target_mean, self.target_worst))
        thin = [f"Class {name} keeps a Dice of only {dice:.2f} in the latent that was taken over: its predictions lose "
                "about as much. Planned by itself (without -s) the data set gets a latent of its own."
                for name, dice in zip(names, ceiling.dice_per_class, strict=True) if dice < self.target_worst]
        return found | {"reason": "taken over from another data set", "label_maps": len(self._maps(spacing)),
                        "warnings": thin}
