"""LDSegPredictor: nnU-Net's predictor with posterior samples, averaged as probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from tqdm import tqdm

from ldseg_auto import nnunet_ext
from ldseg_auto.errors import LDSegError, reason_of
from ldseg_auto.inference.accumulate import RowAccumulator
from ldseg_auto.inference.array_predictor import ArrayPredictor, one_thread_at_a_time
from ldseg_auto.inference.draws import channels_of, summands, voxels_of
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.fallback import BatchSizes, is_out_of_memory
from ldseg_auto.inference.file_predictor import PROBABILITY_FLOOR
from ldseg_auto.inference.noise import NoiseKey, noise_tile
from ldseg_auto.inference.tiling import Tile, Tiling, cut_into_tiles
from ldseg_auto.inference.uncertainty import torch_entropy
from ldseg_auto.inference.volumes import Volume
from ldseg_auto.inference.whole_volume import Draws, WholeVolume
from ldseg_auto.networks.ldseg_net import LDSegNet, unwrapped
from ldseg_auto.precision import OneDNNForSingleImages, autocast, laid_out_for
from ldseg_auto.sharing.opening import require_openable, searching, weights_only

_MAX_IMAGES_PER_BATCH = 16
_MAX_VOXELS_PER_CPU_BATCH = 65536


class LDSegPredictor(ArrayPredictor):
    """Segments with the mean of posterior samples, mirrors, tiles and folds. `from_model` makes one from a trained
    model, `predict` takes an array.

    Args:
        samples, steps, eta: of the sampler; the plans' defaults where None.
        seed: the same seed gives the same probabilities; another seed another draw.
        export: what is done to a prediction on its way to the files; uncertainty maps among it.
        fold: what `manual_initialization` predicts with (keys its noise).
        whole_volume: denoise the latent of the whole image at once, see `inference.whole_volume`, not tile by tile.
        All others: nnU-Net's.
    """

    def __init__(self, tile_step_size: float = 0.5, use_gaussian: bool = True, use_mirroring: bool = True,
                 perform_everything_on_device: bool = True,
                 device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
                 verbose: bool = False, verbose_preprocessing: bool = False, allow_tqdm: bool = True, *,
                 samples: int | None = None, steps: int | None = None, eta: float | None = None, seed: int = 0,
                 export: ExportOptions | None = None, fold: int | str = 0, whole_volume: bool = False):
        # nnU-Net prints a warning where this is set without CUDA
        super().__init__(tile_step_size, use_gaussian, use_mirroring,
                         perform_everything_on_device and device.type == "cuda", device, verbose,
                         verbose_preprocessing, allow_tqdm)
        self.samples, self.steps, self.eta, self.seed = samples, steps, eta, seed
        self.whole_volume = whole_volume
        self.export = export or ExportOptions()
        self._sizes: BatchSizes | None = None  # kept from one case to the next where memory did not suffice
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
        with searching, weights_only():  # nnU-Net's torch.load would run what a checkpoint holds
            try:
                super().initialize_from_trained_model_folder(model_training_output_dir, self.folds, checkpoint_name)
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
                if isinstance(error, LDSegError) or is_out_of_memory(error):
                    raise
                raise LDSegError(f"plans.json and dataset.json in {model_training_output_dir} do not describe the "
                                 f"network whose weights are there ({reason_of(error)}).", "One of the files was "
                                 "changed or is damaged: get the model from its source again, or train again."
                                 ) from error
        if not isinstance(unwrapped(self.network), LDSegNet):
            raise LDSegError(f"{model_training_output_dir} holds a {type(self.network).__name__}, not an LDSegNet.",
                             "Predict it with nnUNetv2_predict.")

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """(C, z, y, x) -> logits (K, z, y, x) by the weights that are loaded."""
        return unwrapped(self.network).logits(self.mean_probabilities(input_image, self.folds[0]), PROBABILITY_FLOOR)

    def mean_probabilities(self, image: torch.Tensor, fold: int | str) -> torch.Tensor:
        """Mean over samples, mirrors and tiles, by the weights that are loaded.

        Args:
            image: preprocessed, (C, z, y, x).
            fold: keys the noise.

        Returns:
            (K, z, y, x), float32, on the CPU.
        """
        num_classes = unwrapped(self.network).num_classes
        mean = torch.zeros((num_classes, *image.shape[1:]))

        def keep(first: int, rows: torch.Tensor) -> None:
            mean[:, first:first + rows.shape[1]] = rows[:num_classes]

        self._accumulate(image, fold, keep)
        return mean

    def shape_of_prediction(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """What `predict_to` writes for an image (C, z, y, x)."""
        num_classes = unwrapped(self.network).num_classes
        return (2 * num_classes + 2 if self._wants_spread else num_classes, *image_shape[1:])

    @one_thread_at_a_time
    @torch.inference_mode()
    def predict_to(self, image: torch.Tensor, target: Volume) -> list[list[float]]:
        """Mean over all folds, samples, mirrors and tiles, by rows: no more of it is in memory than a tile is deep.

        Args:
            image: preprocessed, (C, z, y, x).
            target: gets probabilities (K, z, y, x); for maps of uncertainty also the mean of their squares (K), of the
                entropy of each draw, and of the entropy of each fold's mean.

        Returns:
            for maps of uncertainty the share of the volume that each draw's segmentation gives to each class.
        """
        network = unwrapped(self.network)
        shares = []
        for index, (fold, parameters) in enumerate(zip(self.folds, self.list_of_parameters, strict=True)):
            network.load_state_dict(parameters)
            voxels = self._accumulate(image, fold, partial(self._add_fold, target, index == 0))
            shares += [(voxels[draw] / image[0].numel()).tolist() for draw in sorted(voxels)]
        return shares

    def _add_fold(self, target: Volume, first_fold: bool, first: int, rows: torch.Tensor) -> None:
        """A fold's part of some rows."""
        if self._wants_spread:
            network = unwrapped(self.network)
            entropy = torch_entropy(rows[:network.num_classes], network.config.output == "sigmoid")
            rows = torch.cat([rows, entropy[None]])
        rows = rows / len(self.folds)
        if not first_fold:
            rows = rows + torch.from_numpy(target.read(first, first + rows.shape[1]))
        target.write(first, rows.numpy())

    @property
    def _wants_spread(self) -> bool:
        return self.export.maps or self.export.spread

    @torch.inference_mode()
    def _accumulate(self, image: torch.Tensor, fold: int | str,
                    finished: Callable[[int, torch.Tensor], None]) -> dict[tuple[int, int], torch.Tensor]:
        """Mean over samples, mirrors and tiles by the weights that are loaded, handed on by rows; for maps of
        uncertainty the voxels of each class in each draw."""
        network = laid_out_for(self.device, unwrapped(self.network).to(self.device).eval())
        self._require_channels(image)
        if self.whole_volume:
            return self._accumulate_as_a_whole(network, image, fold, finished)
        patch = tuple(self.configuration_manager.patch_size)
        tiling = cut_into_tiles(image.shape[1:], patch, network.config.latent_stride, self.tile_step_size)
        weight = self._tile_weight()
        channels = channels_of(network, self._wants_spread)
        sizes = self._sizes or BatchSizes(self._images_per_batch(), self.device, self._device_of_results())
        accumulator = sizes.until_it_fits(lambda: RowAccumulator(tiling, weight, channels, sizes.results, finished))
        voxels: dict[tuple[int, int], torch.Tensor] = {}
        done = 0

        def next_group() -> tuple[Sequence[Tile], list[torch.Tensor], torch.Tensor, dict]:
            group = tiling.tiles[done:done + max(1, sizes.images // len(self._mirrors()))]
            if accumulator.device.type != sizes.results.type:
                accumulator.move(sizes.results)
            shares = [accumulator.share(tile) for tile in group]
            return group, shares, *self._tile_means(network, image, tiling, group, fold, shares, sizes)

        with tqdm(total=len(tiling.tiles), disable=not self.allow_tqdm) as progress, autocast(self.device), \
                OneDNNForSingleImages():
            while done < len(tiling.tiles):
                group, shares, means, counted = sizes.until_it_fits(next_group)
                for tile, share, values in zip(group, shares, means, strict=True):
                    accumulator.add(tile, share, values)
                for draw, number in counted.items():
                    voxels[draw] = voxels.get(draw, 0) + number
                done += len(group)
                progress.update(len(group))
        accumulator.close()
        self._sizes = sizes if sizes.reduced else None
        return voxels

    def _accumulate_as_a_whole(self, network: LDSegNet, image: torch.Tensor, fold: int | str,
                               finished: Callable[[int, torch.Tensor], None]) -> dict[tuple[int, int], torch.Tensor]:
        """The same where the latent of the whole image is denoised at once."""
        sizes = BatchSizes(self._images_per_batch(), self.device, self._device_of_results())
        draws = Draws(self._mirrors(), self._sample_numbers(network), self.steps, self.eta, self.seed, fold)
        with autocast(self.device), OneDNNForSingleImages():
            return WholeVolume(network, image, self._tile_weight(), self.tile_step_size, draws, self._wants_spread,
                               sizes, self.allow_tqdm).accumulate(finished)

    def _tile_weight(self) -> torch.Tensor:
        """How much each voxel of a tile counts where tiles overlap, (*patch)."""
        patch = tuple(self.configuration_manager.patch_size)
        return (compute_gaussian(patch, 1 / 8, 10, torch.float32, torch.device("cpu")) if self.use_gaussian
                else torch.ones(patch))

    def _device_of_results(self) -> torch.device:
        """Where tiles are added up."""
        return self.device if self.perform_everything_on_device else torch.device("cpu")

    def _tile_means(self, network: LDSegNet, image: torch.Tensor, tiling: Tiling, group: Sequence[Tile],
                    fold: int | str, shares: Sequence[torch.Tensor],
                    sizes: BatchSizes) -> tuple[torch.Tensor, dict[tuple[int, int], torch.Tensor]]:
        """Mean over mirrors and samples for each tile of the group, (tiles, K or 2 K + 1, *patch): probabilities, and
        for maps of uncertainty their squares and entropy; then also the voxels of each draw."""
        views = [(i, axes) for i in range(len(group)) for axes in self._mirrors()]
        cuts = [tiling.cut(image, tile) for tile in group]
        images = torch.stack([torch.flip(cuts[i], [a + 1 for a in axes]) for i, axes in views])
        condition = torch.cat([network.encode_image(part.to(self.device)) for part in images.split(sizes.images)])
        samples = self._sample_numbers(network)
        draws = [(view, sample) for sample in samples for view in range(len(views))]
        channels = channels_of(network, self._wants_spread)
        mean = torch.zeros((len(group), channels, *group[0].size), device=self.device)
        voxels: dict[tuple[int, int], torch.Tensor] = {}
        for batch in _batches(draws, sizes.latents):
            latents = self._sample(network, condition, batch, views, group, fold)
            for part, latent in zip(_batches(batch, sizes.images), latents.split(sizes.images), strict=True):
                probabilities = network.probabilities(network.decode(latent))
                for (view, sample), probability in zip(part, probabilities, strict=True):
                    i, axes = views[view]
                    upright = torch.flip(probability, [a + 1 for a in axes])
                    if self._wants_spread:
                        draw = (sample, view % len(self._mirrors()))
                        counted = voxels_of(network, upright, shares[i], tiling.inside(group[i]))
                        voxels[draw] = voxels.get(draw, 0) + counted
                    mean[i] += summands(network, upright, self._wants_spread)
        return mean / (len(samples) * len(self._mirrors())), voxels

    def _require_channels(self, image: torch.Tensor) -> None:
        expected = determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        if len(image) != expected:
            first = self.configuration_manager.previous_stage_name
            raise LDSegError(f"The image has {len(image)} channels, the network takes {expected}.", "Give " + (
                f"the segmentation of {first} too, which becomes the last channels." if first else
                "all channels that the model was trained with."))

    def _sample_numbers(self, network: LDSegNet) -> range:
        """Which samples are drawn: sample k is the same whatever the others."""
        return range(network.config.sampler_samples if self.samples is None else self.samples)

    def _sample(self, network: LDSegNet, condition: torch.Tensor, draws: list[tuple[int, int]],
                views: list[tuple[int, tuple[int, ...]]], group: Sequence[Tile], fold: int | str) -> torch.Tensor:
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
        """Prediction keeps no gradients: what fits in training fits here. A CPU is no quicker with more than a few at
        once, it only needs more memory."""
        fitting = min(self.configuration_manager.batch_size, _MAX_IMAGES_PER_BATCH)
        if self.device.type == "cpu":
            fitting = min(fitting, _MAX_VOXELS_PER_CPU_BATCH // prod(self.configuration_manager.patch_size))
        return max(1, fitting)


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
