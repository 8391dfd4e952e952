"""Images in memory: a predictor made from a trained model in one call, and arrays in, arrays out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ldseg_auto.devices import select_device
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PLANS,
    DEFAULT_TRAINER,
    RESULTS,
    Fold,
    require_environment,
)
from ldseg_auto.inference.array_input import ArrayInput, ModelInput, has_mm, read_array
from ldseg_auto.inference.ensemble import average_in_memory
from ldseg_auto.inference.export import ExportOptions, InImage, in_image, maps_and_figures
from ldseg_auto.inference.file_predictor import FilePredictor
from ldseg_auto.inference.preprocessing import preprocess_array
from ldseg_auto.inference.run import Models, choose_model, choose_models, require_in_range
from ldseg_auto.inference.volumes import VolumeInMemory

Method = TypeVar("Method", bound=Callable[..., Any])
Predictor = TypeVar("Predictor", bound="ArrayPredictor")


def one_thread_at_a_time(method: Method) -> Method:
    """A method of an `ArrayPredictor` that holds its lock: the folds take turns in one network."""
    @wraps(method)
    def locked(predictor: ArrayPredictor, *arguments: Any, **options: Any) -> Any:
        with predictor.lock:
            return method(predictor, *arguments, **options)
    return locked  # type: ignore[return-value]


@dataclass(frozen=True)
class Prediction:
    """Of one image, in its own grid: (z, y, x), or (y, x) where the image came as (channels, y, x).

    Args:
        segmentation: labels, uint8 or, of more than 254, uint16.
        probabilities: (K, ...), float32; of labels with the background first, or of regions. None unless asked for.
        maps: of uncertainty, float32, by the names under which `ldseg_predict --uncertainty` writes them: "entropy",
            "mutual_information" (and "mutual_information_samples", "mutual_information_models") in nats, "std_CLASS".
            Empty unless asked for.
        volumes: what CASE.json of `ldseg_predict --uncertainty` holds: "unit", "samples" and "classes" with "volume",
            "interval_90", "expected_dice", ... of each. Empty unless asked for.
    """

    segmentation: np.ndarray
    probabilities: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    volumes: Mapping[str, Any] = field(default_factory=dict)


class ArrayPredictor(FilePredictor):
    """What `LDSegPredictor` does with images in memory.

    Several threads may call one predictor: a lock lets one at a time to the network, while others prepare their image
    or bring a result back to the image's grid. Predictors do not wait for each other, but load their models in turn.
    """

    _sizes: Any
    list_of_parameters: list[dict[str, torch.Tensor]]

    def __init__(self, *arguments: Any, **options: Any):
        self.lock = threading.RLock()
        self._network: Any = None
        self._partners: list[ArrayPredictor] = []  # other configurations, averaged with this one
        super().__init__(*arguments, **options)

    @classmethod
    def from_model(cls: type[Predictor], dataset_or_folder: str | int | Path, configuration: str | None = None,
                   folds: Sequence[Fold] | None = None, *, trainer_name: str = DEFAULT_TRAINER,
                   plans_name: str = DEFAULT_PLANS, checkpoint_name: str = DEFAULT_CHECKPOINT,
                   device: str | torch.device | None = None, tile_step_size: float = 0.5,
                   mirroring: bool | None = None, samples: int | None = None, steps: int | None = None,
                   eta: float | None = None, seed: int = 0, use_choice: bool = True, whole_volume: bool = False,
                   progress_bar: bool = False) -> Predictor:
        """A predictor with a trained model, by the same defaults as `ldseg_predict`.

        Args:
            dataset_or_folder: name or ID of a data set in nnUNet_results; or the folder of one model,
                TRAINER__PLANS__CONFIGURATION, wherever it lies, which needs no environment variable.
            configuration: None takes what `ldseg_find_best_configuration` chose (of several the probabilities are
                averaged), or else the one that is trained, 3d_fullres if there are several.
            folds: None takes those that are trained.
            trainer_name, plans_name: of a data set's model.
            device: "cuda", "cpu", "mps", or torch's, such as torch.device("cuda:1"); None takes the GPU if there is
                one. Named by a string or None it also sets torch's number of threads, as the commands do.
            tile_step_size: distance of tiles as a share of the patch, above 0 up to 1.
            mirroring, samples, steps, eta: of the sampler; None takes what was chosen, or else the plans' default with
                mirroring.
            seed: of the samples' noise.
            use_choice: use what `ldseg_find_best_configuration` chose.
            whole_volume: denoise the latent of the whole image at once.

        Raises:
            LDSegError: anything asked for does not exist, cannot be opened, or needs more than an image.
        """
        require_in_range(tile_step_size, samples, steps, eta, seed)
        asked = {"use_mirroring": mirroring, "samples": samples, "steps": steps, "eta": eta}
        folder = Path(str(dataset_or_folder))
        if (folder / "plans.json").is_file():
            _require_configuration(folder, configuration)
            models = choose_model(folder.resolve(), folds, checkpoint_name, asked, use_choice)
        else:
            require_environment(RESULTS)
            models = choose_models(str(dataset_or_folder), None if configuration is None else [configuration],
                                   trainer_name, plans_name, folds, checkpoint_name, asked, use_choice)
        return cls._loaded(models, checkpoint_name, tile_step_size=tile_step_size, seed=seed, allow_tqdm=progress_bar,
                           whole_volume=whole_volume,
                           device=device if isinstance(device, torch.device) else select_device(device))

    @classmethod
    def _loaded(cls: type[Predictor], models: Models, checkpoint_name: str, **options: Any) -> Predictor:
        loaded = []
        for model, folds in models.folds.items():
            predictor = cls(**options, **models.samplers[model])
            predictor.initialize_from_trained_model_folder(str(model), tuple(folds), checkpoint_name)
            _require_no_previous_stage(predictor)
            loaded.append(predictor)
        first, *others = loaded
        first.export = ExportOptions(**vars(models.finish))
        first._partners = [*others]
        return first

    def predict(self, image: np.ndarray | torch.Tensor, spacing_mm: Sequence[float] | None = None, *,
                probabilities: bool = False, uncertainty: bool = False) -> Prediction:
        """Segment an image, bit for bit as `ldseg_predict` segments it from a file.

        Args:
            image: (channels, z, y, x), of 2D models also (channels, y, x): array or tensor, on any device, of any real
                type and layout; it stays as it is. Axes as the model's reader returns them: of a model trained by
                NibabelIOWithReorient or SimpleITKIOWithReorient in the orientation RAS.
            spacing_mm: in the order of the image's axes, without the channels; left out for pictures (PNG, BMP, ...).
            probabilities: return them too.
            uncertainty: return maps, and volumes with intervals.

        Raises:
            LDSegError: the model cannot take the image, or the predictor is closed.
        """
        labels, members = self._opened()
        given = read_array(image, spacing_mm, ModelInput(
            tuple(map(str, self.dataset_json["channel_names"].values())),
            len(self.configuration_manager.patch_size), has_mm(self.plans_manager.plans)))
        options = replace(self.export, maps=uncertainty, spread=False)
        if len(members) == 1:
            made, properties = self._in_image(given, probabilities, options)
        else:
            parts = [member._in_image(given, True, ExportOptions(spread=uncertainty)) for member in members]
            made, properties = average_in_memory([part for part, _ in parts], labels, options), parts[0][1]
        maps, volumes = (maps_and_figures(made, labels, properties, self.dataset_json, options) if uncertainty
                         else ({}, {}))
        where = (..., 0, slice(None), slice(None)) if given.flat else ...
        return Prediction(made.segmentation[where],
                          made.probabilities[where] if probabilities and made.probabilities is not None else None,
                          {name: values[where] for name, values in maps.items()}, volumes)

    def _opened(self) -> tuple[Any, list[ArrayPredictor]]:
        """The label manager, and all whose mean is the prediction."""
        with self.lock:
            assert self.network is not None  # or has raised
            _require_no_previous_stage(self)
            return self.label_manager, [self, *self._partners]

    def _in_image(self, given: ArrayInput, keep_probabilities: bool, options: ExportOptions) -> tuple[InImage, dict]:
        """This model's part, and nnU-Net's properties of the image."""
        data, properties = preprocess_array(given.values, given.spacing_mm, self.plans_manager,
                                            self.configuration_manager, self.dataset_json, self.verbose_preprocessing)
        with self.lock:
            working = copy(self)  # another call may want other options
            working.export = options
            prediction = VolumeInMemory.create(working.shape_of_prediction(data.shape))
            voxels = working.predict_to(torch.from_numpy(data.mapped()), prediction)
            self._sizes = working._sizes
            del working  # with the lock: whoever closes the predictor waits for it, then no one else holds the weights
        return in_image(prediction, voxels, properties, self.configuration_manager, self.plans_manager,
                        self.dataset_json, keep_probabilities, options), properties

    @property
    def network(self) -> Any:
        """nnU-Net's attribute.

        Raises:
            LDSegError: there is none.
        """
        if self._network is None:
            raise LDSegError("The predictor holds no model: none was loaded, or it is closed.",
                             "Make another one: LDSegPredictor.from_model(DATASET).")
        return self._network

    @network.setter
    def network(self, network: Any) -> None:
        self._network = network

    def close(self) -> None:
        """Free the weights and the device's memory, as soon as a prediction that another thread makes is done. Calling
        it again is harmless."""
        with self.lock:
            self.network = None
            self.list_of_parameters = []
            partners, self._partners = self._partners, []
        for partner in partners:
            partner.close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self: Predictor) -> Predictor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _require_configuration(folder: Path, configuration: str | None) -> None:
    found = folder.resolve().name.split("__")[-1]
    if configuration not in (None, found):
        raise LDSegError(f"{folder} holds the model of {found}, not of {configuration}.",
                         "Give the folder alone, or the data set and the configuration.")


def _require_no_previous_stage(predictor: FilePredictor) -> None:
    previous = predictor.configuration_manager.previous_stage_name
    if previous is not None:
        raise LDSegError(f"The model also takes the segmentation of {previous}, which arrays cannot bring yet.",
                         "Predict from files (ldseg_predict), or choose another configuration.")
