"""Weights of another training as the start of this one: what fits is loaded, the rest stays as initialised.

What is loaded together:

- The image encoder and the heads layer by layer, a layer being a convolution with its bias and its normalisation, which
  mean nothing apart. Layers beside one that does not fit (other channels, another width) are of use all the same.
- The label autoencoder, encoder and decoder with the statistics of the latent's standardisation, as a whole or not at
  all: a decoder reads the code of its own encoder only. Where it is not loaded, the code starts as principal components
  of the new labels.
- The denoiser as a whole, and only together with the label autoencoder: what it takes in and puts out is that code.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import write_text
from ldseg_auto.sharing.opening import read_weights_of_any

if TYPE_CHECKING:  # what a user typed is checked before torch is imported, which takes seconds
    import torch

FILE_NAME = "loaded_weights.json"
PRETRAINED, ENCODER = "-pretrained_weights", "--encoder_weights"

_AUTOENCODER, _DENOISER = "label autoencoder", "denoiser"
_PARTS = {"image_encoder": "image encoder", "label_encoder": _AUTOENCODER, "label_decoder": _AUTOENCODER,
          "denoiser": _DENOISER, "heads": "heads"}
_WHOLE = (_AUTOENCODER, _DENOISER)
# nnU-Net's U-Net has the encoder and, in the lowest stages of its decoder, what leads up to the latent's grid
_OURS = "image_encoder.encoder."
_DECODER_OF_NNUNET = {"decoder.transpconvs.": "image_encoder.up.", "decoder.stages.": "image_encoder.merge."}
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DDP and torch.compile
_CURES = {PRETRAINED: "Train by the plans of the model that it is of: ldseg_plan_and_preprocess -s takes them over.",
          ENCODER: "Plan for its kind of encoder: with LDSegPlanner for plain U-Nets, LDSegPlannerResEncM, L or XL for "
                   "residual ones."}
_SECOND_NAME = ".all_modules."  # nnU-Net's blocks hold a convolution under two names


@dataclass(frozen=True)
class Transfer:
    """What a network takes over from a checkpoint.

    Args:
        loaded: the network's name of each weight -> its value.
        left: the network's name of each other weight -> why it stays as it is.
        unused: the checkpoint's names of weights that have no place.
    """

    loaded: Mapping[str, torch.Tensor]
    left: Mapping[str, str]
    unused: list[str]


@dataclass(frozen=True)
class Start:
    """The weights that trainings start from, read once for all folds.

    Args:
        file: the checkpoint.
        flag: PRETRAINED or ENCODER, by which the user gave it.
        weights: as the checkpoint names them.
    """

    file: Path
    flag: str
    weights: Mapping[str, torch.Tensor]

    def load_into(self, trainer: Any) -> dict[str, Any]:
        """Into the network of an `LDSegTrainer` and its averaged weights; says in the log what was loaded.

        Returns:
            What `save_list` writes.

        Raises:
            LDSegError: nothing fits.
        """
        import torch

        if not trainer.was_initialized:
            trainer.initialize()
        network = trainer.unwrapped_network
        own = weights_of(network)
        given = without_wrappers(self.weights)
        found = transfer(own, from_nnunet(given, own) if self.flag == ENCODER else given)
        if not found.loaded:
            raise LDSegError(f"None of the weights in {self.file} fits the network: {next(iter(found.left.values()))}.",
                             _CURES[self.flag])
        with torch.no_grad():
            for name, value in found.loaded.items():
                own[name].copy_(value)
        trainer.average.load(network.state_dict(), updates=0)
        report = {"checkpoint": str(self.file), "given_as": self.flag, **as_list(own, found)}
        for line in describe(report):
            trainer.print_to_log_file(line)
        return report


def read_start(pretrained_weights: str | None, encoder_weights: str | None) -> Start | None:
    """Open the checkpoint that a user gave, if any; no code from it is run.

    Raises:
        LDSegError: it is missing, damaged, holds more than weights and numbers, or is of the other kind.
    """
    for flag, name, module in ((PRETRAINED, pretrained_weights, "image_encoder."),
                               (ENCODER, encoder_weights, "encoder.")):
        if name is None:
            continue
        if not Path(name).is_file():
            raise LDSegError(f"There is no file {name}.", f"Give a checkpoint_*.pth to {flag}.")
        weights = read_weights_of_any(Path(name))
        if not any(each.startswith(module) for each in without_wrappers(weights)):
            raise LDSegError(f"{name} holds no weights of {_kind(flag)}: none is named {module}*.",
                             f"{PRETRAINED} takes checkpoints of {_kind(PRETRAINED)}, {ENCODER} of {_kind(ENCODER)}.")
        return Start(Path(name), flag, weights)
    return None


def save_list(folder: Path, report: Mapping[str, Any] | None) -> None:
    """Write what was loaded and what not beside the checkpoints; None: an earlier training's list goes."""
    if report is None:
        (folder / FILE_NAME).unlink(missing_ok=True)
    else:
        write_text(folder / FILE_NAME, json.dumps(report, indent=2))


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and statistics that a checkpoint holds, each under one name; they are the network's own tensors."""
    kept = network.state_dict()
    return {name: value for name, value in chain(network.named_parameters(), network.named_buffers()) if name in kept}


def without_wrappers(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as the network itself has them, whatever it was wrapped in when it was saved."""
    return {_WRAPPERS.sub("", name): value for name, value in weights.items()}


def from_nnunet(weights: Mapping[str, torch.Tensor], own: Collection[str]) -> dict[str, torch.Tensor]:
    """Weights of nnU-Net's PlainConvUNet or ResidualEncoderUNet (`without_wrappers`) under the names that `LDSegNet`
    gives their like.

    Its decoder, whose stages count from the coarsest, reads the features of an encoder of that kind and depth only:
    where ours is another, the decoder has no place.
    """
    encoder = _renamed(weights, {"encoder.": _OURS})
    like = _stages(encoder) == _stages(own) and all(name in encoder for name in own if name.startswith(_OURS))
    named_as_ours = _renamed(encoder, _DECODER_OF_NNUNET) if like else encoder
    return {name: value for name, value in named_as_ours.items() if not name.startswith("decoder.encoder.")}  # twice


def transfer(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> Transfer:
    """Which of the given weights go where, see the head of this file.

    Args:
        own: of the network that is to be trained, see `weights_of`.
        given: of a checkpoint, under the same names.
    """
    units = defaultdict(list)
    for name in own:
        units[_unit(name)].append(name)
    loaded: dict[str, torch.Tensor] = {}
    left: dict[str, str] = {}
    for unit, names in units.items():
        reason = next(chain((misfit for name in names if (misfit := _misfit(name, own, given)) is not None),
                            (f"{name} is not in this network" for name in given
                             if unit in _WHOLE and _part(name) == unit and name not in own)), None)
        if reason is None and unit == _DENOISER and any(name in left for name in units[_AUTOENCODER]):
            reason = f"it works in the code of a {_AUTOENCODER} that is not loaded"
        if reason is None:
            loaded |= {name: given[name] for name in names}
        else:
            left |= dict.fromkeys(names, f"a whole or nothing: {reason}" if unit in _WHOLE else reason)
    unused = [name for name in given if name not in own and _SECOND_NAME not in name]
    return Transfer(loaded, left, unused)


def as_list(own: Mapping[str, torch.Tensor], found: Transfer) -> dict[str, Any]:
    """Numbers of values for each part of the network, then every weight by its name."""
    parts = {part: {"values_loaded": sum(own[name].numel() for name in found.loaded if _part(name) == part),
                    "values": sum(value.numel() for name, value in own.items() if _part(name) == part)}
             for part in dict.fromkeys(map(_part, own))}
    return {"parts": parts, "loaded": list(found.loaded), "not_loaded": dict(found.left), "unused": found.unused}


def describe(report: Mapping[str, Any]) -> list[str]:
    """A line for each part of the network."""
    lines = [f"Weights from {report['checkpoint']} ({report['given_as']}):"]
    for part, count in report["parts"].items():
        reasons = dict.fromkeys(reason for name, reason in report["not_loaded"].items() if _part(name) == part)
        lines.append(f"  {part}: {count['values_loaded']:,} of {count['values']:,} values"
                     + (f"; the others not: {named(list(reasons), 3, '; ')}" if reasons else ""))
    return [*lines, f"  {len(report['unused'])} weights of the checkpoint have no place. The whole list: {FILE_NAME}"]


def _misfit(name: str, own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str | None:
    """Why the network cannot take the weight over; None where it can."""
    if name not in given:
        return f"{name} is not in the checkpoint"
    here, there = tuple(own[name].shape), tuple(given[name].shape)
    return None if here == there else f"{name} has shape {here} here and {there} in the checkpoint"


def _part(name: str) -> str:
    """Of the network, to which the weight belongs; "" where there is no such part."""
    return _PARTS.get(name.partition(".")[0], "")


def _unit(name: str) -> str:
    """What the weight is loaded together with: its part, or its layer."""
    part = _part(name)
    return part if part in _WHOLE else re.sub(r"(\.(conv|norm))?\.\w+$", "", name)


def _renamed(weights: Mapping[str, torch.Tensor], prefixes: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """With other beginnings of some names."""
    result = {}
    for name, value in weights.items():
        prefix = next((each for each in prefixes if name.startswith(each)), "")
        result[prefixes.get(prefix, "") + name.removeprefix(prefix)] = value
    return result


def _stages(names: Iterable[str]) -> int:
    """Of our encoder."""
    start = f"{_OURS}stages."
    return len({name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start)})


def _kind(flag: str) -> str:
    return "an LDSegNet" if flag == PRETRAINED else "nnU-Net's own U-Nets"
