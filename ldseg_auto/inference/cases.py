"""Cases on their way from images to files: preprocessed ahead, predicted one by one, written behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ldseg_auto.inference.export import export_case
from ldseg_auto.inference.failures import Failure, failure_of
from ldseg_auto.inference.preprocessing import preprocess
from ldseg_auto.inference.staging import clean_part_folder, part_folder, remove_part_folder
from ldseg_auto.inference.volumes import VolumeOnDisk
from ldseg_auto.inference.workers import CaseWorkers, Outcome

if TYPE_CHECKING:
    from ldseg_auto.inference.file_predictor import FilePredictor


def predict_cases(predictor: FilePredictor, cases: Mapping[Path, Sequence[str]], save_probabilities: bool,
                  num_preprocessing: int, num_export: int,
                  first_stage: Mapping[Path, str] | None = None) -> list[Failure]:
    """Segment images and write what belongs to each.

    Args:
        cases: OUT/CASE and its images, one a channel.
        save_probabilities: write CASE.npz and CASE.pkl too.
        num_preprocessing, num_export: processes; 0 does the work in this one.
        first_stage: of a cascade, the file of each case's segmentation by the first stage.

    Returns:
        the cases of which nothing is written, and why.
    """
    failures: list[Failure] = []

    def failed(case: Path, step: str, error: BaseException) -> None:
        remove_part_folder(case)
        failures.append(failure_of(case.name, step, error, predictor.verbose))
        print(f"{case.name} failed: {failures[-1].cause}", flush=True)

    def note(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.error is not None:
                failed(outcome.case, "writing", outcome.error)

    try:
        with CaseWorkers(num_preprocessing) as readers, CaseWorkers(num_export) as writers:
            for number, outcome in enumerate(_preprocessed(predictor, cases, readers, first_stage or {}), 1):
                if outcome.error is not None:
                    failed(outcome.case, "preprocessing", outcome.error)
                    continue
                print(f"Predicting {outcome.case.name} ({number} of {len(cases)})", flush=True)
                try:
                    prediction = _predict(predictor, outcome.case, *outcome.result)
                except Exception as error:
                    failed(outcome.case, "prediction", error)
                    continue
                arguments = _export_of(predictor, outcome, prediction, save_probabilities)
                writers.submit(outcome.case, export_case, *arguments)
                note(writers.outcomes())
            while writers.at_work:
                note(writers.outcomes(wait_for_one=True))
    finally:
        for case in cases:
            remove_part_folder(case)
    return failures


def _preprocessed(predictor: FilePredictor, cases: Mapping[Path, Sequence[str]], readers: CaseWorkers,
                  first_stage: Mapping[Path, str]) -> Iterator[Outcome]:
    """Of each case the image in a file and nnU-Net's properties, or what went wrong; while one is predicted, as many
    others are prepared as there are processes."""
    waiting = deque(cases.items())

    def begin() -> None:
        while waiting and readers.free:
            case, images = waiting.popleft()
            readers.submit(case, _preprocess, case, images, predictor.plans_manager, predictor.configuration_manager,
                           predictor.dataset_json, predictor.verbose_preprocessing, first_stage.get(case))

    while waiting or readers.at_work:
        begin()
        outcomes = readers.outcomes(wait_for_one=True)
        if readers.has_processes:
            begin()  # goes on while the others are predicted
        yield from outcomes


def _preprocess(case: Path, images: Sequence[str], *arguments: Any) -> tuple[VolumeOnDisk, dict]:
    return preprocess(images, clean_part_folder(case) / "image", *arguments)


def _predict(predictor: FilePredictor, case: Path, image: VolumeOnDisk,
             _: dict) -> tuple[VolumeOnDisk, list[list[float]]]:
    """The mean of all draws in a file, and the voxels of each; the image's file is gone."""
    prediction = VolumeOnDisk.create(part_folder(case) / "prediction", predictor.shape_of_prediction(image.shape))
    voxels = predictor.predict_to(torch.from_numpy(image.mapped()), prediction)
    image.file.unlink()
    return prediction, voxels


def _export_of(predictor: FilePredictor, outcome: Outcome, prediction: tuple[VolumeOnDisk, list[list[float]]],
               save_probabilities: bool) -> tuple[Any, ...]:
    """The arguments of `export_case`."""
    return (*prediction, outcome.result[1], predictor.configuration_manager, predictor.plans_manager,
            predictor.dataset_json, outcome.case, save_probabilities, predictor.export)
