"""Mixed precision and memory layout: what a device computes fastest, with weights, losses and sums in 32 bits.

On a GPU as nnU-Net does it. On a CPU with instructions for bfloat16 (AMX, AVX-512 BF16) convolutions in that format
are several times as fast (measured: benchmarks/RESULTS.md); other CPUs emulate it slowly and stay with 32 bits.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ldseg_auto.errors import LDSegError

VARIABLE = "LDSEG_CPU_PRECISION"
PRECISIONS = ("bfloat16", "float32")
_Module = TypeVar("_Module", bound=nn.Module)


def cpu_precision() -> str:
    """"bfloat16" or "float32", as the environment variable LDSEG_CPU_PRECISION says, or else as suits this CPU.

    Raises:
        LDSegError: the variable has another value.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return "bfloat16" if has_fast_bfloat16() else "float32"
    if chosen not in PRECISIONS:
        raise LDSegError(f"{VARIABLE} is {chosen!r}.", f"Set it to one of {', '.join(PRECISIONS)}, or unset it.")
    return chosen


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 by itself."""
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.11 has none
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))


def autocast(device: torch.device) -> AbstractContextManager:
    """Inside the block convolutions and products are computed in 16 bits where that suits the device."""
    if device.type == "cuda":
        return torch.autocast("cuda")
    if device.type == "cpu" and cpu_precision() == "bfloat16":
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def laid_out_for(device: torch.device, network: _Module) -> _Module:
    """The network with its weights as the device's convolutions read them fastest: on a CPU channels last."""
    if device.type == "cpu":
        for parameter in network.parameters():
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
            if layout is not None:
                parameter.data = parameter.data.contiguous(memory_format=layout)
    return network


class OneDNNForSingleImages(TorchFunctionMode):
    """Inside the block a CPU convolves a single image in 32 bits by oneDNN, as it does two: torch gives single images
    to a kernel of its own, which is up to seven times slower on coarse grids (measured: benchmarks/RESULTS.md). For
    prediction: nothing is recorded for gradients.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (torch.conv2d, torch.conv3d) and not kwargs and _is_single_image(args[0], args[1]):
            image, weight, bias, stride, padding, dilation, groups = args
            return torch.mkldnn_convolution(image, weight, bias, padding, stride, dilation, groups)
        return func(*args, **(kwargs or {}))


def _is_single_image(image: torch.Tensor, weight: torch.Tensor) -> bool:
    onednn = torch.backends.mkldnn
    return bool(len(image) == 1 and image.ndim == weight.ndim and image.device.type == "cpu"
                and image.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
                and not torch.is_grad_enabled() and onednn.is_available() and onednn.enabled)
