"""One choice of LDSegTrainer at a time changed: short trainings, and the three signs of each on validation cases.

    python benchmarks/ablations.py Dataset004_Hippocampus --minutes 8 --trials default v no-recycling

Needs the plans of ldseg_plan_and_preprocess. Every training has a process of its own, the same seed and the same wall
time, or with `--iterations` the same number of iterations, which other work on the machine does not change;
`--together N` runs N side by side, one thread each. Dice is that of the central patch of up to 40 validation cases.
Writes benchmarks/results/ablations_*.json and the section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from record import conditions, parser, table, under, write_json, write_section
from torch import nn

from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

_EPOCHS = 10  # where iterations are counted


@dataclass(frozen=True)
class Trial:
    """What differs from the default.

    Args:
        architecture: keys of the plans' `arch_kwargs`.
        recipe: class attributes of the trainer.
        loss: fields of its `LossWeights`.
        optimiser: "adamw" (the default), or nnU-Net's "sgd".
        detached: no gradient through the denoising term's target.
        decoder_condition: None, or the probability with which a training sample's condition is kept from the label
            decoder, which otherwise sees it beside the latent.
    """

    architecture: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    optimiser: str = "adamw"
    detached: bool = False
    decoder_condition: float | None = None


TRIALS = {
    "default": Trial(),
    "v": Trial({"prediction": "v"}),
    "eps, no zero terminal SNR": Trial({"prediction": "eps", "zero_terminal_snr": False}),
    "no recycling": Trial(recipe={"recycled_share": 0.0}),
    "recycling at any timestep": Trial(recipe={"recycled_timesteps": (0.0, 1.0)}),
    "half at T": Trial(recipe={"share_at_last_timestep": 0.5}),
    "none at T": Trial(recipe={"share_at_last_timestep": 0.0}),
    "lambda 1": Trial(loss={"denoising": 1.0}),
    "lambda 0.01": Trial(loss={"denoising": 0.01}),
    "rho 0": Trial(loss={"coding": 0.0}),
    "no heads": Trial(loss={"heads": 0.0}),
    "target detached": Trial(detached=True),
    "decoder sees the condition": Trial(decoder_condition=0.0),
    "decoder sees the condition of half": Trial(decoder_condition=0.5),
    "4 channels": Trial({"latent_channels": 4}),
    "16 channels": Trial({"latent_channels": 16}),
    "standardised by sample": Trial({"standardisation": "sample"}),
    "code not from principal components": Trial(recipe={"code_from_principal_components": False}),
    "learning rate 1e-3": Trial(recipe={"learning_rate": 1e-3}),
    "nnU-Net's SGD": Trial(recipe={"learning_rate": 1e-2}, optimiser="sgd"),
    "all encoder stages with two convolutions": Trial({"n_conv_per_stage": [2, 2, 2, 2]}),
    "stem of 16 features": Trial({"features_per_stage": [16, 64, 128, 256]}),
    "denoiser 32-64": Trial({"denoiser_features": [32, 64]}),
    "denoiser 64-128": Trial({"denoiser_features": [64, 128]}),
}


def run(name: str, options: argparse.Namespace, seed: int) -> dict:
    """Train one trial; its iterations and signs."""
    from ldseg_auto.evaluation import latent_signs
    from ldseg_auto.folders import load_plans
    from ldseg_auto.trainers.signs_report import SAMPLES, measure_on_cases

    torch.set_num_threads(options.threads)
    dataset = options.dataset
    trial = TRIALS[name]
    plans = load_plans(dataset, "LDSegPlans") | {"continue_training": False}
    plan = plans["configurations"]["3d_fullres"]
    plan["architecture"]["arch_kwargs"].update(trial.architecture)
    plan["batch_size"] = options.batch or plan["batch_size"]
    description = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "dataset.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer_class(trial)(plans, "3d_fullres", options.fold, description, torch.device("cpu"))
        trainer.output_folder, trainer.log_file = folder, str(Path(folder) / "log.txt")
        trainer.output_folder_base = folder
        trainer.seed = seed
        if options.iterations is None:
            trainer.max_minutes = options.minutes
        else:
            trainer.num_epochs, trainer.num_val_iterations_per_epoch = _EPOCHS, 1
            trainer.num_iterations_per_epoch = options.iterations // _EPOCHS
        trainer.run_training()
        network = trainer.unwrapped_network
        with trainer.average.swapped(network):
            signs = latent_signs.summary(measure_on_cases(trainer, network), SAMPLES, network.config.sampler_steps)
    return {"trial": name, "seed": seed, "iterations": trainer._iterations_done, "signs": signs}


class DecoderWithCondition(nn.Module):
    """A label decoder whose latent is joined by what the image's condition says of it.

    Args:
        network: an LDSegNet, whose label decoder is replaced; the condition is that of its last image.
        dropped: share of the training samples whose condition is kept from it.
    """

    def __init__(self, network: nn.Module, dropped: float):
        super().__init__()
        config = network.config
        self.decoder, self.dropped = network.label_decoder, dropped
        self.join = config.conv_op(network.image_encoder.channels, config.latent_channels, 1)
        self._condition: torch.Tensor | None = None
        network.image_encoder.register_forward_hook(self._keep)

    @property
    def linear(self) -> nn.Module:
        """Its parts, which start as principal components and as nothing."""
        return self.decoder.linear

    @property
    def body(self) -> nn.Module:
        return self.decoder.body

    def _keep(self, _: nn.Module, __: Any, features: list[torch.Tensor]) -> None:
        self._condition = features[0]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        joined = self.join(self._condition)
        if self.training:
            kept = torch.rand(len(joined), device=joined.device) >= self.dropped
            joined = joined * kept.reshape(-1, *[1] * (joined.ndim - 1))
        return self.decoder(latent + joined)


def _trainer_class(trial: Trial) -> Any:
    class Detached(nn.Module):
        """The loss, whose denoising term moves the denoiser and not the code."""

        def __init__(self, loss: nn.Module):
            super().__init__()
            self.loss = loss

        def forward(self, output: Any, target: torch.Tensor) -> torch.Tensor:
            if not isinstance(output, torch.Tensor):
                output = output._replace(denoiser_target=output.denoiser_target.detach())
            return self.loss(output, target)

    class AblatedTrainer(LDSegTrainer):
        loss_weights = replace(LDSegTrainer.loss_weights, **trial.loss)

        @staticmethod
        def build_network_architecture(plans_manager: PlansManager, configuration_manager: ConfigurationManager,
                                       num_input_channels: int, num_output_channels: int,
                                       enable_deep_supervision: bool = True) -> nn.Module:
            network = LDSegTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)
            if trial.decoder_condition is not None:
                network.label_decoder = DecoderWithCondition(network, trial.decoder_condition)
            return network

        def _build_loss(self) -> nn.Module:
            return Detached(super()._build_loss()) if trial.detached else super()._build_loss()

        def _make_optimizer(self) -> torch.optim.Optimizer:
            if trial.optimiser == "sgd":
                return torch.optim.SGD(self.network.parameters(), self.initial_lr, weight_decay=3e-5, momentum=0.99,
                                       nesterov=True)
            return super()._make_optimizer()

    for attribute, value in trial.recipe.items():
        setattr(AblatedTrainer, attribute, value)
    return AblatedTrainer


def report(found: list[dict[str, Any]]) -> str:
    rows = []
    for row in found:
        signs = row["signs"]
        gain, ends = signs["gain_of_samples"], signs["gain_of_samples_95"] or (float("nan"),) * 2
        use = signs["use_of_latent"]
        rows.append([row["trial"], str(row["seed"]), str(row["iterations"]), f"{signs['coding_dice']:.3f}",
                     f"{signs['one_step_dice']:.3f}", f"{signs['mean_of_samples_dice']:.3f}",
                     f"{gain:+.4f} [{ends[0]:+.4f}, {ends[1]:+.4f}]", "" if use is None else f"{use:.2f}",
                     f"{signs['pairwise_dice']:.2f}"])
    return table(["trial", "seed", "iterations", "label coding", "one step", "5 x 2", "gain, 95 %", "use of latent",
                  "pairwise Dice"], rows)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=8.0)
    arguments.add_argument("--iterations", type=int, default=None, help="of each training, in place of its minutes")
    arguments.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--fold", type=int, default=0)
    arguments.add_argument("--threads", type=int, default=1, help="of each training")
    arguments.add_argument("--together", type=int, default=2, help="trainings side by side")
    arguments.add_argument("--batch", type=int, default=None, help="samples; the plans' where it is left out")
    options = arguments.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    os.environ.setdefault("nnUNet_def_n_proc", "1")
    length = f"{options.minutes:g} minutes" if options.iterations is None else f"{options.iterations} iterations"
    found: list[dict[str, Any]] = []
    context = conditions(options.threads)
    with ProcessPoolExecutor(options.together, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, name, options, seed) for seed in options.seeds for name in options.trials]
        for future in futures:
            found.append(future.result())
            write_json(f"ablations_{options.dataset}_{length.replace(' ', '_')}", {**context, "results": found})
            print(report(found[-1:]).splitlines()[-1], flush=True)
    write_section(f"ablations {options.dataset} {length}", f"{length} each:\n\n{report(found)}\n\n{under(context)}")


if __name__ == "__main__":
    main()
