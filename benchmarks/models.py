"""Trained models of any side, ready to predict, and what a prediction of theirs scores."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from peers import SIDES, in_16_bits, register

from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.inference.predictor import LDSegPredictor


def results_of(minutes: float, results: Path) -> Path:
    """Where the models of one budget lie, beside nnU-Net's own results and never among them."""
    return results / "benchmarks" / f"{minutes:g}min"


def validation_cases(dataset: str, fold: int) -> list[str]:
    splits = Path(os.environ["nnUNet_preprocessed"]) / maybe_convert_to_dataset_name(dataset) / "splits_final.json"
    return sorted(json.loads(splits.read_text())[fold]["val"])


@dataclass(frozen=True)
class Prediction:
    segmentation: np.ndarray
    seconds: float  # of the network alone


class Model:
    """One trained side on raw images.

    Args:
        side: of `peers.SIDES`.
        results: folder of the budget's models.
        samples, steps: of ours; the plans' where None.
    """

    def __init__(self, side: str, dataset: str, fold: int, results: Path, *, mirroring: bool = False,
                 samples: int | None = None, steps: int | None = None):
        register()
        common: dict[str, Any] = {"use_mirroring": mirroring, "perform_everything_on_device": torch.cuda.is_available(),
                                  "device": torch.device("cuda" if torch.cuda.is_available() else "cpu"),
                                  "allow_tqdm": False}
        self.predictor = (LDSegPredictor(**common, samples=samples, steps=steps) if SIDES[side].is_ours
                          else nnUNetPredictor(**common))
        with redirect_stdout(StringIO()):
            self.predictor.initialize_from_trained_model_folder(
                str(results / maybe_convert_to_dataset_name(dataset) / SIDES[side].folder), [fold],
                "checkpoint_final.pth")
        self.precision = in_16_bits if SIDES[side].is_in_16_bits else nullcontext
        self.preprocessor = self.predictor.configuration_manager.preprocessor_class(verbose=False)

    def predict(self, image: np.ndarray, properties: dict) -> Prediction:
        """(C, z, y, x) as the reader gives it -> (z, y, x) in the same geometry."""
        p = self.predictor
        properties = dict(properties)
        data, _, properties = self.preprocessor.run_case_npy(image, None, properties, p.plans_manager,
                                                             p.configuration_manager, p.dataset_json)
        started = perf_counter()
        with self.precision():
            logits = p.predict_logits_from_preprocessed_data(torch.from_numpy(np.asarray(data)))
        seconds = perf_counter() - started
        return Prediction(convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, p.plans_manager, p.configuration_manager, p.label_manager, properties), seconds)


def dice_per_class(segmentation: np.ndarray, truth: np.ndarray, labels: list[int]) -> list[float]:
    """Dice of each label; NaN where neither holds it."""
    return [dice(segmentation == label, truth == label, True) if (truth == label).any() or (segmentation == label).any()
            else float("nan") for label in labels]
