"""Trainings that start from weights of others: of ours, and of nnU-Net's own, as its trainer writes them."""

import json
import shutil

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ldseg_auto.cli import plan_and_preprocess, predict, train
from ldseg_auto.planners.ldseg_planner import PLANNERS, ExperimentPlanner, nnUNetPlannerResEncM
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.weight_transfer import FILE_NAME, weights_of

SHORT = ["-c", "3d_fullres", "-device", "cpu", "--iterations_per_epoch", "1"]
DATASET = "Dataset007_Small"


@pytest.fixture
def started(monkeypatch):
    """Trainings that are not run: the trainers, as they are when the training would begin."""
    trainers = []
    monkeypatch.setattr(LDSegTrainer, "run_training", lambda self: trainers.append(self))
    monkeypatch.setattr(LDSegTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    return trainers


def start(*flags, fold="1"):
    assert train.main(["7", fold, *SHORT, *map(str, flags)]) == 0


def log_of(fold):
    return "".join(file.read_text() for file in sorted(fold.glob("training_log_*.txt")))


def network_weights(checkpoint):
    return torch.load(checkpoint, weights_only=False)["network_weights"]


def test_raw_and_averaged_weights_start_from_a_checkpoint_of_the_same_plans(own_small_world, started, tmp_path):
    checkpoint = shutil.copy(own_small_world["model"] / "fold_0" / "checkpoint_final.pth", tmp_path)
    start("-pretrained_weights", checkpoint)
    trainer, = started
    for name, value in network_weights(checkpoint).items():
        for network in (trainer.unwrapped_network.state_dict(), trainer.average.state_dict()):
            assert torch.equal(network[name], value), name
    assert trainer.average.updates == 0
    listed = json.loads((own_small_world["model"] / "fold_1" / FILE_NAME).read_text())
    assert set(listed["loaded"]) == set(weights_of(trainer.unwrapped_network)) and not listed["not_loaded"]
    assert (listed["checkpoint"], listed["given_as"]) == (str(checkpoint), "-pretrained_weights")
    assert "denoiser: " in log_of(own_small_world["model"] / "fold_1")
    start("--restart")
    assert not (own_small_world["model"] / "fold_1" / FILE_NAME).exists(), "of an earlier start"


def test_several_folds_start_from_a_checkpoint_that_is_set_aside_on_the_way(own_small_world, started):
    checkpoint = own_small_world["model"] / "fold_0" / "checkpoint_final.pth"
    weights = network_weights(checkpoint)
    assert train.main(["7", "0", "1", "--restart", *SHORT, "-pretrained_weights", str(checkpoint)]) == 0
    assert len(started) == 2 and not checkpoint.exists()
    for trainer in started:
        assert all(torch.equal(value, weights[name]) for name, value in trainer.unwrapped_network.state_dict().items())


def test_an_interrupted_training_goes_on_and_does_not_start_again(own_small_world, monkeypatch):
    def interrupted(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        on_epoch_start(self)
    on_epoch_start = LDSegTrainer.on_epoch_start
    monkeypatch.setattr(LDSegTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    monkeypatch.setattr(LDSegTrainer, "on_epoch_start", interrupted)
    shutil.rmtree(own_small_world["model"] / "fold_1", ignore_errors=True)  # of another test of this process
    command = ["7", "1", *SHORT, "--epochs", "2", "-pretrained_weights",
               str(own_small_world["model"] / "fold_0" / "checkpoint_final.pth")]
    assert train.main(command) == 130
    monkeypatch.setattr(LDSegTrainer, "on_epoch_start", on_epoch_start)
    assert train.main(command) == 0
    fold = own_small_world["model"] / "fold_1"
    assert (fold / "checkpoint_final.pth").is_file() and (fold / FILE_NAME).is_file()
    log = log_of(fold)
    assert log.count("Weights from") == 1 and "The label code starts as" not in log, "its code was loaded"
    assert torch.load(fold / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 2


def test_to_other_labels_for_all_cases_and_a_prediction(own_small_world, monkeypatch, tmp_path):
    """Three cases with one label, by the plans of the model that it starts from: the label code is a new one."""
    monkeypatch.setattr(LDSegTrainer, "validation_mirroring", False)
    raw = shutil.copytree(own_small_world["nnUNet_raw"] / DATASET, own_small_world["nnUNet_raw"] / "Dataset008_One",
                          ignore=shutil.ignore_patterns(*[f"case_0{number}*" for number in range(3, 10)]))
    described = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(described | {
        "labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [1], "numTraining": 3}))
    assert plan_and_preprocess.main(["-d", "8", "-s", "7", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]) == 0
    plans = ["-p", "LDSegPlansFrom007"]
    assert train.main(["8", "all", *SHORT, *plans, "--epochs", "1", "-pretrained_weights",
                       str(own_small_world["model"] / "fold_0" / "checkpoint_final.pth")]) == 0
    fold = own_small_world["nnUNet_results"] / raw.name / "LDSegTrainer__LDSegPlansFrom007__3d_fullres" / "fold_all"
    parts = json.loads((fold / FILE_NAME).read_text())["parts"]
    assert parts["image encoder"]["values_loaded"] == parts["image encoder"]["values"] > 0
    assert parts["label autoencoder"]["values_loaded"] == parts["denoiser"]["values_loaded"] == 0
    assert "The label code starts as principal components" in log_of(fold)
    (own_small_world["images"] / "case_10_0000.nii.gz").unlink()
    assert predict.main(["-i", str(own_small_world["images"]), "-o", str(tmp_path / "out"), "-d", "8", "-f", "all",
                         *plans, "-npp", "0", "-nps", "0", "--disable_tta", "--samples", "1", "-device", "cpu",
                         "--disable_progress_bar"]) == 0
    assert [file.name for file in (tmp_path / "out").glob("*.nii.gz")] == ["case_11.nii.gz"]


@pytest.fixture(params=["plain", "residual"])
def of_nnunet(request, own_small_world):
    """A checkpoint of a U-Net that nnU-Net planned and its trainer trained for one iteration on our preprocessed cases,
    and the name of our plans with that kind of encoder."""
    planner, ours = {"plain": (ExperimentPlanner, "LDSegPlanner"),
                     "residual": (nnUNetPlannerResEncM, "LDSegPlannerResEncM")}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner needs one
        plans, _ = plan_experiment_dataset(7, planner)
        if request.param == "residual":
            plan_experiment_dataset(7, PLANNERS[ours])
    plan = plans["configurations"]["3d_fullres"]
    plan["data_identifier"] = "LDSegPlans_3d_fullres"
    trainer = nnUNetTrainer(plans | {"continue_training": False}, "3d_fullres", 0,
                            load_json(str(own_small_world["preprocessed"] / "dataset.json")), torch.device("cpu"))
    trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    return f"{trainer.output_folder}/checkpoint_final.pth", PLANNERS[ours].default_plans_name


def test_the_image_encoder_starts_from_nnunets(of_nnunet, own_small_world, started):
    checkpoint, plans = of_nnunet
    file = own_small_world["preprocessed"] / f"{plans}.json"
    file.write_text(file.read_text().replace(f"{plans}_3d_fullres", "LDSegPlans_3d_fullres"))
    with pytest.raises(Exception, match="numpy"):
        torch.load(checkpoint, weights_only=True)  # otherwise this test would show little
    start("--encoder_weights", checkpoint, "-p", plans)
    trainer, = started
    there, prefix = network_weights(checkpoint), "image_encoder.encoder."
    for state in (trainer.unwrapped_network.state_dict(), trainer.average.state_dict()):
        same = [torch.equal(value, there[name.removeprefix("image_encoder.")]) for name, value in state.items()
                if name.startswith(prefix) and ".all_modules." not in name]
        assert same and all(same)
    listed = json.loads((own_small_world["model"].with_name(f"LDSegTrainer__{plans}__3d_fullres") / "fold_1" /
                         FILE_NAME).read_text())
    assert listed["given_as"] == "--encoder_weights" and "decoder.seg_layers.0.weight" in listed["unused"]
    assert {name.split(".")[0] for name in listed["loaded"]} == {"image_encoder"}


def test_the_flag_reaches_jobs(in_small_world, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("ldseg_auto.trainers.cluster.run_locally", lambda *arguments: given.append(arguments))
    net = {"encoder.stages.0.0.convs.0.conv.weight": torch.ones(1)}
    torch.save({"network_weights": net}, tmp_path / "stock.pth")
    start("--encoder_weights", tmp_path / "stock.pth", "--cluster", "local")
    assert given[0][3]["encoder_weights"] == str(tmp_path / "stock.pth")
    assert train.main(["7", "1", *SHORT, "--cluster", "local", "--encoder_weights", str(tmp_path / "none.pth")]) == 1


def test_weights_of_which_none_fits_are_refused_and_what_was_there_stays(own_small_world, started, tmp_path, capsys):
    fold = own_small_world["model"] / "fold_0"
    torch.save({"network_weights": {"encoder.stages.0.0.convs.0.conv.weight": torch.ones(1)}}, tmp_path / "stock.pth")
    before = (fold / "checkpoint_final.pth").read_bytes()
    assert train.main(["7", "0", "--restart", *SHORT, "--encoder_weights", str(tmp_path / "stock.pth")]) == 1
    assert "None of the weights in" in (error := capsys.readouterr().err) and "LDSegPlannerResEncM" in error
    assert (fold / "checkpoint_final.pth").read_bytes() == before and not started
