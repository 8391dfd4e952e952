"""Putting the page together from what lies in a trained model's folder and in nnU-Net's other two."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from ldseg_auto.folders import DEFAULT_TRAINER, PREPROCESSED, RAW, read_json
from ldseg_auto.inference.choice import FILE_NAME as CHOICE_NAME
from ldseg_auto.inference.choice import load_choice
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.previous_stage import handed_on, read_handed_on
from ldseg_auto.inference.search import RULE
from ldseg_auto.networks.ldseg_net import unwrapped
from ldseg_auto.planners.report import configuration_sections, data_sections
from ldseg_auto.report import film, page, reliability
from ldseg_auto.report.cases import Case, class_names, find_cases, worst_and_best
from ldseg_auto.report.choice_page import rows_table
from ldseg_auto.report.model import Model
from ldseg_auto.report.parts import paragraph
from ldseg_auto.report.pictures import Palette, palette
from ldseg_auto.report.training import curves_section, signs_section
from ldseg_auto.report.volumes import highest_entropy
from ldseg_auto.report.walk import Walk, walk
from ldseg_auto.trainers import checkpoint


def build(model: Model, file: Path, number: int, device: torch.device, left_out: Sequence[str]) -> None:
    """Write the page.

    Args:
        file: is replaced when the page is complete.
        number: of worst and of best cases that are shown.
        device: of the reverse diffusion.
        left_out: sentences on what the page does not hold; more are added as they are found.

    Raises:
        LDSegError: a file of the model is damaged. (A case whose files are damaged is left out.)
    """
    training = _training(model)
    manager = PlansManager(model.plans)
    classes = list(class_names(model.description["labels"]).values())
    colours = palette(model.description["labels"])
    raw, without_images = _raw_files(model)
    cases, without_validation = find_cases(model, raw)
    worst, best = worst_and_best(cases, number)
    labels = manager.get_label_manager(model.description)
    found = walk(cases, _alternating(worst, best), manager.image_reader_writer_class(), labels, colours)
    sections = {
        "summary": page.summary_section(cases, classes), "cases": page.cases_section(cases),
        "worst-best": page.worst_best_section(worst, best, any(case.mutual_information for case in cases)),
        "viewer": page.viewer_section(found, cases),
        "reliability": _reliability(model, found, cases), "training": training,
        "film": _film(model, [cases[i] for i in found.slices], device, colours),
        "plans": [*_plans(model), *_choice(model)]}
    sentences = [*left_out, *(without_images or _without_images(cases)), *without_validation,
                 *_limits_of(model, cases), *found.left_out]
    most_entropy = highest_entropy(labels.num_segmentation_heads, labels.has_regions)
    page.write_page(file, f"{model.dataset}, {model.configuration}", _subtitle(model), sentences, sections,
                    page.payload(cases, classes, found, worst, best, colours, most_entropy), found)


def _raw_files(model: Model) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The files of every training case, as far as they are there, and a sentence if only the truth is."""
    raw = os.environ.get(RAW)
    folder = Path(raw or "") / model.dataset
    description = read_json(folder / "dataset.json") if raw and (folder / "dataset.json").is_file() else {}
    ending = model.description["file_ending"]
    if "dataset" in description:
        return get_filenames_of_train_images_and_targets(str(folder), description), []
    kept = {path.name.removesuffix(ending): {"images": [], "label": path}
            for path in sorted((_preprocessed(model) / "gt_segmentations").glob(f"*{ending}"))}
    if description and (folder / "imagesTr").is_dir():
        return {**kept, **_split_files(folder, ending)}, []
    return (kept,
            [f"{f'{RAW} holds no images of {model.dataset}' if raw else f'{RAW} is not set'}: pictures, the viewer and "
             "the reverse diffusion, which need them, are left out."])


def _split_files(folder: Path, ending: str) -> dict[str, dict[str, Any]]:
    """As nnU-Net's function finds them, which starts a dozen processes to do so; a case that lacks its image, or one of
    its channels, has its label alone."""
    files: dict[str, dict[str, Any]] = {path.name.removesuffix(ending): {"images": [], "label": path}
                                        for path in sorted((folder / "labelsTr").glob(f"*{ending}"))}
    for image in sorted((folder / "imagesTr").glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
        name = image.name[:-len(f"_0000{ending}")]
        files.setdefault(name, {"images": [], "label": folder / "labelsTr" / f"{name}{ending}"})["images"].append(image)
    channels = max((len(each["images"]) for each in files.values()), default=0)
    return {name: each if len(each["images"]) == channels else {**each, "images": []} for name, each in files.items()}


def _without_images(cases: Sequence[Case]) -> list[str]:
    """A sentence on cases whose truth is there, but not their image."""
    names = [case.name for case in cases if case.truth is not None and not case.images]
    return [f"{len(names)} of {len(cases)} cases, such as {names[0]}, lack an image or one of its channels in {RAW}: "
            "they have no pictures."] if names else []


def _preprocessed(model: Model) -> Path:
    """The data set's folder in nnUNet_preprocessed; it need not be there."""
    return Path(os.environ.get(PREPROCESSED) or "no folder") / model.dataset


def _limits_of(model: Model, cases: Sequence[Case]) -> list[str]:
    """A sentence each on cases without truth, without probabilities, on other channels and on fold all."""
    sentences = []
    unknown = [case.name for case in cases if case.truth is None]
    if unknown:
        sentences.append(f"{len(unknown)} of {len(cases)} cases, such as {unknown[0]}, have no truth in {RAW} or "
                         f"{PREPROCESSED}: they have numbers only.")
    gone = [case.name for case in cases if case.truth is not None and not case.prediction.is_file()]
    if gone:
        sentences.append(f"The segmentations of {len(gone)} of {len(cases)} cases, such as {gone[0]}, are not there "
                         "(an imported model comes without): they have numbers only.")
    bare = list(dict.fromkeys(case.fold for case in cases if case.probabilities is None and case.prediction.is_file()))
    if bare:
        sentences.append(f"Fold {', '.join(map(str, bare))} was validated without probabilities, so uncertainty and "
                         f"reliability lack cases: {model.validation_command(bare)} writes them.")
    channels = list(model.description["channel_names"].values())
    if len(channels) > 1 and model.plans["image_reader_writer"] != "NaturalImage2DIO":
        sentences.append(f"Pictures show the first of {len(channels)} channels, {channels[0]}.")
    if "all" in model.folds:
        sentences.append("Fold all is validated on cases that it was trained on: nothing here tells how it does on new "
                         "ones.")
    return sentences


def _training(model: Model) -> list[str]:
    logging, signs = {}, {}
    for fold in model.folds:
        folder = model.folder / f"fold_{fold}"
        content = checkpoint.load(str(folder / model.checkpoint_name), torch.device("cpu"))
        if "logging" in content:
            logging[fold] = content["logging"]
        if (folder / "latent_signs.json").is_file():
            signs[fold] = read_json(folder / "latent_signs.json")
    untold = [str(fold) for fold in model.folds if fold not in logging]
    return [*(curves_section(logging) if logging else ()), *signs_section(signs),
            *([paragraph(f"The checkpoint of fold {', '.join(untold)} does not hold the course of its training (an "
                         "imported one does not).")] if untold else ())]


def _reliability(model: Model, found: Walk, cases: Sequence[Case]) -> list[str]:
    if found.counted:
        return reliability.section(found.bins, found.counted, model.has_regions)
    if not any(case.prediction.is_file() for case in cases):
        return [paragraph("There are neither segmentations nor probabilities to compare with the truth.")]
    return [paragraph("There are no probabilities to compare with the truth: "
                      f"{model.validation_command(model.folds)} writes them.")]


def _film(model: Model, cases: Sequence[Case], device: torch.device, colours: Palette) -> list[str]:
    """Of the case in the middle: neither the best nor the worst is like most others."""
    if not cases:
        return [paragraph("There is no image to sample: see what is left out.")]
    case = sorted(cases, key=lambda each: (each.mean_dice or 0, each.name))[len(cases) // 2]
    return _sampled(model, case, device, colours)


def _sampled(model: Model, case: Case, device: torch.device, colours: Palette) -> list[str]:
    predictor = LDSegPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model.folder), (case.fold,), model.checkpoint_name)
    config = unwrapped(predictor.network).config
    folder = handed_on(model.folder, model.plans, model.configuration)
    first_stage = None if folder is None else read_handed_on(folder, case.name)
    if folder is not None and first_stage is None:
        return [paragraph(f"The reverse diffusion needs the first stage's segmentation of {case.name}, which is not in "
                          f"{folder.parent.parent.name}.")]
    return film.section(film.film_of(predictor, case, first_stage), case, config.sampler_steps, config.sampler_samples,
                        colours)


def _plans(model: Model) -> list[str]:
    fingerprint = _read_if_there(model.folder / "dataset_fingerprint.json")
    labels = _read_if_there(_preprocessed(model) / "label_fingerprint.json")
    sections = [*data_sections(model.plans, fingerprint, labels),
                *configuration_sections(model.plans, model.configuration)]
    absent = [f"{name} is not there: nothing on the {what}."
              for name, what, content in ((f"dataset_fingerprint.json in {model.folder.name}", "images", fingerprint),
                                          (f"label_fingerprint.json in {PREPROCESSED}", "labels", labels))
              if content is None]
    if model.trainer != DEFAULT_TRAINER:
        absent.append(f"{model.trainer} may have replaced part of what is planned.")
    return [*sections, *map(paragraph, absent)]


def _choice(model: Model) -> list[str]:
    """How ldseg_predict samples it, with the samplers that were tried."""
    choice = load_choice(model.folder)
    if choice is None:
        return [paragraph("ldseg_predict uses the plans' sampler: ldseg_find_best_configuration has not been run.")]
    chosen = f"Chosen by ldseg_find_best_configuration: {choice.sampler}; temperature {choice.finish.temperature:.2f}."
    evidence = read_json(model.folder / CHOICE_NAME).get("evidence")
    try:
        tried = rows_table(evidence["search"])
    except (KeyError, TypeError, IndexError, AttributeError):  # written by others: only the choice itself was checked
        return ["<h3>Prediction</h3>", paragraph(chosen)]
    return ["<h3>Prediction</h3>", paragraph(f"{chosen} {RULE} Measured on cross-validation cases:"), tried]


def _read_if_there(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _alternating(worst: Sequence[int], best: Sequence[int]) -> list[int]:
    """The worst, the best, the second worst, ...: what fits into the viewer shows both ends."""
    pairs = [[*worst[i:i + 1], *best[i:i + 1]] for i in range(max(len(worst), len(best)))]
    return [index for pair in pairs for index in pair]


def _subtitle(model: Model) -> str:
    return (f"Trainer {model.trainer}, plans {model.plans['plans_name']}, configuration {model.configuration}, "
            f"fold{'s' * (len(model.folds) > 1)} {', '.join(map(str, model.folds))}, {model.checkpoint_name}")
