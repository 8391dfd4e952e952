"""Reverse diffusion as a film strip: what the label decoder makes of z_t at each step from noise to segmentation."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image

from ldseg_auto.demo.pictures import fullest_slice
from ldseg_auto.inference.noise import NoiseKey, noise_tile
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.previous_stage import as_channels
from ldseg_auto.inference.tiling import Tile, padded_shape, tiles
from ldseg_auto.networks.ldseg_net import LDSegNet, unwrapped
from ldseg_auto.report.cases import Case
from ldseg_auto.report.parts import paragraph
from ldseg_auto.report.pictures import Palette, grey, image_url, labels_url, limits

STEPS = 8  # more than prediction takes, to have something to see
_SEED = 0


@dataclass(frozen=True)
class Film:
    """One slice of one tile, in the network's own spacing and axes."""

    image: np.ndarray  # (y, x), uint8
    truth: np.ndarray  # (y, x), labels
    timesteps: tuple[int, ...]  # T ... , 0
    noisy: tuple[np.ndarray, ...]  # decoded z_t, (y, x) labels each; at t = 0 the result
    estimates: tuple[np.ndarray, ...]  # decoded estimate of z_0 from each z_t with t > 0
    aspect: float  # width over height


@dataclass(frozen=True)
class _View:
    """What is shown of a tile: one slice, without the padding around small images."""

    index: int | None  # None where the tile is flat
    window: tuple[slice, slice]

    def of(self, tile: np.ndarray) -> np.ndarray:
        """(z, y, x) or (y, x) -> (y, x)."""
        return (tile if self.index is None else tile[self.index])[self.window]


@torch.inference_mode()
def film_of(predictor: LDSegPredictor, case: Case, first_stage: np.ndarray | None = None) -> Film:
    """Sample the tile of a case that holds the most foreground, with the noise that prediction uses for it.

    Args:
        predictor: with one fold loaded.
        case: with images and truth.
        first_stage: of a cascade, the first stage's segmentation on the network's grid, (z, y, x).
    """
    network: LDSegNet = unwrapped(predictor.network).to(predictor.device).eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    image, truth = _preprocessed(predictor, case)
    if first_stage is not None:
        labels_of_image = predictor.plans_manager.get_label_manager(predictor.dataset_json).foreground_labels
        image = torch.cat([image, torch.from_numpy(as_channels(first_stage, labels_of_image))])
    patch, stride = tuple(predictor.configuration_manager.patch_size), network.config.latent_stride
    shape = padded_shape(image.shape[-len(patch):], patch, stride)
    data, inside = pad_nd_image(image, shape, "constant", {"value": 0}, True, None)
    labels = pad_nd_image(truth, shape, "constant", {"value": 0})[0].numpy()
    tile = max(tiles(data.shape[1:], patch, stride, predictor.tile_step_size),
               key=lambda each: np.count_nonzero(labels[each.slicer]))
    pixels, true = data[(slice(None), *tile.slicer)], labels[tile.slicer]
    view = _View(fullest_slice(true) if true.ndim == 3 else None, _without_padding(tile, inside))
    trajectory, timesteps = _trajectory(network, pixels[None].to(predictor.device), tile, predictor.folds[0],
                                        predictor.eta)

    manager = predictor.plans_manager.get_label_manager(predictor.dataset_json)

    def segmented(latent: torch.Tensor) -> np.ndarray:
        probabilities = network.probabilities(network.decode(latent))[0].cpu().numpy()
        return view.of(np.asarray(manager.convert_probabilities_to_segmentation(probabilities)))

    shown = grey(view.of(pixels[0].numpy()), *limits(data[0].numpy()))
    height_mm, width_mm = (n * mm for n, mm in zip(shown.shape, predictor.configuration_manager.spacing[-2:],
                                                   strict=True))
    estimates = tuple(segmented(estimate) for _, estimate in trajectory)
    return Film(shown, view.of(true), (*timesteps, 0), (*(segmented(z) for z, _ in trajectory), estimates[-1]),
                estimates, width_mm / height_mm)


def _without_padding(tile: Tile, inside: Sequence[slice]) -> tuple[slice, slice]:
    """Rows and columns of the tile that lie in the image; `inside` is where the image lies in the padded one."""
    rows, columns = (slice(max(0, axis.start - start), max(0, axis.stop - start))
                     for axis, start in zip(inside[-2:], tile.start[-2:], strict=True))
    return rows, columns


def _preprocessed(predictor: LDSegPredictor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, z, y, x) and labels (1, z, y, x), the ignored ones as background."""
    configuration, plans = predictor.configuration_manager, predictor.plans_manager
    image, labels, _ = configuration.preprocessor_class(verbose=False).run_case(
        [str(file) for file in case.images], str(case.truth), plans, configuration, predictor.dataset_json)
    ignored = plans.get_label_manager(predictor.dataset_json).ignore_label
    labels = np.where((labels < 0) | (labels == ignored), 0, labels)
    return torch.from_numpy(image).float(), torch.from_numpy(labels.astype(np.int16))


def _trajectory(network: LDSegNet, image: torch.Tensor, tile: Tile, fold: int | str,
                eta: float | None) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[int]]:
    """z_t and the estimate of z_0 from it at each step, and the timesteps."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    timesteps: list[int] = []

    def record(_, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        z, timestep = arguments[:2]
        seen.append((z, network.estimate(output.float(), z, network.alpha_bar[timestep])))
        timesteps.append(int(timestep[0]))

    condition = network.encode_image(image)
    start = [a // s for a, s in zip(tile.start, network.config.latent_stride, strict=True)]

    def noise(step: int) -> torch.Tensor:
        drawn = noise_tile(_SEED, NoiseKey(fold, 0, 0, step), network.config.latent_channels, start,
                           condition.shape[2:], tile.slice_index)
        return torch.from_numpy(drawn)[None].to(condition.device)

    hook = network.denoiser.register_forward_hook(record)
    try:
        network.sample(condition, noise(0), min(STEPS, network.config.timesteps), eta, lambda i: noise(i + 1))
    finally:
        hook.remove()
    return seen, timesteps


def section(film: Film, case: Case, steps: int, samples: int, colours: Palette) -> list[str]:
    """HTML: two rows of pictures and what they show.

    Args:
        steps, samples: of the model's own sampler.
    """
    noisy = [_frame(film, labels, f"t = {t}", colours) for t, labels in zip(film.timesteps, film.noisy, strict=True)]
    estimates = [_frame(film, labels, f"from t = {t}", colours)
                 for t, labels in zip(film.timesteps, film.estimates, strict=False)]
    return [
        paragraph(f"Case {case.name}, fold {case.fold}: the tile with the most foreground, the slice of it that shows "
                  f"the most, in the network's spacing. One sample with seed {_SEED} in {len(film.estimates)} steps, "
                  f"to have something to see; predictions are the mean of {samples} samples of {steps} steps."),
        "<h3>The noisy latent, decoded</h3>",
        _strip(film, [_frame(film, None, "image", colours), _frame(film, film.truth, "truth", colours), *noisy]),
        "<h3>The estimate of the clean latent at each step, decoded</h3>", _strip(film, estimates)]


def _strip(film: Film, frames: Sequence[str]) -> str:
    return (f"<div class=strip tabindex=0 role=group aria-label='film strip' "
            f"style='--tile:url({image_url(film.image)})'>{''.join(frames)}</div>")


def _frame(film: Film, labels: np.ndarray | None, caption: str, colours: Palette) -> str:
    text = html.escape(caption)
    overlay = "" if labels is None else f"<img src='{labels_url(labels, colours)}' alt='labels, {text}'>"
    return (f"<figure><div style='aspect-ratio:{film.aspect:.4f}'>{overlay}</div>"
            f"<figcaption>{text}</figcaption></figure>")
