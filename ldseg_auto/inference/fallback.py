"""Out of memory: smaller batches in place of an end. Tiles keep their size, which would change the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ldseg_auto.errors import LDSegError

_LATENTS_PER_IMAGE = 4  # a latent takes a fraction of an image's memory: that many more go through the denoiser
# what devices and the CPU's allocator say where they do not raise torch.OutOfMemoryError
_SAID = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory",
         "cudnn_status_alloc_failed", "cublas_status_alloc_failed", "unable to allocate")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


class BatchSizes:
    """How many images and latents go through the network together, and where results are added up: less each time that
    memory does not suffice, for the rest of the run.

    Args:
        images: at most.
        device: of the network.
        results: where tiles are added up.
    """

    def __init__(self, images: int, device: torch.device, results: torch.device):
        self.images, self.latents = images, _LATENTS_PER_IMAGE * images
        self.device, self.results = device, results
        self._tried = [str(self)]

    def __str__(self) -> str:
        return f"{self.images} images and {self.latents} samples a batch, results on {self.results.type}"

    def until_it_fits(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, which is called again with smaller sizes where memory does not suffice; what it adds
        anywhere it must add last.

        Raises:
            LDSegError: memory did not suffice at the smallest sizes.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # outside of the block, where the traceback no longer holds the tensors
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._reduce()

    @property
    def reduced(self) -> bool:
        """Whether memory has once not sufficed."""
        return len(self._tried) > 1

    def _reduce(self) -> None:
        if self.results.type != "cpu":
            self.results = torch.device("cpu")
        elif self.images > 1:
            self.images //= 2
            self.latents = _LATENTS_PER_IMAGE * self.images
        elif self.latents > 1:
            self.latents = 1
        else:
            raise LDSegError(f"Memory on {self.device} does not suffice for one tile and one sample at a time "
                             f"(tried: {'; '.join(self._tried)}).",
                             "End what else uses the memory, predict with -device cpu, or with a configuration of "
                             "smaller patches (-c 3d_lowres or 2d).")
        self._tried.append(str(self))
        print(f"Out of memory: going on with {self}.", flush=True)
