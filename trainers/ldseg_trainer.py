"""LDSegTrainer: nnU-Net's trainer with latent conditional diffusion in place of the decoder."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from tqdm import tqdm

from ldseg_auto import collectives
from ldseg_auto.allocation import keeping_freed_memory
from ldseg_auto.config import require_known_format
from ldseg_auto.evaluation import latent_signs
from ldseg_auto.inference.binding import bound
from ldseg_auto.inference.export import export_prediction
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.networks.ldseg_net import LDSegNet, unwrapped
from ldseg_auto.precision import autocast
from ldseg_auto.trainers import cascade, checkpoint, pools, randomness
from ldseg_auto.trainers.budget import WallTimeBudgetMixin
from ldseg_auto.trainers.code_start import start_from_principal_components
from ldseg_auto.trainers.ema import WeightAverage
from ldseg_auto.trainers.guarded_step import GuardedStep
from ldseg_auto.trainers.joint import JointTrainingMixin
from ldseg_auto.trainers.loaders import SteadyAugmenter, end_workers, unbenchmarked_blur
from ldseg_auto.trainers.loggers import add_loggers
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights
from ldseg_auto.trainers.signs_report import PLOT_FILE, measure_on_cases, plot_signs, save_summary
from ldseg_auto.trainers.validation import require_whole_references
from ldseg_auto.trainers.whole_files import draw_whole, save_json_whole, save_nothing

# Of one validation batch an epoch; the final signs are measured on many cases.
_SIGNS_PATCHES = 2
_SIGNS_SAMPLES = 2
_CODE_START_PATCHES = 64


class LDSegTrainer(WallTimeBudgetMixin, JointTrainingMixin, nnUNetTrainer):
    """Trains `LDSegNet`; the recipe's settings are class attributes, so that a variant is a few lines.

    Set before training: `num_epochs`, `num_iterations_per_epoch`, `max_minutes`, `seed`, `full_disk_patience_seconds`;
    before validation also `validation_mirroring`.
    """

    loss_weights = LossWeights()
    share_at_last_timestep = 0.25  # of the samples that are not recycled: the estimate rests on the image alone
    recycled_share = 0.5  # of the training samples: z_t holds the network's own estimate, as in sampling
    recycled_timesteps = (0.4, 0.6)  # of those, as shares of T: around the second of the plans' two sampling steps
    ema_decay = 0.999
    learning_rate = 3e-3
    adamw_weight_decay = 1e-2

    code_from_principal_components = True
    epoch_validation_steps: int | None = 1  # enough to follow the training; None takes the plans' sampler

    seed: int | None = None
    validation_mirroring = True
    hands_on = True  # what it predicts of validation cases to a cascade's second stage
    full_disk_patience_seconds = 600.0  # a checkpoint waits for room, the training with it

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008, nnU-Net inspects this signature
        require_known_format(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.learning_rate
        self.weight_decay = self.adamw_weight_decay
        self.save_every = 1  # nnU-Net's 50 epochs can be days of lost training
        self.enable_deep_supervision = False  # the heads on the condition take its place
        for name in latent_signs.SERIES:
            self.logger.local_logger.my_fantastic_logging[name] = []
        if self.local_rank == 0:
            add_loggers(self.logger, self.output_folder)
        self._step = GuardedStep(self.print_to_log_file)
        self._random_state: dict[str, Any] | None = None  # of the checkpoint that the training goes on from
        self.logger.plot_progress_png = partial(  # type: ignore[method-assign]
            draw_whole, "progress.png", self.logger.plot_progress_png, log=self.print_to_log_file)

    # --- the network, its loss and its optimiser

    def initialize(self) -> None:
        super().initialize()
        self.average = WeightAverage(self.unwrapped_network, self.ema_decay)

    @property
    def unwrapped_network(self) -> LDSegNet:
        """The network without DDP or torch.compile around it."""
        return unwrapped(self.network)

    def _do_i_compile(self) -> bool:
        """Only where `nnUNet_compile` asks for it: nnU-Net's default on CUDA was not tried with this network."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    def _build_loss(self) -> nn.Module:
        return LatentDiffusionLoss(super()._build_loss(), self.loss_weights)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        # no decay for norms, biases and other vectors
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.network.parameters() if p.ndim > 1]},
            {"params": [p for p in self.network.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.initial_lr, weight_decay=self.weight_decay, betas=(0.9, 0.99))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        return self.with_budget(self._make_optimizer())

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to switch: nnU-Net's method reaches into a decoder that this network does not have."""

    # --- training

    def get_dataloaders(self) -> tuple[Any, Any]:
        with bound(nnunet_trainer_module, GaussianBlurTransform=unbenchmarked_blur,
                   NonDetMultiThreadedAugmenter=partial(SteadyAugmenter, log=self.print_to_log_file)):
            return super().get_dataloaders()

    def on_train_start(self) -> None:
        # vanishing gradients and their squares become denormal numbers, which a CPU handles many times slower
        torch.set_flush_denormal(True)
        if self.seed is not None:
            randomness.seed_all(self.seed)
        with bound(nnunet_trainer_module, save_json=save_json_whole if self.local_rank == 0 else save_nothing):
            super().on_train_start()
        if self.local_rank == 0:
            checkpoint.remove_leftovers(self.output_folder)
        self._start_code()
        if self._random_state is not None:  # only now: the loaders have drawn a batch each
            randomness.set_state(self._random_state)

    def run_training(self) -> None:
        try:
            with keeping_freed_memory() if self.device.type == "cpu" else nullcontext():
                super().run_training()
        finally:
            torch.set_flush_denormal(False)  # other libraries of this process do not expect it
            end_workers(self.dataloader_train, self.dataloader_val)

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            (Path(self.output_folder) / checkpoint.PREVIOUS).unlink(missing_ok=True)

    def _start_code(self) -> None:
        """From principal components, unless the network has been trained before (continued, pretrained)."""
        network = self.unwrapped_network
        statistics = network.label_encoder.standardise
        if not self.code_from_principal_components or getattr(statistics, "updates", 0) > 0:
            return
        if self.local_rank == 0:
            self._start_code_of(network)
        collectives.copy_from_first(network)

    def _start_code_of(self, network: LDSegNet) -> None:
        batches = -(-_CODE_START_PATCHES // self.batch_size)
        share = start_from_principal_components(network, (next(self.dataloader_train)["target"]
                                                          for _ in range(batches)))
        if share is not None:
            self.print_to_log_file(f"The label code starts as principal components, {share:.1%} of the variance at "
                                   "structures' boundaries.")

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        # None: shown in a terminal only, a log file keeps nnU-Net's lines
        self._progress = tqdm(total=self.num_iterations_per_epoch, desc=f"epoch {self.current_epoch}", leave=False,
                              disable=None if self.local_rank == 0 else True)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self._progress.close()
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)

    def train_step(self, batch: dict) -> dict:
        self.anneal()
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        noise, timestep, recycled = self.draw_noise(data)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            output = self.network(data, target, noise, timestep, recycled)
            loss = self.loss(output, target)
        value, changed = self._step(loss, self.network, self.optimizer, self.grad_scaler, batch)
        if changed:
            self.average.update(self.unwrapped_network)
        self._progress.update()
        return {"loss": np.asarray(value, dtype=np.float32)}

    def draw_noise(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Noise of its own for each sample; timesteps, a share at T, the others uniform from 1 to T, or of recycled
        samples within their range; which of the samples are recycled (None where the recipe has no recycling)."""
        config = self.unwrapped_network.config
        grid = [size // stride for size, stride in zip(data.shape[2:], config.latent_stride, strict=True)]
        noise = torch.randn(len(data), config.latent_channels, *grid, device=data.device)
        timestep = torch.randint(1, config.timesteps + 1, (len(data),), device=data.device)
        at_last = torch.rand(len(data), device=data.device) < self.share_at_last_timestep
        timestep = torch.where(at_last, config.timesteps, timestep)
        if not self.recycled_share:
            return noise, timestep, None
        recycled = torch.rand(len(data), device=data.device) < self.recycled_share
        first, last = (max(1, round(share * config.timesteps)) for share in self.recycled_timesteps)
        around_a_step = torch.randint(first, last + 1, (len(data),), device=data.device)
        return noise, torch.where(recycled, around_a_step, timestep), recycled

    # --- validation after each epoch, by the averaged weights

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._signs: latent_signs.LatentSigns | None = None

    def validation_step(self, batch: dict) -> dict:
        network = self.unwrapped_network
        with self.average.swapped(network), autocast(self.device):
            if self._signs is None:
                self._signs = self._signs_of_batch(network, batch)
            with network.sampler(self.epoch_validation_steps or network.config.sampler_steps, samples=1):
                return super().validation_step(batch)

    def _signs_of_batch(self, network: LDSegNet, batch: dict) -> latent_signs.LatentSigns:
        image = batch["data"][:_SIGNS_PATCHES].to(self.device)
        target = batch["target"][:_SIGNS_PATCHES].to(self.device)
        generator = torch.Generator().manual_seed(0)
        return latent_signs.average(latent_signs.signs_per_patch(
            network, image, target, generator, _SIGNS_SAMPLES, network.config.sampler_steps))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        moving_average = self.logger.local_logger.my_fantastic_logging["ema_fg_dice"]
        moving_average[-1] = float(moving_average[-1])  # as a checkpoint gives it back: the next is rounded the same
        assert self._signs is not None
        for name in latent_signs.SERIES:
            self.logger.log(name, getattr(self._signs, name), self.current_epoch)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            draw_whole(PLOT_FILE, partial(plot_signs, self.logger.local_logger.my_fantastic_logging),
                       self.output_folder, log=self.print_to_log_file)

    # --- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's content with the averaged weights under `network_weights`; what a resumed run needs beside them."""
        random_states = randomness.of_all_ranks()
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        content = {
            "network_weights": self.average.state_dict(),
            "raw_network_weights": self.unwrapped_network.state_dict(),
            "ema_updates": self.average.updates,
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            **random_states,
            **checkpoint.plain({
                "logging": self.logger.get_checkpoint(),
                "_best_ema": self._best_ema,
                "current_epoch": self.current_epoch + 1,
                "training_seconds": self.budget.elapsed(),
                "init_args": self.my_init_kwargs,
                "trainer_name": type(self).__name__,
                "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            }),
        }
        newest = Path(filename).name == checkpoint.LATEST
        checkpoint.save_patiently(content, filename, self.print_to_log_file, self.full_disk_patience_seconds,
                                  checkpoint.PREVIOUS if newest else None)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        if not self.was_initialized:
            self.initialize()
        content = (filename_or_checkpoint if isinstance(filename_or_checkpoint, dict)
                   else collectives.first_before_others(lambda: checkpoint.load_newest(
                       filename_or_checkpoint, self.device, self.print_to_log_file)))
        checkpoint.require_resumable(content, self.output_folder)
        self.unwrapped_network.load_state_dict(content["raw_network_weights"])
        self.average.load(content["network_weights"], content["ema_updates"])
        self.optimizer.load_state_dict(content["optimizer_state"])
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])
        self._random_state = randomness.of_this_rank(content)
        self.current_epoch = content["current_epoch"]
        self.budget.spent_before = content.get("training_seconds", 0.0)
        self._best_ema = content["_best_ema"]
        self.inference_allowed_mirroring_axes = content["inference_allowed_mirroring_axes"]
        self.logger.load_checkpoint({**self.logger.get_checkpoint(), **content["logging"]})

    # --- final validation: nnU-Net's, with our predictor and the averaged weights

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        def predictor(**kwargs: Any) -> LDSegPredictor:
            kwargs["use_mirroring"] = self.validation_mirroring
            return LDSegPredictor(**kwargs, fold=self.fold, seed=0)

        require_whole_references(self)
        network = self.unwrapped_network
        if self.local_rank == 0:  # while it is there, the validation counts as finished: it goes first and comes last
            (Path(self.output_folder) / "validation" / "summary.json").unlink(missing_ok=True)
        with self.average.swapped(network):
            if self.local_rank == 0:
                save_summary(measure_on_cases(self, network), network.config.sampler_steps, self.output_folder,
                             self.print_to_log_file)
            with bound(nnunet_trainer_module, nnUNetPredictor=predictor,
                       export_prediction_from_logits=export_prediction, multiprocessing=pools.WATCHED,
                       resample_and_save=cascade.hand_on if self.hands_on and self.fold != "all" else cascade.keep), \
                    bound(evaluate_predictions, save_json=save_json_whole, multiprocessing=pools.WATCHED):
                super().perform_actual_validation(save_probabilities)
