"""Which device to compute on, and with how many threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import TYPE_CHECKING

from ldseg_auto.errors import LDSegError

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda", "cpu", "mps")
_NNUNET_PROCESSES = 8  # nnU-Net's default, whatever the machine


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_processes() -> None:
    """Keep nnU-Net from starting more worker processes than there are cores. Call before importing nnunetv2."""
    os.environ.setdefault("nnUNet_def_n_proc", str(min(_NNUNET_PROCESSES, cores())))


def end_with_parent() -> None:
    """In a process that another one started: end with it, however that ends. A process of concurrent.futures would wait
    for ever, with all its memory, and what is being written would appear beside the files of the next run."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def select_device(name: str | None = None, processes: int = 1) -> torch.device:
    """The named device, or else the GPU if there is one; sets torch's threads to fit it, and as many processes on it.

    Raises:
        LDSegError: the device is unknown or not available on this machine, or what it should compute in is unknown.
    """
    import torch

    from ldseg_auto.precision import cpu_precision

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise LDSegError(f"Device {name!r} is unknown.", f"Choose one of: {', '.join(DEVICES)}.")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}[name]
    if not available:
        raise LDSegError(f"Device {name} is not available to this installation of torch.",
                         "Use -device cpu, or install a torch built for your GPU.")
    if name == "cpu":
        cpu_precision()  # says now what would otherwise be said in the middle of the work
    if name == "cuda":
        torch.set_num_threads(1)  # beside a GPU the cores belong to the augmentation workers
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes))
    return torch.device(name)
