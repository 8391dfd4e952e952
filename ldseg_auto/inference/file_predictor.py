"""What nnU-Net's predictor does with files and arrays, around a prediction that is computed by rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from ldseg_auto.inference.cases import predict_cases
from ldseg_auto.inference.export import ExportOptions, export_case
from ldseg_auto.inference.failures import CasesFailed
from ldseg_auto.inference.volumes import Volume, VolumeInMemory
from ldseg_auto.networks.ldseg_net import unwrapped

PROBABILITY_FLOOR = 1e-6  # of logits that nnU-Net is handed


@dataclass(frozen=True)
class _Cases:
    """What nnU-Net takes for an iterator: OUT/CASE and its images, the processes that preprocess them, and of a
    cascade the first stage's segmentation of each."""

    images: dict[Path, list[str]]
    num_processes: int
    first_stage: dict[Path, str]


class FilePredictor(nnUNetPredictor):
    """nnU-Net's predictor whose cases go from file to file by `cases.predict_cases`.

    `predict_from_files` is nnU-Net's: it sorts out the names, writes down how it was called and hands the rest on.
    """

    export: ExportOptions

    @abstractmethod
    def predict_to(self, image: torch.Tensor, target: Volume) -> list[list[float]]:
        """Predict an image (C, z, y, x) into a volume; returns what `export.export_case` wants to know of the draws."""

    @abstractmethod
    def shape_of_prediction(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """What `predict_to` writes for an image (C, z, y, x)."""

    def _internal_get_data_iterator_from_lists_of_filenames(
            self, input_list_of_lists: list[list[str]], seg_from_prev_stage_files: list[str] | None,
            output_filenames_truncated: list[str] | None, num_processes: int) -> Any:
        """nnU-Net hands what this returns on to `predict_from_data_iterator`."""
        if output_filenames_truncated is None:
            return super()._internal_get_data_iterator_from_lists_of_filenames(
                input_list_of_lists, seg_from_prev_stage_files, output_filenames_truncated, max(1, num_processes))
        names = list(map(Path, output_filenames_truncated))
        first_stage = dict(zip(names, seg_from_prev_stage_files, strict=True)) if seg_from_prev_stage_files else {}
        return _Cases(dict(zip(names, input_list_of_lists, strict=True)), num_processes,
                      {name: file for name, file in first_stage.items() if file is not None})

    def predict_from_data_iterator(self, data_iterator: Any, save_probabilities: bool = False,
                                   num_processes_segmentation_export: int = default_num_processes) -> list[Any]:
        """As nnU-Net's; preprocessed cases of an iterator are written in this process.

        Raises:
            CasesFailed: some cases were not predicted; all others are written.
        """
        if isinstance(data_iterator, _Cases):
            cases = data_iterator.images
            failures = predict_cases(self, cases, save_probabilities, data_iterator.num_processes,
                                     num_processes_segmentation_export, data_iterator.first_stage)
            if failures:
                raise CasesFailed(failures, len(cases))
            return [None] * len(cases)
        return [self._predict_item(item, save_probabilities) for item in data_iterator]

    def predict_from_files_sequential(self, list_of_lists_or_source_folder: Any,
                                      output_folder_or_list_of_truncated_output_files: Any,
                                      save_probabilities: bool = False, overwrite: bool = True,
                                      folder_with_segs_from_prev_stage: str | None = None) -> Any:
        return self.predict_from_files(list_of_lists_or_source_folder, output_folder_or_list_of_truncated_output_files,
                                       save_probabilities, overwrite, 0, 0, folder_with_segs_from_prev_stage)

    def _predict_item(self, item: dict[str, Any], save_probabilities: bool) -> Any:
        data, properties = item["data"], item["data_properties"]
        if isinstance(data, str):  # nnU-Net's way to hand on what is too large for a pipe
            file, data = Path(data), torch.from_numpy(np.load(data))
            file.unlink()
        if item["ofile"] is not None:
            return self.predict_case(data, properties, item["ofile"], save_probabilities)
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            self.predict_logits_from_preprocessed_data(data), self.plans_manager, self.configuration_manager,
            self.label_manager, properties, save_probabilities)

    def predict_case(self, data: torch.Tensor, properties: dict, output_file_truncated: str,
                     save_probabilities: bool = False) -> None:
        """A preprocessed case, (C, z, y, x), to its files, in this process."""
        prediction = VolumeInMemory(np.zeros(self.shape_of_prediction(data.shape), np.float32))
        voxels = self.predict_to(data, prediction)
        export_case(prediction, voxels, properties, self.configuration_manager, self.plans_manager, self.dataset_json,
                    Path(output_file_truncated), save_probabilities, self.export)

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """(C, z, y, x) -> logits (K, z, y, x) of the folds' mean probabilities, float32, on the CPU."""
        network = unwrapped(self.network)
        prediction = np.zeros(self.shape_of_prediction(data.shape), np.float32)
        self.predict_to(data, VolumeInMemory(prediction))
        return network.logits(torch.from_numpy(prediction[:network.num_classes]), PROBABILITY_FLOOR)
