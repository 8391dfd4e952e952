"""LDSegPredictor: nnU-Net's predictor with posterior samples, averaged as probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from tqdm import tqdm

from ldseg_auto import nnunet_ext
from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.binding import bound
from ldseg_auto.inference.export import ExportOptions, export_prediction
from ldseg_auto.inference.noise import NoiseKey, noise_tile
from ldseg_auto.inference.tiling import Tile, padded_shape, tiles
from ldseg_auto.inference.uncertainty import spread_of, torch_entropy
from ldseg_auto.networks.ldseg_net import LDSegNet, unwrapped
from ldseg_auto.sharing.opening import require_openable, weights_only

_PROBABILITY_FLOOR = 1e-6  # of the exported log probabilities, which nnU-Net resamples
_MAX_IMAGES_PER_BATCH = 16
_LATENTS_PER_IMAGE = 4  # a latent takes a fraction of an image's memory: that many more go through the denoiser


@dataclass(frozen=True)
class _Draws:
    """Of all samples and mirrors of a fold: the mean of probabilities (K), and, where they are wanted, of their squares
    (K) and of their entropy; and each draw's share of the volume that its segmentation gives to each class."""

    mean: torch.Tensor
    voxels: list[list[float]]


class LDSegPredictor(nnUNetPredictor):
    """Segments with the mean of posterior samples, mirrors, tiles and folds.

    Args:
        samples, steps, eta: of the sampler; the plans' defaults where None.
        seed: the same seed gives the same probabilities; another seed another draw.
        export: what is done to a prediction on its way to the files; uncertainty maps among it.
        fold: what `manual_initialization` predicts with (keys its noise).
        All others: nnU-Net's.
    """

    def __init__(self, tile_step_size: float = 0.5, use_gaussian: bool = True, use_mirroring: bool = True,
                 perform_everything_on_device: bool = True,
                 device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
                 verbose: bool = False, verbose_preprocessing: bool = False, allow_tqdm: bool = True, *,
                 samples: int | None = None, steps: int | None = None, eta: float | None = None, seed: int = 0,
                 export: ExportOptions | None = None, fold: int | str = 0):
        # nnU-Net prints a warning where this is set without CUDA
        super().__init__(tile_step_size, use_gaussian, use_mirroring,
                         perform_everything_on_device and device.type == "cuda", device, verbose,
                         verbose_preprocessing, allow_tqdm)
        self.samples, self.steps, self.eta, self.seed = samples, steps, eta, seed
        self.export = export or ExportOptions()
        self._exporting = False
        self.folds: list[int | str] = [fold]

    def initialize_from_trained_model_folder(self, model_training_output_dir: str,
                                             use_folds: Sequence[int | str] | None,
                                             checkpoint_name: str = "checkpoint_final.pth") -> None:
        """As nnU-Net's, for any trainer that nnU-Net or `ldseg_auto` knows.

        Raises:
            LDSegError: no fold, a damaged checkpoint, code that is not trusted, or a model that is not LDSegNet.
        """
        if use_folds is None:
            use_folds = sorted(self.auto_detect_available_folds(model_training_output_dir, checkpoint_name))
        self.folds = [use_folds] if isinstance(use_folds, (str, int)) else list(use_folds)
        if not self.folds:
            raise LDSegError(f"{model_training_output_dir} holds no fold with {checkpoint_name}.",
                             "Train a fold first: ldseg_train DATASET FOLD.")
        require_openable(Path(model_training_output_dir), self.folds, checkpoint_name)
        nnunet_ext.register()
        with weights_only():  # nnU-Net's torch.load would run what a checkpoint holds
            super().initialize_from_trained_model_folder(model_training_output_dir, self.folds, checkpoint_name)
        if not isinstance(unwrapped(self.network), LDSegNet):
            raise LDSegError(f"{model_training_output_dir} holds a {type(self.network).__name__}, not an LDSegNet.",
                             "Predict it with nnUNetv2_predict.")

    def predict_from_data_iterator(self, *args: Any, **kwargs: Any) -> Any:
        with self._export():
            return super().predict_from_data_iterator(*args, **kwargs)

    @wraps(nnUNetPredictor.predict_from_files_sequential)  # nnU-Net reads the signature of what it is called by
    def predict_from_files_sequential(self, *args: Any, **kwargs: Any) -> Any:
        with self._export():
            return super().predict_from_files_sequential(*args, **kwargs)

    @contextmanager
    def _export(self) -> Iterator[None]:
        """nnU-Net exports by a function of its module; inside the block that is ours."""
        with bound(predict_from_raw_data, export_prediction_from_logits=export_prediction):
            self._exporting = True
            try:
                self._export_with(None)
                yield
            finally:
                self._exporting = False

    def _export_with(self, sample_voxels: list[list[float]] | None) -> None:
        """For the next case: nnU-Net hands its export on to other processes, with nothing of ours but this function."""
        self._exporter = partial(export_prediction, options=self.export, sample_voxels=sample_voxels)
        if self._exporting:
            predict_from_raw_data.export_prediction_from_logits = self._exporter

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """(C, z, y, x) -> logits (K, z, y, x) of the folds' mean probabilities, float32, on the CPU; for maps of
        uncertainty their spread (K + 2, z, y, x) behind them."""
        network = unwrapped(self.network)
        mean, entropy_of_models, voxels = torch.zeros(()), torch.zeros(()), []
        regions = network.config.output == "sigmoid"
        for fold, parameters in zip(self.folds, self.list_of_parameters, strict=True):
            network.load_state_dict(parameters)
            draws = self._mean_over_draws(data, fold)
            mean = mean + draws.mean / len(self.folds)
            if self._wants_spread:
                entropy = torch_entropy(draws.mean[:network.num_classes], regions)
                entropy_of_models = entropy_of_models + entropy / len(self.folds)
                voxels += draws.voxels
        logits = network.logits(mean[:network.num_classes], _PROBABILITY_FLOOR)
        if not self._wants_spread:
            return logits
        self._export_with(voxels)
        probabilities, squares, (entropy_of_draws,) = mean.split([network.num_classes, network.num_classes, 1])
        return torch.cat([logits, spread_of(probabilities, squares, entropy_of_draws, entropy_of_models, regions)])

    def predict_case(self, data: torch.Tensor, properties: dict, output_file_truncated: str,
                     save_probabilities: bool = False) -> None:
        """A preprocessed case, (C, z, y, x), to its files, in this process."""
        with self._export():
            logits = self.predict_logits_from_preprocessed_data(data)
            self._exporter(logits, properties, self.configuration_manager, self.plans_manager, self.dataset_json,
                           output_file_truncated, save_probabilities)

    @property
    def _wants_spread(self) -> bool:
        return self.export.maps or self.export.spread

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """(C, z, y, x) -> logits (K, z, y, x) by the weights that are loaded."""
        return unwrapped(self.network).logits(self.mean_probabilities(input_image, self.folds[0]), _PROBABILITY_FLOOR)

    def mean_probabilities(self, image: torch.Tensor, fold: int | str) -> torch.Tensor:
        """Mean over samples, mirrors and tiles, by the weights that are loaded.

        Args:
            image: preprocessed, (C, z, y, x).
            fold: keys the noise.

        Returns:
            (K, z, y, x), float32, on the CPU.
        """
        return self._mean_over_draws(image, fold).mean[:unwrapped(self.network).num_classes]

    @torch.inference_mode()
    def _mean_over_draws(self, image: torch.Tensor, fold: int | str) -> _Draws:
        network = unwrapped(self.network).to(self.device).eval()
        patch_size = tuple(self.configuration_manager.patch_size)
        stride = network.config.latent_stride
        per_patch_axis = padded_shape(image.shape[-len(patch_size):], patch_size, stride)
        data, revert_padding = pad_nd_image(image, per_patch_axis, "constant", {"value": 0}, True, None)
        plan = list(tiles(data.shape[1:], patch_size, stride, self.tile_step_size))
        channels = 2 * network.num_classes + 1 if self._wants_spread else network.num_classes
        where = self._device_of_results(channels * data[0].numel() * 4)
        weight = (compute_gaussian(patch_size, 1 / 8, 10, torch.float32, where) if self.use_gaussian
                  else torch.ones(patch_size, device=where))
        weights = torch.zeros(data.shape[1:], device=where)
        for tile in plan:
            weights[tile.slicer] += weight
        total = torch.zeros((channels, *data.shape[1:]), device=where)
        inside = torch.zeros(data.shape[1:], device=where)
        inside[tuple(revert_padding[1:])] = 1
        voxels: dict[tuple[int, int], torch.Tensor] = {}
        per_batch = max(1, self._images_per_batch() // len(self._mirrors()))
        with tqdm(total=len(plan), disable=not self.allow_tqdm) as progress, self._autocast():
            for group in _batches(plan, per_batch):
                shares = [weight / weights[tile.slicer] for tile in group]
                counted = [share * inside[tile.slicer] for share, tile in zip(shares, group, strict=True)
                           if self._wants_spread]
                means = self._tile_means(network, data, group, fold, counted, voxels)
                for tile, share, values in zip(group, shares, means, strict=True):
                    total[(slice(None), *tile.slicer)] += values.to(where) * share
                    progress.update()
        return _Draws(total[(slice(None), *revert_padding[1:])].cpu(),
                      [(voxels[draw] / inside.sum()).tolist() for draw in sorted(voxels)])

    def _device_of_results(self, num_bytes: int) -> torch.device:
        """Where probabilities of the whole volume are added up: on the GPU only if they leave half of it free."""
        if self.perform_everything_on_device and 2 * num_bytes < torch.cuda.mem_get_info(self.device)[0]:
            return self.device
        return torch.device("cpu")

    def _tile_means(self, network: LDSegNet, data: torch.Tensor, group: list[Tile], fold: int | str,
                    shares: list[torch.Tensor], voxels: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
        """Mean over mirrors and samples for each tile of the group, (tiles, K or 2 K + 1, *patch): probabilities, and
        for maps of uncertainty their squares and entropy; then the voxels of each draw are added to `voxels`."""
        views = [(i, axes) for i in range(len(group)) for axes in self._mirrors()]
        images = torch.stack([torch.flip(data[(slice(None), *group[i].slicer)], [a + 1 for a in axes])
                              for i, axes in views])
        per_batch = self._images_per_batch()
        condition = torch.cat([network.encode_image(part.to(self.device)) for part in images.split(per_batch)])
        samples = self._sample_numbers(network)
        draws = [(view, sample) for sample in samples for view in range(len(views))]
        channels = 2 * network.num_classes + 1 if self._wants_spread else network.num_classes
        mean = torch.zeros((len(group), channels, *group[0].size), device=self.device)
        for batch in _batches(draws, _LATENTS_PER_IMAGE * per_batch):
            latents = self._sample(network, condition, batch, views, group, fold)
            for part, latent in zip(_batches(batch, per_batch), latents.split(per_batch), strict=True):
                probabilities = network.probabilities(network.decode(latent))
                for (view, sample), probability in zip(part, probabilities, strict=True):
                    i, axes = views[view]
                    upright = torch.flip(probability, [a + 1 for a in axes])
                    if self._wants_spread:
                        draw = (sample, view % len(self._mirrors()))
                        counted = (_segmented(network, upright) * shares[i].to(upright)).flatten(1)
                        voxels[draw] = voxels.get(draw, 0) + counted.sum(1, dtype=torch.float64).cpu()
                        entropy = torch_entropy(upright, network.config.output == "sigmoid")
                        upright = torch.cat([upright, upright ** 2, entropy[None]])
                    mean[i] += upright
        return mean / (len(samples) * len(self._mirrors()))

    def _sample_numbers(self, network: LDSegNet) -> range:
        """Which samples are drawn: sample k is the same whatever the others."""
        return range(network.config.sampler_samples if self.samples is None else self.samples)

    def _sample(self, network: LDSegNet, condition: torch.Tensor, draws: list[tuple[int, int]],
                views: list[tuple[int, tuple[int, ...]]], group: list[Tile], fold: int | str) -> torch.Tensor:
        stride = network.config.latent_stride
        grid = condition.shape[2:]

        def noise(step: int) -> torch.Tensor:
            drawn = []
            for view, sample in draws:
                i, axes = views[view]
                start = [a // s for a, s in zip(group[i].start, stride, strict=True)]
                key = NoiseKey(fold, sum(1 << a for a in axes), sample, step)
                # the field lies in the image: a mirrored view sees it mirrored
                drawn.append(torch.from_numpy(noise_tile(self.seed, key, network.config.latent_channels, start, grid,
                                                         group[i].slice_index)).flip([a + 1 for a in axes]))
            return torch.stack(drawn).to(self.device)

        return network.sample(condition[[view for view, _ in draws]], noise(0), self.steps, self.eta,
                              step_noise=lambda i: noise(i + 1))

    def _mirrors(self) -> list[tuple[int, ...]]:
        """Combinations of patch axes to flip, the unflipped view first."""
        axes = self.allowed_mirroring_axes if self.use_mirroring and self.allowed_mirroring_axes else ()
        return [combination for n in range(len(axes) + 1) for combination in combinations(axes, n)]

    def _images_per_batch(self) -> int:
        """Prediction keeps no gradients: what fits in training fits here."""
        return min(self.configuration_manager.batch_size, _MAX_IMAGES_PER_BATCH)

    def _autocast(self) -> Any:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()


def _segmented(network: LDSegNet, probabilities: torch.Tensor) -> torch.Tensor:
    """(K, *S) -> (K, *S), bool: the voxels of each label or region."""
    if network.config.output == "softmax":
        return torch.nn.functional.one_hot(probabilities.argmax(0), len(probabilities)).movedim(-1, 0).bool()
    return probabilities > 0.5


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
