"""The network's configuration: a frozen dataclass that round-trips to `arch_kwargs` of the plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ldseg_auto.errors import LDSegError

# One table per choice: the planner, the network and the command line all validate against these.
SCHEDULES = ("cosine", "linear", "quadratic")
PREDICTIONS = ("x0", "v", "eps")
STANDARDISATIONS = ("tracked", "sample")
OUTPUTS = ("softmax", "sigmoid")
ENCODERS = ("plain", "residual")

_LEAST_SIGMA, _MAX_SIGMA = 0.01, 10.0  # voxels: less changes nothing, more no tile bears

FORMAT_KEY = "ldseg_plans_format"
PLANS_FORMAT = 2  # of what the planner writes; 1 did not say so


def require_known_format(plans: Mapping[str, Any]) -> None:
    """Older plans are read: what they do not name has the value that was meant then.

    Raises:
        LDSegError: the plans are newer than this version.
    """
    written = plans.get(FORMAT_KEY, 1)
    if type(written) is not int or written > PLANS_FORMAT:
        raise LDSegError(f"The plans have format {written}, this version reads up to {PLANS_FORMAT}.",
                         "Install a newer ldseg_auto, or plan again under another name (-overwrite_plans_name).")


@dataclass(frozen=True)
class LDSegConfig:
    """Everything `LDSegNet` needs besides the numbers of channels.

    The first block is nnU-Net's own description of an encoder; classes come as classes (nnU-Net's loader imports
    them). Spatial sequences have one entry per axis, in the order of the patch.
    """

    # nnU-Net's encoder
    n_stages: int
    features_per_stage: tuple[int, ...]
    conv_op: Any
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    n_conv_per_stage: tuple[int, ...]
    latent_stride: tuple[int, ...]  # voxels per latent position, per axis; a cumulative stride of the encoder
    latent_channels: int
    conv_bias: bool = True
    norm_op: Any = None
    norm_op_kwargs: dict | None = None
    dropout_op: Any = None
    dropout_op_kwargs: dict | None = None
    nonlin: Any = None
    nonlin_kwargs: dict | None = None
    encoder: str = "plain"
    smoothing_sigma: tuple[float, ...] = ()  # of prediction's Gaussian, voxels per axis; empty: none
    previous_stage_channels: int = 0  # the last of the image's: a cascade's first stage, one for each foreground label

    # label autoencoder and denoiser
    label_features: int = 32  # width of the label autoencoder at the latent's grid
    denoiser_features: tuple[int, ...] = (64, 128)  # width per level of the denoiser's U-Net
    denoiser_blocks: int = 1  # residual blocks per level and direction
    standardisation: str = "tracked"

    # diffusion
    schedule: str = "cosine"
    zero_terminal_snr: bool = True
    prediction: str = "x0"
    timesteps: int = 1000

    # default sampler
    sampler_steps: int = 2
    sampler_eta: float = 0.0
    sampler_samples: int = 5

    # labels
    output: str = "softmax"
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("schedule", SCHEDULES), ("prediction", PREDICTIONS), ("output", OUTPUTS),
                              ("standardisation", STANDARDISATIONS), ("encoder", ENCODERS)):
            value = getattr(self, name)
            if value not in allowed:
                raise LDSegError(f"{name} is {value!r} in the plans.", f"Choose one of {', '.join(allowed)}.")
        if self.prediction == "eps" and self.zero_terminal_snr:
            raise LDSegError(
                "prediction 'eps' with zero_terminal_snr divides by zero: at the last timestep z_t holds no z_0.",
                "Use prediction 'x0' or 'v', or set zero_terminal_snr to false.")
        if self.latent_stride not in self.cumulative_strides():
            raise LDSegError(
                f"latent_stride {self.latent_stride} is not on the encoder's pooling path.",
                f"Possible values for these strides: {self.cumulative_strides()}.")
        sigma = self.smoothing_sigma
        if sigma != () and not (isinstance(sigma, tuple) and len(sigma) == len(self.latent_stride) and all(
                isinstance(s, (int, float)) and (s == 0 or _LEAST_SIGMA <= s <= _MAX_SIGMA) for s in sigma)):
            raise LDSegError(f"smoothing_sigma is {sigma!r} in the plans.",
                             f"Give a list with one value an axis, each 0 or {_LEAST_SIGMA} to {_MAX_SIGMA} voxels, "
                             "or an empty list for none.")
        if self.previous_stage_channels < 0:
            raise LDSegError(f"previous_stage_channels is {self.previous_stage_channels}.", "It must be at least 0.")
        for name in ("latent_channels", "label_features", "denoiser_blocks", "timesteps", "sampler_steps",
                     "sampler_samples"):
            if getattr(self, name) < 1:
                raise LDSegError(f"{name} is {getattr(self, name)}.", "It must be at least 1.")

    def cumulative_strides(self) -> list[tuple[int, ...]]:
        """Voxels per position of each encoder stage, per axis."""
        path = [tuple(1 for _ in self.strides[0])]
        for stride in self.strides:
            path.append(tuple(a * b for a, b in zip(path[-1], stride, strict=True)))
        return path[1:]

    @property
    def latent_stage(self) -> int:
        """Index of the first encoder stage whose grid is the latent's."""
        return self.cumulative_strides().index(self.latent_stride)

    @classmethod
    def from_arch_kwargs(cls, arch_kwargs: Mapping[str, Any]) -> LDSegConfig:
        """From the plans (lists become tuples).

        Raises:
            LDSegError: a key is unknown or missing, or a value is not allowed.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(arch_kwargs) - known)
        if unknown:
            raise LDSegError(f"Unknown keys in the plans' arch_kwargs: {', '.join(unknown)}.",
                             "They were written by another version: install that one, or plan and train again with "
                             "this one.")
        try:
            return cls(**{name: _as_tuple(value) for name, value in arch_kwargs.items()})
        except TypeError as error:
            raise LDSegError(f"The plans' arch_kwargs are incomplete: {error}.",
                             "Plan again with this version: ldseg_plan_and_preprocess -d DATASET_ID.") from error

    def to_arch_kwargs(self) -> dict[str, Any]:
        """As `from_arch_kwargs` takes it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value
