"""Installing a shared model beside nnU-Net's own: checked, unpacked and converted elsewhere, then moved into place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ldseg_auto.config import FORMAT_KEY, require_known_format
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    DEFAULT_CHECKPOINT,
    RESULTS,
    Fold,
    dataset_id,
    folder_of,
    others_with_the_id_of,
    require_environment,
)
from ldseg_auto.inference.choice import FORMAT_KEY as FORMAT_OF_CHOICE
from ldseg_auto.inference.choice import load_best, load_choice
from ldseg_auto.locks import held
from ldseg_auto.run_locks import importing, require_not_training
from ldseg_auto.sharing.archive import Archive, open_archive, parse_json
from ldseg_auto.sharing.manifest import (
    CHECKPOINT,
    INFERENCE,
    MANIFEST,
    NOT_OURS,
    WEIGHTS,
    Manifest,
    is_plain_name,
    short,
)
from ldseg_auto.sharing.opening import require_known_trainer
from ldseg_auto.sharing.trusted import require_trusted

_REPLACED = "replaced"


def import_model(zip_file: str, overwrite: bool = False) -> list[Path]:
    """Install the models of a zip that ldseg_export wrote, below nnUNet_results.

    All is checked before any of it is installed, and no code from the zip is run: weights are safetensors, and what
    the plans name must be known (`trusted.py`). Until it is complete it lies in a hidden folder beside the target; a
    failure or an interruption leaves what was there.

    Args:
        zip_file: of any origin.
        overwrite: replace models that are there, with all of their folds.

    Returns:
        The folder of each model; its folds hold a checkpoint_final.pth that nnU-Net's predictor and ours load.

    Raises:
        LDSegError: the zip is refused, a model of that name exists, or it cannot be written.
    """
    require_environment(RESULTS)
    results = folder_of(RESULTS)
    with open_archive(Path(zip_file)) as archive:
        manifest = archive.manifest
        dataset = results / manifest.dataset
        targets = [dataset / model for model in manifest.models]
        require_known_trainer(manifest.trainer)
        with held(importing(manifest.dataset)):
            _require_free(targets, overwrite)
            with _writing(results), _temporary_folder(dataset if dataset.is_dir() else results) as temporary:
                _require_room(temporary, archive)
                archive.unpack(temporary)
                _convert_models(temporary / manifest.dataset, manifest)
                if _merge_choice(temporary / manifest.dataset, dataset, manifest, overwrite):
                    targets.append(dataset / INFERENCE)
                _move([(temporary / manifest.dataset / target.name, target) for target in targets],
                      temporary / _REPLACED)
    if dataset / INFERENCE in targets:
        print(f"Installed the choice among configurations: {dataset / INFERENCE}")
    _warn_of_ambiguous_id(manifest.dataset)
    return [dataset / model for model in manifest.models]


def _require_free(targets: Iterable[Path], overwrite: bool) -> None:
    targets = list(targets)
    for target in targets:
        require_not_training(target)
    there = [str(target) for target in targets if os.path.lexists(target)]
    if there and not overwrite:
        raise LDSegError(f"There is already {', '.join(there)}.",
                         "Move it away, or replace it with --overwrite (a model with all of its folds).")


def _require_room(folder: Path, archive: Archive) -> None:
    weights = [entry.bytes for name, entry in archive.manifest.files.items() if name.endswith(f"/{WEIGHTS}")]
    needed = archive.unpacked_bytes + max(weights)  # each fold's weights are converted beside the old
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LDSegError(f"The model needs {needed} bytes, on the disk of {folder.parent} {free} are free.",
                         "Make room, or set nnUNet_results to a folder on another disk.")


def _convert_models(dataset: Path, manifest: Manifest) -> None:
    """What was unpacked becomes what predictors read; checked before."""
    for (model, folds), configuration in zip(manifest.models.items(), manifest.configurations, strict=True):
        _require_trusted(dataset / model, configuration)
        with _usable(dataset):
            load_choice(dataset / model)
        for fold in folds:
            _convert(dataset / model / f"fold_{fold}", manifest.trainer, configuration, fold)
        shutil.copyfile(dataset / MANIFEST, dataset / model / MANIFEST)


def _require_trusted(model: Path, configuration: str) -> None:
    plans, description = (parse_json((model / name).read_bytes(), name) for name in ("plans.json", "dataset.json"))
    require_trusted(plans, description)
    if type(plans.get(FORMAT_KEY, 1)) is not int:
        raise LDSegError(f"{FORMAT_KEY} in plans.json is no number.", NOT_OURS)
    require_known_format(plans)
    if configuration not in plans["configurations"]:
        raise LDSegError(f"plans.json has no configuration {short(configuration)}.", NOT_OURS)


def _merge_choice(unpacked: Path, installed: Path, manifest: Manifest, overwrite: bool) -> bool:
    """Make of the unpacked choice among configurations the one that is installed with this trainer and plans' in it.

    Of other trainers and plans nothing is taken, nor changed. What was chosen here among models of the same trainer and
    plans stays, unless `overwrite`: to add a configuration must not change what ldseg_predict does with those there.

    Returns:
        Whether there is anything to install.
    """
    names = (manifest.trainer, manifest.plans)
    with _usable(unpacked):
        theirs = load_best(unpacked, *names)
    if theirs is None:
        return False
    if not all(map(is_plain_name, theirs.configurations)):
        raise LDSegError(f"{INFERENCE} names the configurations {short(theirs.configurations)}.", NOT_OURS)
    try:
        ours = load_best(installed, *names)
        content = json.loads((installed / INFERENCE).read_bytes()) if (installed / INFERENCE).is_file() else {}
    except LDSegError as error:
        if not overwrite:
            print(f"WARNING: {error.cause} It was left as it is.")
            return False
        ours, content = None, {}
    if ours == theirs:
        return False
    if ours is not None and not overwrite:
        print(f"Kept the choice among configurations that is here ({' and '.join(ours.configurations)}); the zip's "
              f"({' and '.join(theirs.configurations)}) is installed with --overwrite: {installed / INFERENCE}")
        return False
    file = unpacked / INFERENCE
    new = json.loads(file.read_bytes())
    file.write_text(json.dumps(content | {key: new[key] for key in (FORMAT_OF_CHOICE, "__".join(names))}, indent=2))
    return True


@contextmanager
def _usable(unpacked: Path) -> Iterator[None]:
    """A choice that prediction would refuse is refused here."""
    try:
        yield
    except LDSegError as error:
        cause = short(error.cause.replace(f"{unpacked}{os.sep}", ""))
        raise LDSegError(f"The zip's choice of sampler cannot be used: {cause}",
                         f"Install a newer ldseg_auto where it asks for one. Or else: {NOT_OURS}") from error


def _convert(folder: Path, trainer: str, configuration: str, fold: Fold) -> None:
    """A fold's weights and what describes them become the checkpoint that nnU-Net's predictor and ours load."""
    from ldseg_auto.sharing.weights import from_file
    from ldseg_auto.trainers import checkpoint

    described = parse_json((folder / CHECKPOINT).read_bytes(), CHECKPOINT)
    names = (described.get("trainer_name"), described.get("configuration")) if isinstance(described, dict) else None
    if names != (trainer, configuration):
        raise LDSegError(f"{CHECKPOINT} of fold {fold} does not belong to {trainer} and {configuration}.", NOT_OURS)
    content = {"network_weights": from_file(folder / WEIGHTS), "trainer_name": trainer,
               "init_args": {"configuration": configuration, "fold": fold},
               "inference_allowed_mirroring_axes": _mirroring(described.get("inference_allowed_mirroring_axes"))}
    try:
        checkpoint.save(content, str(folder / DEFAULT_CHECKPOINT))
    except RuntimeError as error:  # torch says so where a disk is full
        raise OSError(f"the weights were not written completely ({error})") from error
    for name in (WEIGHTS, CHECKPOINT):
        (folder / name).unlink()


def _mirroring(axes: Any) -> tuple[int, ...] | None:
    if axes is None:
        return None
    if not isinstance(axes, list) or any(type(axis) is not int or axes.count(axis) > 1 or axis not in (0, 1, 2)
                                         for axis in axes):
        raise LDSegError(f"{short(axes)} are no axes to mirror.", NOT_OURS)
    return tuple(axes)


def _move(pairs: list[tuple[Path, Path]], replaced: Path) -> None:
    """Put each new one in the place of its target, all or none: what was there goes to `replaced`."""
    with ExitStack() as undo:
        for new, target in pairs:
            if not target.parent.exists():
                undo.callback(_remove_empty, target.parent)
                target.parent.mkdir()
            # each is undone only as far as it was done: an interruption may come between any two lines
            undo.callback(_move_back, replaced / target.name, target)
            if os.path.lexists(target):
                target.rename(replaced / target.name)
            undo.callback(_move_back, target, new)
            new.rename(target)
        undo.pop_all()


def _move_back(source: Path, to: Path) -> None:
    if os.path.lexists(source) and not os.path.lexists(to):
        source.rename(to)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder below `parent`, on the same disk, removed at the end; with `replaced/` below it."""
    with ExitStack() as leave:
        if not parent.exists():
            leave.callback(_remove_empty, parent)
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".ldseg_import_", dir=parent))
        leave.callback(_discard, folder)
        (folder / _REPLACED).mkdir()
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove what is left, but nothing that was replaced and could not be moved back."""
    if any((folder / _REPLACED).glob("*")):
        print(f"What was there before lies in {folder / _REPLACED}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LDSegError(f"The model cannot be written below {folder}: {error}.",
                         "Nothing was changed: make room, or set nnUNet_results to another folder.") from error


def _warn_of_ambiguous_id(dataset: str) -> None:
    others = others_with_the_id_of(dataset)
    if others:
        print(f"WARNING: the ID {dataset_id(dataset)} now stands for {', '.join([dataset, *others])}: give -d the full "
              "name.")
