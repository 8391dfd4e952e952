"""What we rely on in nnU-Net: where a release of it breaks us, it fails here first and says what changed.

Three tables: what we call or override and with which parameters; names that we bind or that methods must look up in
their module; files that nnU-Net writes and we (or its own commands, on our folders) read.
"""

import inspect
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from packaging.requirements import Requirement

TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner:ExperimentPlanner"
PLANS = "nnunetv2.utilities.plans_handling.plans_handler"
AUGMENTER = "batchgenerators.dataloading.nondet_multi_threaded_augmenter:NonDetMultiThreadedAugmenter"
PLANNING = "nnunetv2.experiment_planning.plan_and_preprocess_api"

# what -> the parameters that we pass or take, by their names (self left out); nnU-Net may have more
PARAMETERS = {
    # the trainer's hooks
    f"{TRAINER}.__init__": "plans configuration fold dataset_json device",
    f"{TRAINER}.initialize": "",
    f"{TRAINER}.build_network_architecture":
        "plans_manager configuration_manager num_input_channels num_output_channels enable_deep_supervision",
    f"{TRAINER}._do_i_compile": "",
    f"{TRAINER}._build_loss": "",
    f"{TRAINER}.configure_optimizers": "",
    f"{TRAINER}.set_deep_supervision_enabled": "enabled",
    f"{TRAINER}.run_training": "",
    f"{TRAINER}.on_train_start": "",
    f"{TRAINER}.on_train_end": "",
    f"{TRAINER}.on_epoch_start": "",
    f"{TRAINER}.on_epoch_end": "",
    f"{TRAINER}.on_train_epoch_start": "",
    f"{TRAINER}.train_step": "batch",
    f"{TRAINER}.on_train_epoch_end": "train_outputs",
    f"{TRAINER}.on_validation_epoch_start": "",
    f"{TRAINER}.validation_step": "batch",
    f"{TRAINER}.on_validation_epoch_end": "val_outputs",
    f"{TRAINER}.save_checkpoint": "filename",
    f"{TRAINER}.load_checkpoint": "filename_or_checkpoint",
    f"{TRAINER}.perform_actual_validation": "save_probabilities",
    f"{TRAINER}.get_tr_and_val_datasets": "",
    f"{TRAINER}.get_validation_transforms":
        "deep_supervision_scales is_cascaded foreground_labels regions ignore_label",
    f"{TRAINER}.print_to_log_file": "args",
    f"{TRAINER}.get_dataloaders": "",
    f"{AUGMENTER}._finish": "",
    "nnunetv2.run.run_training:get_trainer_from_args":
        "dataset_name_or_id configuration fold trainer_name plans_identifier continue_training device",
    "nnunetv2.run.run_training:maybe_load_checkpoint":
        "nnunet_trainer continue_training validation_only pretrained_weights_file",
    "nnunetv2.utilities.find_objects:recursive_find_trainer_class_by_name": "trainer_name",
    # the network's loader
    "nnunetv2.utilities.get_network_from_plans:get_network_from_plans":
        "arch_class_name arch_kwargs arch_kwargs_req_import input_channels output_channels allow_init deep_supervision",
    # the predictor
    f"{PREDICTOR}.__init__": "tile_step_size use_gaussian use_mirroring perform_everything_on_device device verbose "
                             "verbose_preprocessing allow_tqdm",
    f"{PREDICTOR}.initialize_from_trained_model_folder": "model_training_output_dir use_folds checkpoint_name",
    f"{PREDICTOR}.manual_initialization": "network plans_manager configuration_manager parameters dataset_json "
                                          "trainer_name inference_allowed_mirroring_axes",
    f"{PREDICTOR}.auto_detect_available_folds": "model_training_output_dir checkpoint_name",
    f"{PREDICTOR}.predict_from_files": "list_of_lists_or_source_folder output_folder_or_list_of_truncated_output_files "
                                       "save_probabilities overwrite num_processes_preprocessing "
                                       "num_processes_segmentation_export",
    f"{PREDICTOR}.predict_from_files_sequential":
        "list_of_lists_or_source_folder output_folder_or_list_of_truncated_output_files save_probabilities overwrite",
    f"{PREDICTOR}.predict_from_data_iterator": "data_iterator save_probabilities num_processes_segmentation_export",
    f"{PREDICTOR}._internal_get_data_iterator_from_lists_of_filenames":
        "input_list_of_lists seg_from_prev_stage_files output_filenames_truncated num_processes",
    f"{PREDICTOR}.predict_logits_from_preprocessed_data": "data",
    f"{PREDICTOR}.predict_sliding_window_return_logits": "input_image",
    "nnunetv2.inference.export_prediction:export_prediction_from_logits":
        "predicted_array_or_file properties_dict configuration_manager plans_manager dataset_json_dict_or_file "
        "output_file_truncated save_probabilities",
    "nnunetv2.inference.export_prediction:convert_predicted_logits_to_segmentation_with_correct_shape":
        "predicted_logits plans_manager configuration_manager label_manager properties_dict return_probabilities",
    "nnunetv2.inference.sliding_window_prediction:compute_gaussian":
        "tile_size sigma_scale value_scaling_factor dtype device",
    "nnunetv2.inference.sliding_window_prediction:compute_steps_for_sliding_window":
        "image_size tile_size tile_step_size",
    "nnunetv2.ensembling.ensemble:average_probabilities": "list_of_files",
    # folds and what follows them
    "nnunetv2.utilities.crossval_split:generate_crossval_split": "train_identifiers seed n_splits",
    "nnunetv2.evaluation.accumulate_cv_results:accumulate_cv_results":
        "trained_model_folder merged_output_folder folds num_processes",
    "nnunetv2.postprocessing.remove_connected_components:remove_all_but_largest_component_from_segmentation":
        "segmentation labels_or_regions",
    "nnunetv2.training.dataloading.nnunet_dataset:infer_dataset_class": "folder",
    "nnunetv2.training.dataloading.nnunet_dataset:nnUNetDatasetBlosc2.__init__": "folder",
    "nnunetv2.training.dataloading.nnunet_dataset:nnUNetDatasetBlosc2.load_case": "identifier",
    # the planner
    f"{PLANNER}.__init__": "dataset_name_or_id gpu_memory_target_in_gb preprocessor_name plans_name "
                           "overwrite_target_spacing suppress_transpose",
    f"{PLANNER}.static_estimate_VRAM_usage":
        "patch_size input_channels output_channels arch_class_name arch_kwargs arch_kwargs_req_import",
    f"{PLANNER}.get_plans_for_configuration":
        "spacing median_shape data_identifier approximate_n_voxels_dataset _cache",
    f"{PLANNER}.plan_experiment": "",
    f"{PLANNER}.save_plans": "plans",
    f"{PLANNER}.determine_reader_writer": "",
    f"{PLANNER}.determine_transpose": "",
    f"{PLANNER}.determine_resampling": "",
    f"{PLANNING}:extract_fingerprint_dataset": "dataset_id num_processes clean verbose",
    f"{PLANNING}:plan_experiment_dataset":
        "dataset_id experiment_planner_class gpu_memory_target_in_gb overwrite_target_spacing overwrite_plans_name",
    f"{PLANNING}:preprocess_dataset": "dataset_id plans_identifier configurations num_processes verbose",
    "nnunetv2.experiment_planning.verify_dataset_integrity:verify_dataset_integrity": "folder num_processes",
    "nnunetv2.preprocessing.resampling.default_resampling:compute_new_shape": "old_shape old_spacing new_spacing",
    "nnunetv2.preprocessing.resampling.default_resampling:determine_do_sep_z_and_axis":
        "force_separate_z current_spacing new_spacing separate_z_anisotropy_threshold",
    "nnunetv2.preprocessing.resampling.default_resampling:resample_data_or_seg_to_shape":
        "data new_shape current_spacing new_spacing is_seg order order_z force_separate_z "
        "separate_z_anisotropy_threshold",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.__init__": "verbose",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case":
        "image_files seg_file plans_manager configuration_manager dataset_json",
    # readers, labels, plans
    "nnunetv2.imageio.reader_writer_registry:determine_reader_writer_from_dataset_json":
        "dataset_json_content example_file verbose",
    "nnunetv2.imageio.reader_writer_registry:recursive_find_reader_writer_by_name": "rw_class_name",
    "nnunetv2.imageio.base_reader_writer:BaseReaderWriter.read_images": "image_fnames",
    "nnunetv2.imageio.base_reader_writer:BaseReaderWriter.read_seg": "seg_fname",
    "nnunetv2.imageio.base_reader_writer:BaseReaderWriter.write_seg": "seg output_fname properties",
    "nnunetv2.utilities.utils:get_filenames_of_train_images_and_targets": "raw_dataset_folder dataset_json",
    "nnunetv2.utilities.label_handling.label_handling:LabelManager.__init__": "label_dict regions_class_order",
    "nnunetv2.utilities.label_handling.label_handling:LabelManager.convert_probabilities_to_segmentation":
        "predicted_probabilities",
    f"{PLANS}:PlansManager.get_label_manager": "dataset_json",
    f"{PLANS}:ConfigurationManager.__init__": "configuration_dict",
}

# a function or method -> names that its code must look up: those we bind for the call, and hooks that it must reach
LOOKS_UP = {
    f"{TRAINER}.perform_actual_validation": "nnUNetPredictor manual_initialization export_prediction_from_logits "
                                            "predict_sliding_window_return_logits multiprocessing get_context Pool "
                                            "starmap_async",
    "nnunetv2.evaluation.accumulate_cv_results:accumulate_cv_results": "nnUNet_raw nnUNet_preprocessed",
    f"{PREDICTOR}.predict_from_files":
        "_internal_get_data_iterator_from_lists_of_filenames predict_from_data_iterator",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case_npy":
        "resampling_fn_data resampling_fn_seg crop_to_nonzero",
    f"{PREDICTOR}.initialize_from_trained_model_folder":
        "recursive_find_trainer_class_by_name build_network_architecture",
    "nnunetv2.evaluation.evaluate_predictions:save_summary_json": "save_json",
    "nnunetv2.evaluation.evaluate_predictions:compute_metrics_on_folder": "multiprocessing get_context Pool starmap",
    f"{TRAINER}.get_dataloaders": "NonDetMultiThreadedAugmenter get_training_transforms",
    f"{TRAINER}.get_training_transforms": "GaussianBlurTransform",
    f"{TRAINER}.on_train_start": "get_dataloaders save_json",
    f"{TRAINER}.on_epoch_end": "plot_progress_png save_checkpoint",
    f"{AUGMENTER}._start": "producer results_loop",
    f"{AUGMENTER}.__next__": "_start",
    f"{TRAINER}.initialize": "build_network_architecture configure_optimizers _build_loss",
    f"{PLANNER}.get_plans_for_configuration": "static_estimate_VRAM_usage",
    f"{PLANNER}.plan_experiment": "get_plans_for_configuration save_plans",
    f"{PLANNING}:plan_experiment_dataset": "plan_experiment",
}

# attributes of nnU-Net's classes that we read
ATTRIBUTES = {
    f"{PLANS}:ConfigurationManager": "patch_size batch_size configuration data_identifier network_arch_init_kwargs "
                                     "preprocessor_class spacing resampling_fn_probabilities "
                                     "resampling_fn_data resampling_fn_seg",
    PLANNER: "UNet_reference_val_2d UNet_reference_val_3d UNet_reference_val_corresp_bs_2d UNet_vram_target_GB "
             "UNet_reference_val_corresp_bs_3d UNet_reference_val_corresp_GB",
    f"{PLANS}:PlansManager": "image_reader_writer_class plans dataset_name transpose_forward transpose_backward "
                             "original_median_spacing_after_transp",
    "nnunetv2.utilities.label_handling.label_handling:LabelManager":
        "all_labels foreground_labels foreground_regions has_regions has_ignore_label ignore_label "
        "num_segmentation_heads apply_inference_nonlin",
}

# below the data set's folder of nnUNet_preprocessed, and below a model's folder
PREPROCESSED_FILES = ("dataset.json", "dataset_fingerprint.json", "LDSegPlans.json", "splits_final.json",
                      "gt_segmentations/case_00.nii.gz", "LDSegPlans_3d_fullres/case_00.b2nd",
                      "LDSegPlans_3d_fullres/case_00_seg.b2nd", "LDSegPlans_3d_fullres/case_00.pkl")
MODEL_FILES = ("dataset.json", "dataset_fingerprint.json", "plans.json", "fold_0/checkpoint_final.pth",
               "fold_0/checkpoint_best.pth", "fold_0/progress.png", "fold_0/debug.json",
               "fold_0/validation/summary.json")
PLANS_KEYS = ("dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward",
              "configurations", "experiment_planner_used", "label_manager", "original_median_spacing_after_transp")
CONFIGURATION_KEYS = ("data_identifier", "batch_size", "patch_size", "spacing", "architecture",
                      "preprocessor_name", "batch_dice")


def find(name):
    module, _, path = name.partition(":")
    found = import_module(module)
    for part in path.split("."):
        assert hasattr(found, part), f"nnU-Net {version('nnunetv2')} has no {name} ({part} is missing)"
        found = getattr(found, part)
    return found


def code_names(function):
    """Every name that the code of a function looks up, nested functions and comprehensions included."""
    codes, names = [inspect.unwrap(function).__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return names


def test_the_version_is_one_that_we_ask_for():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    wanted, = (r for r in map(Requirement, setup["options"]["install_requires"].split()) if r.name == "nnunetv2")
    assert wanted.specifier.contains(version("nnunetv2"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    expected = PARAMETERS[name].split()
    actual = [p for p in inspect.signature(find(name)).parameters if p != "self"]
    missing = [p for p in expected if p not in actual]
    assert not missing, f"{name} has lost {missing}; it takes {actual}"
    assert [p for p in actual if p in expected] == expected, f"{name} takes {actual}, in another order than {expected}"


@pytest.mark.parametrize("name", [f"{TRAINER}.__init__", f"{PREDICTOR}.__init__", f"{PLANNER}.__init__"])
def test_constructors_that_we_override_have_nothing_new(name):
    assert [p for p in inspect.signature(find(name)).parameters if p != "self"] == PARAMETERS[name].split()


@pytest.mark.parametrize("name", [f"{TRAINER}.build_network_architecture",
                                  "nnunetv2.inference.export_prediction:export_prediction_from_logits",
                                  "nnunetv2.evaluation.accumulate_cv_results:accumulate_cv_results"])
def test_what_we_pass_by_position_comes_first(name):
    expected = PARAMETERS[name].split()
    assert [p for p in inspect.signature(find(name)).parameters if p != "self"][:len(expected)] == expected


@pytest.mark.parametrize("size", ["M", "L", "XL"])
def test_residual_planners_plan_blocks_per_stage(size):
    planner = find("nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners:"
                   f"nnUNetPlannerResEnc{size}")
    assert issubclass(planner, find(PLANNER))
    constants = [c for c in planner.get_plans_for_configuration.__code__.co_consts if isinstance(c, tuple)]
    assert any("n_blocks_per_stage" in c for c in constants)


@pytest.mark.parametrize("name", LOOKS_UP)
def test_hooks_are_reached(name):
    missing = set(LOOKS_UP[name].split()) - code_names(find(name))
    assert not missing, f"{name} no longer looks up {sorted(missing)}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name):
    cls = find(name)
    known = set(dir(cls)) | code_names(cls.__init__)
    missing = [a for a in ATTRIBUTES[name].split() if a not in known]
    assert not missing, f"{name} has lost {missing}"


def test_files_of_a_data_set_and_of_a_model(small_world):
    for folder, files in ((small_world["preprocessed"], PREPROCESSED_FILES), (small_world["model"], MODEL_FILES)):
        missing = [file for file in files if not (folder / file).exists()]
        assert not missing, f"{missing} are not in {folder}; there are {sorted(p.name for p in folder.iterdir())}"


def test_keys_of_the_plans(small_world):
    plans = load_json(str(small_world["model"] / "plans.json"))
    assert not set(PLANS_KEYS) - set(plans)
    assert not set(CONFIGURATION_KEYS) - set(plans["configurations"]["3d_fullres"])


def test_what_an_export_goes_back_by(small_world):
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    folder = str(small_world["preprocessed"] / "LDSegPlans_3d_fullres")
    image, labels, previous, properties = infer_dataset_class(folder)(folder).load_case("case_00")
    assert image.shape == labels.shape == (1, 14, 18, 16) and previous is None
    assert {"spacing", "bbox_used_for_cropping", "shape_before_cropping",
            "shape_after_cropping_and_before_resampling"} <= set(properties)


def test_what_a_report_reads(small_world):
    """Of a validation the counts and the probabilities, of a checkpoint the curves."""
    fold = small_world["model"] / "fold_0"
    case, *_ = load_json(str(fold / "validation" / "summary.json"))["metric_per_case"]
    assert {"prediction_file", "metrics"} <= set(case) and set(case["metrics"]) == {"1", "2"}
    assert {"Dice", "n_ref", "n_pred"} <= set(case["metrics"]["1"])
    with np.load(fold / "validation" / "case_00.npz") as archive:
        assert archive["probabilities"].shape == (3, 14, 18, 16)
    logging = torch.load(fold / "checkpoint_final.pth", weights_only=True)["logging"]
    for name in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs", "epoch_start_timestamps",
                 "epoch_end_timestamps"):
        assert len(logging[name]) == 1, name


def test_names_of_models_are_split_at_two_underscores():
    convert = find("nnunetv2.utilities.file_path_utilities:convert_identifier_to_trainer_plans_config")
    assert tuple(convert("LDSegTrainer__LDSegPlans__3d_fullres")) == ("LDSegTrainer", "LDSegPlans", "3d_fullres")


def test_the_logger_takes_series_of_ours(tmp_path):
    logger = find("nnunetv2.training.logging.nnunet_logger:MetaLogger")(str(tmp_path), False)
    logger.local_logger.my_fantastic_logging["ours"] = []
    logger.log("ours", 0.5, 0)
    assert logger.get_checkpoint()["ours"] == [0.5]


def test_trainers_are_found_below_the_external_folders(monkeypatch, tmp_path):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    (tmp_path / "users.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class UsersTrainer(nnUNetTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    search = find("nnunetv2.utilities.find_objects:recursive_find_trainer_class_by_name")
    assert issubclass(search("UsersTrainer"), nnUNetTrainer)
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        search("NobodysTrainer")
