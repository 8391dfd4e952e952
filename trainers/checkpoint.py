"""Checkpoints that `torch.load(weights_only=True)` opens and that are never half written."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from ldseg_auto.errors import LDSegError, reason_of
from ldseg_auto.trainers.interruption import finish_first

LATEST, PREVIOUS = "checkpoint_latest.pth", "checkpoint_latest_before.pth"
_RETRY_SECONDS = 30.0


def plain(value: Any) -> Any:
    """The same content in Python's own types: numpy scalars and arrays, tuples and devices are converted."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.device):
        return str(value)
    return value


def save(content: dict, filename: str, previous: str | None = None) -> None:
    """Write to a temporary name beside `filename`, then rename: an interruption leaves the old file.

    Args:
        content: plain values and tensors.
        filename: of the checkpoint.
        previous: the name, in the same folder, under which the file that is replaced is kept.

    Raises:
        NotWrittenError: the disk is full, or cannot be written to; the old file is as it was.
    """
    target, temporary = Path(filename), Path(f"{filename}.part")
    with finish_first():
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())  # otherwise a power cut could leave the new name and no content
            if previous is not None and target.is_file():
                _keep(target, target.with_name(previous))
            os.replace(temporary, target)
            _flush_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            raise NotWrittenError(target, content, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def save_patiently(content: dict, filename: str, log: Callable[[str], None], patience_seconds: float,
                   previous: str | None = None) -> None:
    """`save`; where the disk is full, give up the older checkpoint of the same training, then wait for room.

    Args:
        log: is told of both.
        patience_seconds: to wait at most.
        content, filename, previous: of `save`.

    Raises:
        NotWrittenError: there was no room in all that time; the old file is as it was.
    """
    end = monotonic() + patience_seconds
    older = Path(filename).with_name(PREVIOUS)
    told = False
    while True:
        try:
            return save(content, filename, previous)
        except NotWrittenError as error:
            if older.is_file():
                log(f"WARNING: {error.cause} The older {PREVIOUS} is removed to make room.")
                older.unlink()
                continue
            if monotonic() >= end:
                raise
            if not told:
                log(f"WARNING: {error.cause} The training waits up to {patience_seconds / 60:.0f} min for room.")
                told = True
            sleep(min(_RETRY_SECONDS, patience_seconds))


class NotWrittenError(LDSegError):
    """A checkpoint could not be written."""

    def __init__(self, file: Path, content: dict, error: Exception):
        needed, free = _megabytes(content), shutil.disk_usage(file.parent).free / 1e6
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        super().__init__(f"{file} could not be written ({reason}); it takes {needed:.0f} MB, {free:.0f} MB are free "
                         "(a quota may allow less).",
                         "Make room, then run the same command again: it goes on after the last epoch that was saved.")


def load(filename: str, device: torch.device) -> dict:
    """Open a checkpoint without running code from it.

    Raises:
        LDSegError: it is missing, damaged, or holds more than plain values and tensors.
    """
    damage = find_damage(filename)
    if damage is not None:
        raise _damaged(filename, damage)
    return _open(filename, device)


def load_newest(filename: str, device: torch.device, log: Callable[[str], None]) -> dict:
    """`load`; where the newest checkpoint of an unfinished training is damaged, that of the epoch before it, or else
    the best. A damaged file is set aside: it must not become the previous one of the next.

    Raises:
        LDSegError: none can be read.
    """
    newest = Path(filename)
    others = [PREVIOUS, "checkpoint_best.pth"] if newest.name == LATEST else []
    candidates = [newest, *(file for name in others if (file := newest.with_name(name)).is_file())]
    damages = {}
    for file in candidates:
        damage = find_damage(str(file))
        if damage is None:
            break
        damages[file] = damage
    else:
        raise _damaged(", ".join(map(str, damages)), "; ".join(damages.values()))
    for damaged, damage in damages.items():
        log(f"WARNING: {damaged} is damaged ({damage}) and set aside; the training goes on from {file.name}.")
        os.replace(damaged, damaged.with_name(f"damaged_{damaged.name}"))
    if damages:
        _keep(file, newest)  # what nnU-Net continues from, should this run be interrupted too
    return _open(str(file), device)


def remove_leftovers(folder: str) -> None:
    """What a killed training had not finished writing."""
    for file in Path(folder).glob("checkpoint_*.part"):
        file.unlink()


def find_damage(filename: str) -> str | None:
    """What is wrong with the file, by the checksums that torch stores and does not look at; None where it is whole.

    Raises:
        LDSegError: there is no such file.
    """
    try:
        with ZipFile(filename) as archive:
            broken = archive.testzip()
    except FileNotFoundError as error:
        raise LDSegError(f"There is no checkpoint {filename}.",
                         "Train first, or name another one with -chk.") from error
    except (BadZipFile, EOFError, NotImplementedError, zlib.error, ValueError) as error:
        return f"cut off or overwritten: {error}"
    return None if broken is None else f"wrong checksum of {broken}"


def require_resumable(content: dict, folder: str) -> None:
    """Raise unless a training can go on from it, and be validated: an imported model holds what prediction needs."""
    if "optimizer_state" not in content:
        raise LDSegError(f"The checkpoint in {folder} was imported: it holds no training to continue or to validate.",
                         "Predict with it, or start a training from its weights (-pretrained_weights).")


def _open(filename: str, device: torch.device) -> dict:
    try:
        return torch.load(filename, map_location=device, weights_only=True)
    except Exception as error:
        raise LDSegError(f"The checkpoint {filename} cannot be read ({reason_of(error)}).",
                         "It is not one of ldseg_auto's: use another checkpoint or train again.") from error


def _damaged(filename: str, damage: str) -> LDSegError:
    return LDSegError(f"The checkpoint {filename} is damaged ({damage}).",
                      "Use another checkpoint, or train anew (--restart).")


def _keep(file: Path, name: Path) -> None:
    """The file under another name too, without a moment in which it has none."""
    temporary = name.with_name(f"{name.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(file, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # where both were the same file already, nothing was renamed


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _megabytes(content: Any) -> float:
    """Of the tensors in a checkpoint."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size() / 1e6
    if isinstance(content, dict):
        return sum(map(_megabytes, content.values()))
    return sum(map(_megabytes, content)) if isinstance(content, (list, tuple)) else 0.0
