"""Plans for the kinds of data that users bring, and what a specialist would say to them."""

import json
from math import prod
from pathlib import Path
from time import perf_counter

import pytest
from archetypes import ABDOMEN, ARCHETYPES, CARDIAC, CT_LESION, CT_LIVER, CT_VESSELS, HUGE, RARE, TINY, write
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from ldseg_auto.evaluation.peak_memory import training_peak_bytes
from ldseg_auto.fingerprint import FILE_NAME, extract_label_fingerprint
from ldseg_auto.planners.label_maps import MAX_NATIVE_VOXELS
from ldseg_auto.planners.ldseg_planner import LDSegPlanner
from ldseg_auto.planners.memory import TENSOR_SHARE

_SECONDS = {"huge": 60, "abdomen": 60}  # of others 30; a slow machine with two busy cores
_MEMORY_OF_ITS_OWN = ("cardiac", "lesion", "vessels", "microscopy", "abdomen", "tiny", "huge", "cine")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """archetype -> its plans, the seconds they took, the planner; each made once."""
    made = {}

    def make(archetype):
        key = json.dumps([archetype.shape, dict(archetype.labels), archetype.cases, archetype.draw.__name__])
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                made[key] = _plan(archetype, tmp_path_factory.mktemp("archetype"), patch)
        return made[key]

    return make


def _plan(archetype, root: Path, patch: pytest.MonkeyPatch):
    name = "Dataset555_Archetype"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable).mkdir()
        patch.setenv(variable, str(root / variable))
    raw, preprocessed = root / "nnUNet_raw" / name, root / "nnUNet_preprocessed" / name
    write(archetype, raw, preprocessed)
    description = json.loads((raw / "dataset.json").read_text())
    cases = get_filenames_of_train_images_and_targets(str(raw), description)
    reader = recursive_find_reader_writer_by_name(description["overwrite_image_reader_writer"])
    extract_label_fingerprint(cases, description, reader, preprocessed / FILE_NAME)
    started = perf_counter()
    planner = LDSegPlanner(555)
    plans = planner.plan_experiment()
    return plans, perf_counter() - started, planner


def latent(plans, configuration="3d_fullres"):
    return plans["configurations"][configuration]["ldseg"]["latent"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "huge" else name
                                  for name in ARCHETYPES])
def test_planned_in_seconds(name, plan):
    plans, seconds, _ = plan(ARCHETYPES[name])
    assert seconds < _SECONDS.get(name, 30)
    assert all("next_stage" not in configuration for configuration in plans["configurations"].values())


@pytest.mark.parametrize("name", [name if name in ("cardiac", "microscopy") else
                                  pytest.param(name, marks=pytest.mark.slow) for name in _MEMORY_OF_ITS_OWN])
def test_trained_within_the_memory(name, plan):
    """One step forward and backward, counted."""
    archetype = ARCHETYPES[name]
    plans, _, _ = plan(archetype)
    configuration = plans["configurations"]["2d" if len(archetype.shape) == 2 else "3d_fullres"]
    architecture, network = configuration["architecture"], (len(archetype.channels), len(archetype.labels))
    config = get_network_from_plans(architecture["network_class_name"], architecture["arch_kwargs"],
                                    architecture["_kw_requires_import"], *network, deep_supervision=False).config
    peak = training_peak_bytes(config, configuration["patch_size"], configuration["batch_size"], *network, half=True)
    memory = configuration["ldseg"]["memory"]
    assert memory["training_tensors_gb"] == pytest.approx(peak / 1e9, rel=0.15)
    assert peak / 1e9 < 1.1 * memory["target_gb"] * TENSOR_SHARE[len(configuration["patch_size"])]


def test_few_thick_slices_are_coded_finer_across_than_within(plan):
    plans, _, _ = plan(CARDIAC)
    stride = latent(plans)["stride"]
    assert stride[0] <= 2 and stride[0] < stride[1] == stride[2]
    fullres = plans["configurations"]["3d_fullres"]
    assert fullres["patch_size"][0] == 10  # all slices
    assert fullres["architecture"]["arch_kwargs"]["kernel_sizes"][0] == (1, 3, 3)
    assert "2d" in plans["configurations"]


def test_small_structures_get_a_finer_latent_than_the_organ_around_them(plan):
    strides = {name: prod(latent(plan(archetype)[0])["stride"]) for name, archetype in
               (("organ", CT_LIVER), ("lesion", CT_LESION), ("vessels", CT_VESSELS))}
    assert strides["organ"] >= 8 * strides["lesion"]
    assert strides["organ"] >= 8 * strides["vessels"]
    assert min(latent(plan(CT_LESION)[0])["stride"]) > 1  # and yet a latent


def test_pictures_are_planned_in_2d_with_their_colours(plan):
    plans, _, _ = plan(ARCHETYPES["microscopy"])
    assert set(plans["configurations"]) == {"2d"}
    configuration = plans["configurations"]["2d"]
    assert list(configuration["patch_size"]) == [512, 512]
    assert 1 < latent(plans, "2d")["stride"][0] <= 8  # a border two pixels wide


def test_twenty_classes_do_not_force_the_finest_latent(plan):
    plans, seconds, _ = plan(ABDOMEN)
    assert seconds < 60
    assert len(latent(plans)["candidates"][0]["per_class"]) == 20
    assert min(latent(plans)["stride"][1:]) >= 4 and latent(plans)["cleared"]


def test_tiny_volumes_keep_a_grid_and_need_no_low_resolution(plan):
    plans, _, _ = plan(TINY)
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}
    assert min(latent(plans)["grid"]) >= 4
    assert list(plans["configurations"]["3d_fullres"]["patch_size"]) == [40, 56, 40]


@pytest.mark.slow
def test_very_large_volumes_are_planned_from_samples(plan):
    plans, _, planner = plan(HUGE)
    assert "3d_lowres" in plans["configurations"]
    assert all(native.labels.size <= MAX_NATIVE_VOXELS for native in planner._label_maps._read)
    nnunet = 128 * 128 * 128 * 2  # what its U-Net fits into 8 GB
    fullres = plans["configurations"]["3d_fullres"]
    assert prod(fullres["patch_size"]) * fullres["batch_size"] > nnunet


def test_a_single_case_is_enough_to_plan(plan):
    plans, _, _ = plan(ARCHETYPES["single case"])
    assert latent(plans)["cleared"] and plans["configurations"]["3d_fullres"]["batch_size"] >= 2


def test_a_class_of_one_case_is_seen_and_does_not_force_the_finest_latent(plan):
    plans, _, planner = plan(RARE)
    per_class = latent(plans)["candidates"][0]["per_class"]
    assert per_class["rare"] is not None
    assert [native.focus for native in planner._label_maps._read if native.focus is not None] == [2]
    assert prod(latent(plans)["stride"]) > 8


def test_time_is_not_coded_more_coarsely_than_space(plan):
    plans, _, _ = plan(ARCHETYPES["cine"])
    stride = latent(plans)["stride"]
    assert stride[0] < stride[1] == stride[2]
