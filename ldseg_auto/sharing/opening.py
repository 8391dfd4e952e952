"""Opening a trained model's files without running code from them, whoever put them there."""

from __future__ import annotations

import io
import os
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ldseg_auto.config import require_known_format
from ldseg_auto.errors import LDSegError, reason_of
from ldseg_auto.folders import Fold, read_json
from ldseg_auto.sharing.manifest import short
from ldseg_auto.sharing.trusted import require_trainer_name, require_trusted

# torch's own switches: the first makes every torch.load safe, the second undoes that and must not be there beside it
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_CURE = "Do not use it unless you trust its author; then nnU-Net's own commands open it."
# held while nnU-Net's search for a class changes sys.path, sys.modules and, here, stdout: all threads share them
searching = threading.RLock()


class _Switches:
    """The two of torch in the environment, which all threads share: set by the first block that begins, put back by
    the last one that ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before: dict[str, str] = {}

    def begin(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before = {name: os.environ.pop(name) for name in (_FORCE, _FORCE_NOT) if name in os.environ}
                os.environ[_FORCE] = "1"
            self._blocks += 1

    def end(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                os.environ.pop(_FORCE, None)
                os.environ.update(self._before)


_switches = _Switches()


@contextmanager
def weights_only() -> Iterator[None]:
    """Inside the block torch.load opens tensors and plain values only, also where nnU-Net asks for more. Blocks may be
    nested and overlap in several threads; while one lasts, it holds for all threads.

    Raises:
        LDSegError: a file holds more, which would have been run.
    """
    _switches.begin()
    try:
        yield
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error):  # of another file
            raise
        raise LDSegError(f"A checkpoint holds more than tensors and plain values ({reason_of(error)}).", _CURE
                         ) from error
    finally:
        _switches.end()


def require_known_trainer(name: Any) -> None:
    """Raise unless nnU-Net, this package or a folder of the user's own nnUNet_extTrainer has such a trainer."""
    require_trainer_name(name)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from ldseg_auto.nnunet_ext import ldseg_auto_nnunet_trainers as ours

    found = getattr(ours, name, None)  # nnU-Net's search takes seconds: it imports every trainer
    if found is None:
        # it names each file that it looks into, and takes for a class whatever has the name
        with searching, suppress(RuntimeError, AssertionError, TypeError), redirect_stdout(io.StringIO()):
            found = recursive_find_trainer_class_by_name(name)
    if not (isinstance(found, type) and issubclass(found, nnUNetTrainer)):
        raise LDSegError(f"The model was trained by {name}, which is not installed here.",
                         "Install the version that has it; if it is its author's own, put its code into a folder of "
                         "nnUNet_extTrainer, provided that you trust it.")


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trained model's plans and description.

    Raises:
        LDSegError: a file is missing or no JSON, is of a newer version, or names code that is not trusted.
    """
    plans, description = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    require_trusted(plans, description)
    require_known_format(plans)
    return plans, description


def require_openable(folder: Path, folds: Sequence[Fold], checkpoint_name: str) -> None:
    """Raise unless nnU-Net's predictor can open the model without running code that it brings.

    Raises:
        LDSegError: see `read_model`; or a checkpoint is missing, damaged, or not one of a trained fold.
    """
    plans, _ = read_model(folder)
    for fold in folds:
        file = folder / f"fold_{fold}" / checkpoint_name
        content = read_weights(file)
        require_known_trainer(content.get("trainer_name"))
        described = content.get("init_args")
        configuration = described.get("configuration") if isinstance(described, dict) else None
        if not isinstance(configuration, str) or configuration not in plans["configurations"]:
            raise LDSegError(f"The checkpoint {file} is of the configuration {short(configuration)}, which the plans "
                             "beside it do not have.", "Train again, or get the model from its source again.")


def read_weights(file: Path) -> dict[str, Any]:
    """A checkpoint of whose `network_weights` a network can take over.

    Raises:
        LDSegError: it is missing, damaged, or holds anything but plain values and dense tensors.
    """
    import torch

    from ldseg_auto.trainers import checkpoint

    content = checkpoint.load(str(file), torch.device("cpu"))
    weights = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(weights, Mapping):
        raise LDSegError(f"{file} lacks network_weights: it is no checkpoint of nnU-Net's kind.",
                         "Give a checkpoint_*.pth of a trained fold.")
    for name, value in weights.items():
        # the indices of sparse tensors may point anywhere; torch checks them from 2.14 on only
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise LDSegError(f"{file} gives no dense tensor as the weight {short(name)}.", _CURE)
    return content


class _NotBuilt:
    """Stands for a number of numpy's, or its type: nobody reads them, so numpy need not build what a stranger wrote."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_NUMPY_NUMBERS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def read_weights_of_any(file: Path) -> dict[str, Any]:
    """The `network_weights` of a checkpoint of ours, or of nnU-Net's own trainers, which hold numbers of numpy's too.

    Raises:
        LDSegError: see `read_weights`.
    """
    import torch

    with torch.serialization.safe_globals([(_NotBuilt, name) for name in _NUMPY_NUMBERS]):
        return dict(read_weights(file)["network_weights"])


class _PlainUnpickler(pickle.Unpickler):
    """Builds numpy's arrays and numbers and Python's own containers; calls nothing else."""

    _ALLOWED = {("collections", "OrderedDict"), *(("builtins", name) for name in (
        "bytearray", "complex", "frozenset", "range", "set", "slice")), *((module, name) for module, name in (
            ("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode"))), *(
        (f"numpy.{core}.{module}", name) for core in ("core", "_core") for module, name in (
            ("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")))}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would call {short(f'{module}.{name}')}")


def read_properties(file: Path) -> dict[str, Any]:
    """nnU-Net's CASE.pkl, the geometry of a case, from a folder that others may have written to.

    Raises:
        LDSegError: it holds more than numbers, arrays and containers of them, or is damaged.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(file.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise LDSegError(f"{file} cannot be read ({reason_of(error)}).",
                         "Remove it and predict again.") from error
    if not isinstance(content, dict):
        raise LDSegError(f"{file} does not hold the geometry of a case.", "Remove it and predict again.")
    return content
