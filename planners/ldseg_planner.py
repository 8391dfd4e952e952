"""nnU-Net's planner with a latent chosen from the labels and the memory of this network: `LDSegPlans.json`."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from math import prod
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ldseg_auto.checks.problem import PLANS_KEY, read_facts
from ldseg_auto.config import FORMAT_KEY, PLANS_FORMAT, LDSegConfig
from ldseg_auto.errors import LDSegError
from ldseg_auto.fingerprint import FILE_NAME as LABEL_FINGERPRINT
from ldseg_auto.fingerprint import in_order_of_outputs, label_groups
from ldseg_auto.folders import PREPROCESSED, folder_of, write_text
from ldseg_auto.planners.evidence import latent_evidence, thin_class_warnings
from ldseg_auto.planners.label_maps import MAX_CASES, LabelMaps, nearest_label
from ldseg_auto.planners.latent_geometry import (
    MAX_BLOCK_VOXELS,
    SIGMA_PER_STRIDE,
    TARGET_MEAN,
    TARGET_WORST,
    LatentCeiling,
    LatentChoice,
    candidate_strides,
    choose_latent,
    label_coding_ceiling,
    smoothing_sigma,
)
from ldseg_auto.planners.memory import (
    DENOISER_SHARE,
    TENSOR_SHARE,
    choose_denoiser_features,
    convolutions_per_stage,
    network_cost,
    prediction_bytes,
    training_bytes,
)

NETWORK_CLASS = "ldseg_auto.networks.ldseg_net.LDSegNet"
_PLANNED = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")  # by nnU-Net's planner; others are a user's
_SPACING_TOLERANCE = 0.15  # relative; within it the search for 3d_lowres shares its evidence


class LatentPlanning(ExperimentPlanner):
    """What every planner of ours adds to one of nnU-Net's: put it before that one among the bases.

    Spacing, normalisation, resampling, pooling and the encoder are nnU-Net's; the rest is decided for `LDSegNet`. The
    latent is chosen on each pooling path that nnU-Net's memory loop meets, the last of which is the final patch's;
    what it rests on (the label-coding ceilings) is measured once per spacing and stride.

    Args:
        dataset_name_or_id: of the data set.
        options: nnU-Net's, by name.
    """

    default_plans_name: str

    def __init__(self, dataset_name_or_id: str | int, **options: Any):
        super().__init__(dataset_name_or_id, **{"plans_name": self.default_plans_name} | options)
        self.label_manager = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        self.target_mean = TARGET_MEAN
        self.target_worst = TARGET_WORST
        self.latent_min_edge = 2
        self.denoiser_share = DENOISER_SHARE
        self.smoothing_per_stride = SIGMA_PER_STRIDE
        self._label_maps: LabelMaps | None = None
        self._maps_at: dict[tuple[float, ...], list[np.ndarray]] = {}
        self._ceilings: dict[tuple[tuple[float, ...], tuple[int, ...]], list[LatentCeiling]] = {}
        self._planned_spacing: tuple[float, ...] = ()

    def static_estimate_VRAM_usage(self, patch_size: Any, input_channels: int, output_channels: int,  # noqa: N802
                                   arch_class_name: str, arch_kwargs: dict, arch_kwargs_req_import: Any) -> int:
        """Memory of one training step per sample, in nnU-Net's unit: feature-map elements of its own U-Net.

        Called by nnU-Net's memory loop, which compares it with a reference whose memory is known; so what this network
        saves becomes a larger patch or batch. From formulas: nothing is built and no thread setting touched (nnU-Net's
        own sets torch's threads to `nnUNet_n_proc_DA`, which fails at 0). `output_channels` is nnU-Net's len(labels),
        wrong for regions and the ignore label: the label manager's count is used.
        """
        spacing = self._evidence_spacing(self._planned_spacing, _SPACING_TOLERANCE)
        config, _ = self._design_network(arch_kwargs, patch_size, spacing)
        elements, reference_batch = self._reference(len(patch_size))
        # the residual planners' loop asks for the reference batch, the plain one for the smallest
        batch_size = reference_batch if isinstance(self, ResEncUNetPlanner) else self.UNet_min_batch_size
        needed = training_bytes(config, patch_size, batch_size, input_channels, self._num_heads)
        available = self.UNet_reference_val_corresp_GB * 1e9 * TENSOR_SHARE[len(patch_size)]
        return round(elements * needed / available * reference_batch / batch_size)

    def get_plans_for_configuration(self, spacing: Any, median_shape: Any, data_identifier: str,
                                    approximate_n_voxels_dataset: float, _cache: dict) -> dict:
        """nnU-Net's plan for one configuration, with `LDSegNet` as its network and the evidence under `ldseg`."""
        self._planned_spacing = tuple(float(s) for s in spacing)
        # nnU-Net's cache of estimates does not tell spacings apart, and ours cost nothing
        plan = super().get_plans_for_configuration(spacing, median_shape, data_identifier,
                                                   approximate_n_voxels_dataset, {})
        # nnU-Net scales its batch as if weights took memory by the sample; ours is what fits, within nnU-Net's share
        patch_voxels = prod(int(p) for p in plan["patch_size"])
        share = round(approximate_n_voxels_dataset * self.max_dataset_covered / patch_voxels)
        plan["batch_size"] = max(share, self.UNet_min_batch_size)
        self._write_network(plan, self._evidence_spacing(self._planned_spacing, _SPACING_TOLERANCE))
        return plan

    def generate_data_identifier(self, configuration_name: str) -> str:
        """A folder for each plans file: nnU-Net's residual planners write into the one of nnUNetPlans, which may have
        been planned for another spacing."""
        return ExperimentPlanner.generate_data_identifier(self, configuration_name)

    def plan_experiment(self) -> dict:
        """Plan every configuration and save the plans; `explain` says what nnU-Net's planner would print."""
        with redirect_stdout(io.StringIO()):
            return super().plan_experiment()

    def save_plans(self, plans: dict) -> None:
        """With evidence at each exact spacing, and with the network of a cascade's second stage."""
        plans[FORMAT_KEY] = PLANS_FORMAT
        plans[PLANS_KEY] = read_facts(folder_of(PREPROCESSED) / self.dataset_name)
        stages = [plan for plan in plans["configurations"].values() if "previous_stage" in plan]
        for plan in plans["configurations"].values():
            if plan not in stages:
                self._write_network(plan, tuple(float(s) for s in plan["spacing"]))
        for plan in stages:
            self._write_second_stage(plan, plans["configurations"][plan["inherits_from"]])
        self._drop_stale_configurations(plans)
        super().save_plans(plans)

    def _drop_stale_configurations(self, plans: dict) -> None:
        """nnU-Net keeps every configuration that a plans file of that name had; those that the planner made then, and
        not this time, are not kept: the plans would depend on what was there before."""
        file = folder_of(PREPROCESSED) / self.dataset_name / f"{plans['plans_name']}.json"
        saved = json.loads(file.read_text()) if file.is_file() else {"configurations": {}}
        stale = [name for name in _PLANNED if name in saved["configurations"] and name not in plans["configurations"]]
        for name in stale:
            del saved["configurations"][name]
        if stale:
            write_text(file, json.dumps(saved, indent=4))

    @property
    def _num_heads(self) -> int:
        return self.label_manager.num_segmentation_heads

    @property
    def _num_inputs(self) -> int:
        return len(self.dataset_json.get("channel_names", self.dataset_json.get("modality", {})))

    def _write_network(self, plan: dict, spacing: tuple[float, ...]) -> None:
        """Put the network for the plan's patch, and why it is that one, into the plan."""
        architecture = plan["architecture"]
        patch = [int(p) for p in plan["patch_size"]]
        config, choice = self._design_network(architecture["arch_kwargs"], patch, spacing)
        plan["batch_size"] = self._batch_size_that_fits(config, patch, plan["batch_size"], self._num_inputs)
        architecture["network_class_name"] = NETWORK_CLASS
        architecture["arch_kwargs"] = config.to_arch_kwargs()
        plan["ldseg"] = {
            "latent": self._latent_evidence(choice, candidate_strides(config.strides), patch, spacing),
            "denoiser": self._denoiser_evidence(config, patch),
            "memory": self._memory_evidence(config, patch, plan["batch_size"], self._num_inputs),
        }

    def _write_second_stage(self, plan: dict, base: dict) -> None:
        """The network of the configuration that it inherits from, with one more input for each foreground label of the
        first stage; these cost memory, which nnU-Net's planner does not count."""
        more = len(self.label_manager.foreground_labels)
        config = LDSegConfig.from_arch_kwargs(base["architecture"]["arch_kwargs"] | {"previous_stage_channels": more})
        patch, inputs = base["patch_size"], self._num_inputs + more
        batch_size = self._batch_size_that_fits(config, patch, base["batch_size"], inputs)
        memory = self._memory_evidence(config, patch, batch_size, inputs)
        latent = dict(base["ldseg"]["latent"])
        if memory["estimate_gb"] > memory["target_gb"] >= base["ldseg"]["memory"]["estimate_gb"]:
            latent["warnings"] = [*latent["warnings"], f"With the {more} channels of the first stage a step takes "
                                  f"{memory['estimate_gb']:.2g} GB, more than the target."]
        plan.update(batch_size=batch_size, architecture=base["architecture"] | {"arch_kwargs": config.to_arch_kwargs()},
                    ldseg=base["ldseg"] | {"latent": latent, "memory": memory})

    def _design_network(self, arch_kwargs: dict, patch: Any,
                        spacing: tuple[float, ...]) -> tuple[LDSegConfig, LatentChoice]:
        """The network's configuration on this pooling path."""
        choice = self._choose_latent(candidate_strides(arch_kwargs["strides"]), patch, spacing)
        known = {f.name for f in fields(LDSegConfig)}  # n_conv_per_stage_decoder has no counterpart
        residual = "n_blocks_per_stage" in arch_kwargs
        kwargs = {name: value for name, value in arch_kwargs.items() if name in known} | {
            "encoder": "residual" if residual else arch_kwargs.get("encoder", "plain"),
            "n_conv_per_stage": convolutions_per_stage(self.UNet_blocks_per_stage_encoder, arch_kwargs["strides"],
                                                       choice.ceiling.stride),
            "latent_stride": choice.ceiling.stride,
            "latent_channels": choice.ceiling.channels,
            "smoothing_sigma": smoothing_sigma(choice.ceiling.stride, self.smoothing_per_stride),
            "output": "sigmoid" if self.label_manager.has_regions else "softmax",
            "ignore_label": self.label_manager.ignore_label,
        }
        config = LDSegConfig.from_arch_kwargs(kwargs)
        widths, _ = choose_denoiser_features(config, patch, self._num_inputs, self._num_heads, self.denoiser_share)
        return LDSegConfig.from_arch_kwargs(config.to_arch_kwargs() | {"denoiser_features": widths}), choice

    def _choose_latent(self, strides: list[tuple[int, ...]], patch: Any, spacing: tuple[float, ...]) -> LatentChoice:
        if min(patch) < 1:  # nnU-Net's loop goes on shrinking the patch
            raise LDSegError(f"Not even the smallest patch fits into {self.UNet_vram_target_GB} GB.",
                             "Give more memory to -gpu_memory_target.")
        choice = choose_latent(self._candidates(strides, spacing), patch, self.target_mean, self.target_worst,
                               self.latent_min_edge)
        if choice is None:
            raise LDSegError(f"The patch {tuple(int(p) for p in patch)} is too small to be pooled: it has no latent.",
                             "Images need at least 8 voxels along two axes at the target spacing: choose a finer "
                             "target spacing (-overwrite_target_spacing), leave these images out, or, if they are "
                             "large, give more memory to -gpu_memory_target.")
        return choice

    def _candidates(self, strides: list[tuple[int, ...]], spacing: tuple[float, ...]) -> list[LatentCeiling]:
        """Ceilings from the finest stride on, until one at which no number of channels clears the targets."""
        candidates: list[LatentCeiling] = []
        for stride in strides:
            if prod(stride) > MAX_BLOCK_VOXELS:
                break
            ceilings = self._measure(stride, spacing)
            candidates += ceilings
            if not any(c.mean >= self.target_mean and c.worst >= self.target_worst for c in ceilings):
                break
        return candidates

    def _measure(self, stride: tuple[int, ...], spacing: tuple[float, ...]) -> list[LatentCeiling]:
        if (spacing, stride) not in self._ceilings:
            labels = [int(label) for label in self.label_manager.all_labels]
            regions = None
            if self.label_manager.has_regions:
                regions = [[labels.index(int(v)) for v in np.atleast_1d(region)]
                           for region in self.label_manager.foreground_regions]
            measure = partial(label_coding_ceiling, num_classes=len(labels), stride=stride, regions=regions)
            ceilings = measure(self._maps(spacing))
            if not any(ceiling.seen for ceiling in ceilings):  # sparsely annotated: no block without an ignored voxel
                ceilings = measure([nearest_label(each) for each in self._maps(spacing)])
            self._ceilings[spacing, stride] = ceilings
        return self._ceilings[spacing, stride]

    def _maps(self, spacing: tuple[float, ...]) -> list[np.ndarray]:
        if self._label_maps is None:
            self._label_maps = LabelMaps(self.dataset, self.determine_reader_writer(),
                                         [int(label) for label in self.label_manager.all_labels],
                                         self.determine_transpose()[0],
                                         must_hold=self._cases_of_rare_classes())
            if not len(self._label_maps):
                raise LDSegError("No training label holds any foreground.", "Check the files in labelsTr.")
        if spacing not in self._maps_at:
            function, kwargs = self.determine_resampling()[2:]
            self._maps_at[spacing] = self._label_maps.at_spacing(spacing, partial(function, **kwargs))
        return self._maps_at[spacing]

    def _cases_of_rare_classes(self) -> dict[str, list[int]]:
        """A case for each class that not every case holds, and the class's indices."""
        labels = [int(label) for label in self.label_manager.all_labels]
        found: dict[str, list[int]] = {}
        for index, described in enumerate(self._label_fingerprint().get("classes", {}).values()):
            examples = described.get("example_cases")
            if described["share_of_cases"] < 1 and examples:
                indices = [labels.index(value) for value in described["label_values"] if value in labels]
                found.setdefault(examples[index % len(examples)], []).extend(indices)
        return dict(list(found.items())[:MAX_CASES])

    def _evidence_spacing(self, spacing: tuple[float, ...], tolerance: float) -> tuple[float, ...]:
        """A spacing already measured within the tolerance, else this one: 3d_lowres is sought in steps of 3 %."""
        for known in self._maps_at:
            if len(known) == len(spacing) and np.allclose(known, spacing, rtol=tolerance, atol=0):
                return known
        return spacing

    def _latent_evidence(self, choice: LatentChoice, strides: list[tuple[int, ...]], patch: list[int],
                         spacing: tuple[float, ...]) -> dict[str, Any]:
        candidates, names = self._candidates(strides, spacing), self._class_names()
        thickness = {name: described.get("thickness_mm", {}).get("p50")
                     for name, described in self._label_fingerprint().get("classes", {}).items()}
        return latent_evidence(choice, candidates, patch, names, (self.target_mean, self.target_worst)) | {
            "label_maps": len(self._maps(spacing)),
            "warnings": thin_class_warnings(choice, candidates, spacing, names, self.target_worst, thickness)}

    def _label_fingerprint(self) -> dict[str, Any]:
        """Of these cases; empty where there is none."""
        file = folder_of(PREPROCESSED) / self.dataset_name / LABEL_FINGERPRINT
        fingerprint = json.loads(file.read_text()) if file.is_file() else {}
        return fingerprint if fingerprint.get("cases") == sorted(self.dataset) else {}

    def _class_names(self) -> list[str]:
        """In the order of the network's foreground outputs."""
        return in_order_of_outputs(label_groups(self.label_manager.ignore_label, self.dataset_json["labels"]))

    def _denoiser_evidence(self, config: LDSegConfig, patch: list[int]) -> dict[str, Any]:
        _, share = choose_denoiser_features(config, patch, self._num_inputs, self._num_heads, self.denoiser_share)
        return {"features": list(config.denoiser_features), "share_of_image_encoder": round(share, 4),
                "limit": round(self.denoiser_share, 4),
                "reason": "the widest within both limits: multiply-adds of a call, and half of the encoder's weights"
                          if share <= self.denoiser_share else "the narrowest: all others cost still more"}

    def _memory_evidence(self, config: LDSegConfig, patch: list[int], batch_size: int, inputs: int) -> dict[str, Any]:
        network = (inputs, self._num_heads)
        costs = network_cost(config, patch, *network)
        gigabytes = training_bytes(config, patch, batch_size, *network) / 1e9
        return {"parts": {part: cost.elements for part, cost in costs.items()},
                "parameters": sum(cost.parameters for cost in costs.values()),
                "training_tensors_gb": round(gigabytes, 3),
                "estimate_gb": round(gigabytes / TENSOR_SHARE[len(patch)], 3),
                "target_gb": self.UNet_vram_target_GB,
                "prediction_tensors_gb": round(prediction_bytes(config, patch, 1, *network) / 1e9, 3)}

    def _batch_size_that_fits(self, config: LDSegConfig, patch: list[int], batch_size: int, inputs: int) -> int:
        """The given one or the largest below it that the memory target allows; nnU-Net plans no smaller one than 2."""
        one, two = (training_bytes(config, patch, n, inputs, self._num_heads) for n in (1, 2))
        available = self.UNet_vram_target_GB * 1e9 * TENSOR_SHARE[len(patch)]
        return max(self.UNet_min_batch_size, min(batch_size, int((available - one) / (two - one)) + 1))

    def _reference(self, axes: int) -> tuple[float, int]:
        """nnU-Net's reference for its memory: elements of a sample, and samples."""
        if axes == 2:
            return self.UNet_reference_val_2d, self.UNet_reference_val_corresp_bs_2d
        return self.UNet_reference_val_3d, self.UNet_reference_val_corresp_bs_3d


class LDSegPlanner(LatentPlanning, ExperimentPlanner):
    """The default: nnU-Net's plain encoder."""

    default_plans_name = "LDSegPlans"


class LDSegPlannerResEncM(LatentPlanning, nnUNetPlannerResEncM):
    """nnU-Net's residual encoder, 8 GB."""

    default_plans_name = "LDSegResEncUNetMPlans"


class LDSegPlannerResEncL(LatentPlanning, nnUNetPlannerResEncL):
    """nnU-Net's residual encoder, 24 GB."""

    default_plans_name = "LDSegResEncUNetLPlans"


class LDSegPlannerResEncXL(LatentPlanning, nnUNetPlannerResEncXL):
    """nnU-Net's residual encoder, 40 GB."""

    default_plans_name = "LDSegResEncUNetXLPlans"


PLANNERS = {planner.__name__: planner for planner in
            (LDSegPlanner, LDSegPlannerResEncM, LDSegPlannerResEncL, LDSegPlannerResEncXL)}
