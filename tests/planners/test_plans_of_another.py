"""Plans of one data set taken over by another, whose labels are others."""

import json
import shutil

import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

from ldseg_auto.cli import plan_and_preprocess
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import load_plans
from ldseg_auto.planners import api
from ldseg_auto.planners.explain import explain, warnings

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed")
SOURCE, TARGET, TAKEN = "Dataset007_Small", "Dataset008_Other", "LDSegPlansFrom007"
REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


@pytest.fixture(scope="module")
def fingerprinted(small_world, tmp_path_factory, use_threads):
    """nnUNet_raw and nnUNet_preprocessed of the small world, and in them its first cases as another data set, whose
    labels are regions with an ignore label, with nnU-Net's fingerprint."""
    root = tmp_path_factory.mktemp("fingerprinted")
    for variable in VARIABLES:
        shutil.copytree(small_world[variable], root / variable,
                        ignore=shutil.ignore_patterns("LDSegPlans_*", "imagesTs"))
    raw = shutil.copytree(root / "nnUNet_raw" / SOURCE, root / "nnUNet_raw" / TARGET)
    for case in range(3, 10):
        (raw / "imagesTr" / f"case_{case:02d}_0000.nii.gz").unlink()
        (raw / "labelsTr" / f"case_{case:02d}.nii.gz").unlink()
    describe(raw, labels=REGIONS, regions_class_order=[1, 2], numTraining=3)
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        for variable in VARIABLES:
            patch.setenv(variable, str(root / variable))
        extract_fingerprint_dataset(8, num_processes=1)
    return root


@pytest.fixture
def target(fingerprinted, tmp_path, monkeypatch):
    """A copy of them: the raw data set, what is new of it, and the folder of the source's plans."""
    root = shutil.copytree(fingerprinted, tmp_path / "world")
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(root / variable))
    return {"raw": root / "nnUNet_raw" / TARGET, "new": root / "nnUNet_preprocessed" / TARGET,
            "source": root / "nnUNet_preprocessed" / SOURCE}


def describe(folder, **changes):
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without(tree, *keys):
    return {name: without(value, *keys) if isinstance(value, dict) else value for name, value in tree.items()
            if name not in keys}


def test_the_network_and_its_patches_are_the_sources_and_the_outputs_the_targets(target, capsys):
    assert plan_and_preprocess.main(["-d", "8", "-s", "7", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]) == 0
    plans, source = load_plans(TARGET, TAKEN), load_plans(SOURCE)
    assert f"took over LDSegPlans of {SOURCE} as {TAKEN}" in (said := capsys.readouterr().out) and f"-p {TAKEN}" in said
    own = ("data_identifier", "output", "ignore_label", "latent")
    assert without(plans["configurations"], *own) == without(source["configurations"], *own)
    for name, plan in plans["configurations"].items():
        network = plan["architecture"]["arch_kwargs"]
        assert plan["data_identifier"] == f"{TAKEN}_{name}"
        assert (network["output"], network["ignore_label"]) == ("sigmoid", 3)
    assert (plans["dataset_name"], plans["plans_name"]) == (TARGET, TAKEN)
    assert plans["foreground_intensity_properties_per_channel"] == source["foreground_intensity_properties_per_channel"]
    assert plans["training_images"]["orientations"] == {"LPS": 3}
    assert {file.stem for file in (target["new"] / f"{TAKEN}_3d_fullres").glob("*.pkl")} == {
        f"case_0{number}" for number in range(3)}
    assert json.loads((target["new"] / "dataset.json").read_text())["labels"] == REGIONS
    assert not (target["new"] / "LDSegPlans.json").exists() and (target["new"] / f"{TAKEN}_plan_report.html").is_file()


def test_evidence_is_measured_on_the_targets_labels(target):
    file = target["source"] / "LDSegPlans.json"
    source = json.loads(file.read_text())
    plan = source["configurations"]["3d_fullres"]
    plan["architecture"]["arch_kwargs"]["latent_channels"] = plan["ldseg"]["latent"]["channels"] = 1  # too few
    file.write_text(json.dumps(source))
    plans = api.plan_and_preprocess([8], plans_of=7, no_preprocessing=True)[TARGET]
    latent = plans["configurations"]["3d_fullres"]["ldseg"]["latent"]
    chosen, = (each for each in latent["candidates"] if each["chosen"])
    assert set(chosen["per_class"]) == {"whole", "core"} and chosen["channels"] == 1 and latent["label_maps"] == 3
    assert any("Class core keeps a Dice of only" in warning for warning in warnings(plans))
    assert f"Taken over from LDSegPlans of {SOURCE}" in explain(plans) and "Why: taken over" in explain(plans)
    assert SOURCE in (target["new"] / f"{TAKEN}_plan_report.html").read_text()


def test_sizes_of_images_are_the_targets(target):
    file = target["new"] / "dataset_fingerprint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {
        "spacings": [[3, 1, 1]] * 3, "shapes_after_crop": [[10, 18, 16]] * 3}))
    plans = api.plan_and_preprocess([8], plans_of=SOURCE, plans_name="Mine", no_preprocessing=True)[TARGET]
    assert plans["original_median_spacing_after_transp"] == [3, 1, 1]
    assert plans["original_median_shape_after_transp"] == [10, 18, 16] and plans["plans_name"] == "Mine"
    assert plans["configurations"]["3d_fullres"]["spacing"] == [1, 1, 1]


def test_a_cascade_takes_as_many_channels_as_the_target_has_labels(target):
    file = target["source"] / "LDSegPlans.json"
    source = json.loads(file.read_text())
    stages = source["configurations"]
    stages["3d_lowres"] = stages["3d_fullres"] | {"data_identifier": "LDSegPlans_3d_lowres",
                                                  "next_stage": "3d_cascade_fullres"}
    second = json.loads(json.dumps({key: stages["3d_fullres"][key] for key in ("architecture", "ldseg")}))
    second["architecture"]["arch_kwargs"]["previous_stage_channels"] = 7
    stages["3d_cascade_fullres"] = second | {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(source))
    plans = api.plan_and_preprocess([8], plans_of=7, no_preprocessing=True)[TARGET]["configurations"]
    networks = {name: plan["architecture"]["arch_kwargs"] for name, plan in plans.items()}
    assert networks["3d_cascade_fullres"]["previous_stage_channels"] == 2
    assert networks["3d_cascade_fullres"]["output"] == "sigmoid"
    assert networks["3d_lowres"].get("previous_stage_channels", 0) == 0
    assert plans["3d_cascade_fullres"]["ldseg"]["latent"]["reason"].startswith("taken over")


def test_plans_of_other_channels_and_networks_are_refused(target):
    with pytest.raises(LDSegError, match="-s names Dataset007_Small itself"):
        api.plan_and_preprocess([7], plans_of=7)
    with pytest.raises(LDSegError, match="no plans named Others .*there are: LDSegPlans"):
        api.plan_and_preprocess([8], plans_of=7, plans_of_name="Others")
    describe(target["raw"], channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(LDSegError, match=f"{SOURCE} has 1 channels and {TARGET} 2: .*-pretrained_weights"):
        api.plan_and_preprocess([8], plans_of=7)
    describe(target["raw"], channel_names={"0": "T1"})
    file = target["source"] / "LDSegPlans.json"
    stock = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    (file.parent / "Stock.json").write_text(file.read_text().replace("ldseg_auto.networks.ldseg_net.LDSegNet", stock))
    with pytest.raises(LDSegError, match="Stock of Dataset007_Small are of another network"):
        api.plan_and_preprocess([8], plans_of=7, plans_of_name="Stock")
    assert not list(target["new"].glob("*Plans*.json"))


@pytest.mark.parametrize("options, message", [
    ({"plans_of_name": "LDSegPlans"}, "-sp is given without -s"),
    ({"plans_of": 7, "planner": "LDSegPlannerResEncM"}, "-s takes plans over as they are"),
    ({"plans_of": 7, "gpu_memory_target_in_gb": 24}, "-s takes plans over as they are"),
    ({"plans_of": 7, "overwrite_target_spacing": (1, 1, 1)}, "-s takes plans over as they are")])
def test_options_that_plan_anew_do_not_go_with_it(target, options, message):
    with pytest.raises(LDSegError, match=message):
        api.plan_and_preprocess([8], **options)


def test_plans_that_were_made_otherwise_are_not_overwritten(target):
    def plan(**options):
        return api.plan_and_preprocess([8], no_preprocessing=True, plans_name="LDSegPlans", **options)
    plan(plans_of=7)
    plan(plans_of=7)  # the same again
    with pytest.raises(LDSegError, match="was taken over from Dataset007_Small: it would be overwritten"):
        plan()
    (target["new"] / "LDSegPlans.json").write_text(json.dumps({"experiment_planner_used": "LDSegPlanner"}))
    with pytest.raises(LDSegError, match="LDSegPlans.json was planned: it would be overwritten"):
        plan(plans_of=7)
