"""From a tiny raw data set to LDSegPlans.json through nnU-Net's own classes."""

import json
import pydoc
from math import prod

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image

from ldseg_auto.config import FORMAT_KEY, PLANS_FORMAT, LDSegConfig, require_known_format
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import load_plans, resolved
from ldseg_auto.planners import ldseg_planner
from ldseg_auto.planners.explain import describe_configuration, explain, warnings
from ldseg_auto.planners.latent_geometry import label_coding_ceiling
from ldseg_auto.planners.ldseg_planner import NETWORK_CLASS, PLANNERS, LDSegPlanner
from ldseg_auto.planners.memory import TENSOR_SHARE, network_cost, prediction_bytes, training_bytes

NAME = "Dataset901_Tiny"
LABELS = {"background": 0, "organ": 1, "core": 2}
CASES = 8


def _volume(shape, index):
    axes = np.indices(shape) / np.reshape(shape, (-1, *[1] * len(shape)))
    centre = 0.5 + 0.1 * np.sin(index + np.arange(len(shape)))
    distance = ((axes - np.reshape(centre, (-1, *[1] * len(shape)))) ** 2).sum(0)
    labels = (distance < 0.09).astype(np.uint8)
    labels[distance < 0.03] = 2
    return labels


def _write_dataset(folders, labels=LABELS, shape=(24, 24, 24), spacing_zyx=(1.0, 1.0, 1.0), edit=None, **extra):
    """Raw data, and the fingerprint that nnU-Net would extract."""
    raw = folders["nnUNet_raw"] / NAME
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for index in range(CASES):
        truth = _volume(shape, index)
        if edit is not None:
            edit(truth)
        image = sitk.GetImageFromArray(truth.astype(np.float32))
        truth_image = sitk.GetImageFromArray(truth)
        for one, name in ((image, f"imagesTr/case{index}_0000"), (truth_image, f"labelsTr/case{index}")):
            one.SetSpacing(spacing_zyx[::-1])
            sitk.WriteImage(one, str(raw / f"{name}.nii.gz"))
    _describe(folders, labels, ".nii.gz", {"0": "MRI"}, shape, spacing_zyx, extra)


def _describe(folders, labels, ending, channels, shape, spacing_zyx, extra):
    listed = {f"case{i}": {"images": [f"imagesTr/case{i}_0000{ending}"], "label": f"labelsTr/case{i}{ending}"}
              for i in range(CASES)}  # listed, because nnU-Net starts twelve processes to find the files
    (folders["nnUNet_raw"] / NAME / "dataset.json").write_text(json.dumps(
        {"channel_names": channels, "labels": labels, "numTraining": CASES, "file_ending": ending, "dataset": listed,
         **extra}))
    preprocessed = folders["nnUNet_preprocessed"] / NAME
    preprocessed.mkdir()
    statistics = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps({
        "spacings": [list(spacing_zyx)] * CASES, "shapes_after_crop": [list(shape)] * CASES,
        "foreground_intensity_properties_per_channel": {c: statistics for c in channels},
        "median_relative_size_after_cropping": 1.0}))


def _plan(**options):
    return LDSegPlanner(901, **options).plan_experiment()


def _config(plan):
    architecture = plan["architecture"]
    kwargs = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        kwargs[name] = None if kwargs[name] is None else pydoc.locate(kwargs[name])
    return LDSegConfig.from_arch_kwargs(kwargs)


def _build(plan, plans, heads):
    architecture = plan["architecture"]
    return get_network_from_plans(architecture["network_class_name"], architecture["arch_kwargs"],
                                  architecture["_kw_requires_import"], 1, heads, deep_supervision=False)


def test_plans_describe_a_network_that_nnunet_builds(nnunet_folders):
    _write_dataset(nnunet_folders)
    returned = _plan()
    plans = json.loads((nnunet_folders["nnUNet_preprocessed"] / NAME / "LDSegPlans.json").read_text())
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}
    assert plans["plans_name"] == "LDSegPlans" and plans["experiment_planner_used"] == "LDSegPlanner"
    assert returned["configurations"].keys() == plans["configurations"].keys()
    for name, plan in plans["configurations"].items():
        config = _config(plan)
        assert plan["architecture"]["network_class_name"] == NETWORK_CLASS
        assert config.output == "softmax" and config.ignore_label is None
        assert PlansManager(plans).get_configuration(name).pool_op_kernel_sizes
        net = _build(plan, plans, 3)
        assert net.config == config
        latent = plan["ldseg"]["latent"]
        assert (tuple(latent["stride"]), latent["channels"]) == (config.latent_stride, config.latent_channels)
        chosen, = [c for c in latent["candidates"] if c["chosen"]]
        assert latent["cleared"] and chosen["mean"] >= latent["target_mean"]
        assert set(chosen["per_class"]) == {"organ", "core"}


def test_memory_evidence_is_this_networks(nnunet_folders):
    _write_dataset(nnunet_folders)
    for plan in _plan()["configurations"].values():
        config, patch = _config(plan), plan["patch_size"]
        memory = plan["ldseg"]["memory"]
        needed = training_bytes(config, patch, plan["batch_size"], 1, 3)
        assert memory["training_tensors_gb"] == pytest.approx(needed / 1e9, abs=1e-3)
        assert memory["estimate_gb"] == pytest.approx(needed / 1e9 / TENSOR_SHARE[len(patch)], abs=1e-3)
        assert memory["prediction_tensors_gb"] == pytest.approx(
            prediction_bytes(config, patch, 1, 1, 3) / 1e9, abs=1e-3)


def test_estimate_starts_from_no_thread_setting(nnunet_folders, monkeypatch):
    def forbidden(*_):
        raise AssertionError("thread settings are not the planner's")
    monkeypatch.setattr(default_experiment_planner, "get_allowed_n_proc_DA", forbidden)
    monkeypatch.setattr(default_experiment_planner.torch, "set_num_threads", forbidden)
    _write_dataset(nnunet_folders)
    _plan()


def test_less_memory_gives_a_smaller_patch_and_a_latent_on_its_path(nnunet_folders):
    _write_dataset(nnunet_folders, shape=(64, 64, 64))
    large = _plan()["configurations"]["3d_fullres"]
    plans = _plan(gpu_memory_target_in_gb=0.25)["configurations"]
    small = plans["3d_fullres"]
    assert prod(small["patch_size"]) < prod(large["patch_size"])
    assert _config(small).latent_stride in _config(small).cumulative_strides()
    assert plans["2d"]["batch_size"] > 2
    assert all(plan["ldseg"]["memory"]["estimate_gb"] <= 0.25 for plan in plans.values())


def test_low_resolution_is_planned_with_a_cascade_and_measured_at_its_own_spacing(nnunet_folders):
    _write_dataset(nnunet_folders, shape=(64, 64, 64))
    planner = LDSegPlanner(901, gpu_memory_target_in_gb=0.14)
    plans = planner.plan_experiment()
    assert set(plans["configurations"]) == {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    lowres, second, full = (resolved(plans, name) for name in ("3d_lowres", "3d_cascade_fullres", "3d_fullres"))
    assert lowres["next_stage"] == "3d_cascade_fullres" and second["previous_stage"] == "3d_lowres"
    assert plans["configurations"]["3d_cascade_fullres"]["inherits_from"] == "3d_fullres"
    assert second["patch_size"] == full["patch_size"] and second["batch_size"] <= full["batch_size"]
    config = _config(second)
    assert config.previous_stage_channels == 2 and _config(full).previous_stage_channels == 0
    assert second["ldseg"]["memory"]["training_tensors_gb"] == pytest.approx(
        training_bytes(config, full["patch_size"], second["batch_size"], 1 + 2, 3) / 1e9, abs=1e-3)
    assert "3d_lowres is 2 more channels" in explain(plans)
    manager = PlansManager(plans).get_configuration("3d_cascade_fullres")
    assert manager.previous_stage_name == "3d_lowres"
    assert manager.network_arch_init_kwargs["previous_stage_channels"] == 2
    assert lowres["spacing"][0] > 1.1
    assert tuple(lowres["spacing"]) in planner._maps_at
    assert len(planner._maps_at) < 12  # the search takes steps of 3 %, each would otherwise be measured
    _many_labels_cost_batch_or_are_warned_of(planner, full)


def _many_labels_cost_batch_or_are_warned_of(planner, full):
    """The first stage's channels are inputs, which nnU-Net's planner does not count."""
    planner.label_manager._all_labels = list(range(400))
    for batch_size, target_gb, fits in ((50, 8, True), (2, 0.2, False)):
        planner.UNet_vram_target_GB = target_gb
        second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        planner._write_second_stage(second, full | {"batch_size": batch_size})
        assert second["architecture"]["arch_kwargs"]["previous_stage_channels"] == 399
        assert second["batch_size"] < batch_size if fits else second["batch_size"] == batch_size
        assert ("399 channels" in " ".join(second["ldseg"]["latent"]["warnings"])) == (not fits)


def test_anisotropic_data_get_an_anisotropic_latent(nnunet_folders):
    _write_dataset(nnunet_folders, shape=(12, 64, 64), spacing_zyx=(5.0, 1.0, 1.0))
    plan = _plan()["configurations"]["3d_fullres"]
    stride = _config(plan).latent_stride
    assert stride[0] < stride[1] == stride[2]


def test_regions_and_ignore_label(nnunet_folders):
    def ignore_corner(truth):
        truth[:4] = 3

    labels = {"background": 0, "organ": [1, 2], "core": 2, "ignore": 3}
    _write_dataset(nnunet_folders, labels, edit=ignore_corner, regions_class_order=[1, 2])
    plans = _plan()
    plan = plans["configurations"]["3d_fullres"]
    config = _config(plan)
    assert config.output == "sigmoid" and config.ignore_label == 3
    assert set(plan["ldseg"]["latent"]["candidates"][0]["per_class"]) == {"organ", "core"}
    assert plan["ldseg"]["memory"]["parts"]["heads"] == network_cost(config, plan["patch_size"], 1, 2)[
        "heads"].elements
    assert _build(plan, plans, 2).num_classes == 2


def test_colour_slices_are_planned_in_2d(nnunet_folders):
    raw = nnunet_folders["nnUNet_raw"] / NAME
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for index in range(CASES):
        truth = _volume((64, 64), index)
        Image.fromarray(np.stack([truth * 80] * 3, -1)).save(raw / f"imagesTr/case{index}_0000.png")
        Image.fromarray(truth).save(raw / f"labelsTr/case{index}.png")
    _describe(nnunet_folders, LABELS, ".png", {"0": "R", "1": "G", "2": "B"}, (1, 64, 64), (999.0, 1.0, 1.0), {})
    plans = _plan()
    plan = plans["configurations"]["2d"]
    assert set(plans["configurations"]) == {"2d"}
    assert len(_config(plan).latent_stride) == 2 and plan["ldseg"]["latent"]["label_maps"] == CASES


@pytest.mark.parametrize("changes", [{"target_mean": 0.9999, "target_worst": 0.9999}, {"latent_min_edge": 12}])
def test_targets_and_grid_edge_decide_the_latent(nnunet_folders, changes):
    _write_dataset(nnunet_folders)
    default = LDSegPlanner(901).plan_experiment()["configurations"]["3d_fullres"]["ldseg"]["latent"]
    planner = LDSegPlanner(901)
    for name, value in changes.items():
        setattr(planner, name, value)
    latent = planner.plan_experiment()["configurations"]["3d_fullres"]["ldseg"]["latent"]
    assert (latent["stride"], latent["channels"]) != (default["stride"], default["channels"])


def test_smoothing_follows_the_latent_and_can_be_switched_off(nnunet_folders):
    _write_dataset(nnunet_folders)
    sigma = {}
    for per_stride in (0.14, 0.0):
        planner = LDSegPlanner(901)
        planner.smoothing_per_stride = per_stride
        plan = planner.plan_experiment()["configurations"]["3d_fullres"]
        network = plan["architecture"]["arch_kwargs"]
        sigma[per_stride] = network["smoothing_sigma"]
        assert any("smooths" in line for line in describe_configuration(plan)) == bool(per_stride)
        if per_stride:
            assert sigma[per_stride] == pytest.approx([min(0.14 * s, 0.55) for s in network["latent_stride"]])
    assert not any(sigma[0.0])


def test_denoiser_share_decides_its_width(nnunet_folders):
    _write_dataset(nnunet_folders, shape=(64, 64, 64))
    widths = []
    for share in (1e-6, 100.0):
        planner = LDSegPlanner(901)
        planner.denoiser_share = share
        widths.append(planner.plan_experiment()["configurations"]["3d_fullres"]["ldseg"]["denoiser"]["features"])
    assert widths[0][0] < widths[1][0]


def test_what_cannot_be_coded_is_flagged(nnunet_folders):
    _write_dataset(nnunet_folders)
    planner = LDSegPlanner(901)
    planner.target_mean = 1.5
    latent = planner.plan_experiment()["configurations"]["2d"]["ldseg"]["latent"]
    assert not latent["cleared"] and "shortfall" in latent["reason"]
    assert {tuple(c["stride"]) for c in latent["candidates"]} == {(2, 2)}  # coarser ones can only be worse


def _speckle(truth):
    noise = np.random.default_rng(int(truth.sum())).random(truth.shape) < 0.04
    truth[truth == 2] = 0
    truth[noise & (truth == 0)] = 2  # one voxel thick wherever it is


def test_a_thin_class_gets_the_finest_latent_and_a_warning(nnunet_folders):
    _write_dataset(nnunet_folders, edit=_speckle)
    plans = _plan()
    latent = plans["configurations"]["3d_fullres"]["ldseg"]["latent"]
    assert latent["cleared"] and latent["stride"] == [2, 2, 2]
    warning, = latent["warnings"]
    assert "Class core is too thin for any but the finest" in warning and "2 x 2 x 2 mm" in warning
    assert f"WARNING: {warning}" in explain(plans)
    assert f"{NAME}, 3d_fullres: WARNING: {warning}" in warnings(plans)


def test_a_class_too_thin_for_any_latent_gets_the_finest_and_a_warning(nnunet_folders):
    _write_dataset(nnunet_folders, edit=_speckle)
    planner = LDSegPlanner(901)
    planner._measure = lambda stride, spacing: label_coding_ceiling(planner._maps(spacing), 3, stride, (1, 2, 4))
    latent = planner.plan_experiment()["configurations"]["3d_fullres"]["ldseg"]["latent"]
    assert not latent["cleared"] and latent["stride"] == [2, 2, 2] and latent["channels"] == 4
    assert any("core" in warning and "-overwrite_target_spacing" in warning for warning in latent["warnings"])


def test_plans_do_not_depend_on_the_order_of_files_or_on_what_was_there(nnunet_folders):
    _write_dataset(nnunet_folders)
    plans = [json.dumps(LDSegPlanner(901).plan_experiment(), default=str)]
    file = nnunet_folders["nnUNet_preprocessed"] / NAME / "LDSegPlans.json"
    saved = json.loads(file.read_text())
    saved["configurations"]["3d_lowres"] = saved["configurations"]["3d_fullres"]  # of an earlier, smaller target
    saved["configurations"]["mine"] = {"inherits_from": "2d", "batch_size": 3}
    file.write_text(json.dumps(saved))
    listed = nnunet_folders["nnUNet_raw"] / NAME / "dataset.json"
    content = json.loads(listed.read_text())
    content["dataset"] = dict(reversed(content["dataset"].items()))
    listed.write_text(json.dumps(content))
    again = LDSegPlanner(901).plan_experiment()
    assert again["configurations"].pop("mine") == saved["configurations"]["mine"]
    plans.append(json.dumps(again, default=str))
    assert plans[0] == plans[1]
    assert set(json.loads(file.read_text())["configurations"]) == {"2d", "3d_fullres", "mine"}
    assert str(nnunet_folders["nnUNet_raw"]) not in plans[0]


def test_older_plans_are_read_and_newer_ones_refused(nnunet_folders):
    _write_dataset(nnunet_folders)
    plans = _plan()
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    older = {key: value for key, value in kwargs.items() if key not in ("encoder", "standardisation")}
    assert LDSegConfig.from_arch_kwargs(older) == LDSegConfig.from_arch_kwargs(kwargs)
    require_known_format({})
    require_known_format(plans)
    file = nnunet_folders["nnUNet_preprocessed"] / NAME / "LDSegPlans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {FORMAT_KEY: PLANS_FORMAT + 1}))
    with pytest.raises(LDSegError, match="Install a newer ldseg_auto"):
        load_plans(NAME)


def test_sparse_annotation_is_planned(nnunet_folders):
    """Every fifth slice annotated, the others ignored: no block of the latent is annotated all through."""
    def ignore_most(truth):
        truth[[z for z in range(len(truth)) if z % 5]] = 3

    _write_dataset(nnunet_folders, LABELS | {"ignore": 3}, edit=ignore_most)
    latent = _plan()["configurations"]["3d_fullres"]["ldseg"]["latent"]
    assert latent["cleared"] and None not in latent["candidates"][0]["per_class"].values()


def test_large_pictures_stay_within_the_memory(nnunet_folders):
    """In 2D the smallest batch, not the reference's, must fit."""
    _write_dataset(nnunet_folders, shape=(4, 320, 320), spacing_zyx=(10.0, 1.0, 1.0))
    plan = _plan(gpu_memory_target_in_gb=0.8)["configurations"]["2d"]
    assert plan["batch_size"] >= 2 and plan["ldseg"]["memory"]["estimate_gb"] <= 0.8
    assert prod(plan["patch_size"]) < 320 * 320


def test_too_little_memory_is_refused(nnunet_folders):
    _write_dataset(nnunet_folders, shape=(2, 384, 384), spacing_zyx=(10.0, 1.0, 1.0))
    with pytest.raises(LDSegError, match=r"fits into 0.6 GB.*-gpu_memory_target"):
        _plan(gpu_memory_target_in_gb=0.6)


def test_very_coarse_latents_are_not_examined(nnunet_folders, monkeypatch):
    _write_dataset(nnunet_folders)
    monkeypatch.setattr(ldseg_planner, "MAX_BLOCK_VOXELS", 8)
    candidates = _plan()["configurations"]["3d_fullres"]["ldseg"]["latent"]["candidates"]
    assert {tuple(c["stride"]) for c in candidates} == {(2, 2, 2)}


def test_labels_without_foreground_are_refused(nnunet_folders):
    def clear(truth):
        truth[:] = 0

    _write_dataset(nnunet_folders, edit=clear)
    with pytest.raises(LDSegError, match="foreground"):
        _plan()


def test_images_too_small_to_pool_are_refused(nnunet_folders):
    _write_dataset(nnunet_folders, shape=(6, 6, 6))
    with pytest.raises(LDSegError, match="too small"):
        _plan()


def test_explanation_names_every_decision(nnunet_folders):
    _write_dataset(nnunet_folders)
    plans = _plan()
    text = explain(plans)
    for name, plan in plans["configurations"].items():
        assert f"Configuration {name}" in text
        assert f"batch size {plan['batch_size']}" in text
    assert text.count("CHOSEN") == len(plans["configurations"])
    assert "mean below the target" in text and "enough, but more positions for the denoiser" in text
    plans["configurations"]["custom"] = {"inherits_from": "2d", "batch_size": 3}
    assert "custom: written by hand" in explain(plans)


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_has_plans_and_data_of_its_own_name(nnunet_folders, name):
    _write_dataset(nnunet_folders)
    plans = PLANNERS[name](901).plan_experiment()
    assert plans["experiment_planner_used"] == name
    assert plans["plans_name"] == PLANNERS[name].default_plans_name
    assert "__" not in plans["plans_name"]
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == f"{plans['plans_name']}_3d_fullres"
    architecture = configuration["architecture"]
    config = LDSegConfig.from_arch_kwargs(architecture["arch_kwargs"])
    assert config.encoder == ("residual" if "ResEnc" in name else "plain")
    network = get_network_from_plans(architecture["network_class_name"], architecture["arch_kwargs"],
                                     architecture["_kw_requires_import"], 1, 3, deep_supervision=False)
    blocks = [len(stage.blocks) for stage in network.image_encoder.encoder.stages] if "ResEnc" in name else [
        len(stage[-1].convs) for stage in network.image_encoder.encoder.stages]
    assert tuple(blocks) == config.n_conv_per_stage


def test_a_larger_preset_plans_a_larger_batch_or_patch(nnunet_folders):
    _write_dataset(nnunet_folders, numTraining=100_000)  # else so small a data set limits the batch
    plans = [PLANNERS[f"LDSegPlannerResEnc{size}"](901).plan_experiment()["configurations"]["2d"]
             for size in ("M", "L", "XL")]
    assert [plan["ldseg"]["memory"]["target_gb"] for plan in plans] == [8, 24, 40]
    sizes = [plan["batch_size"] * prod(plan["patch_size"]) for plan in plans]
    assert sizes[0] < sizes[1] < sizes[2]
