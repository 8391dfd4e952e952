"""Writing a trained model into one zip that others can check and install."""

from __future__ import annotations

import json
import os
import platform
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import ldseg_auto
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    DEFAULT_CHECKPOINT,
    DEFAULT_PLANS,
    DEFAULT_TRAINER,
    RESULTS,
    Fold,
    find_dataset,
    find_model,
    find_models,
    folder_of,
    parse_folds,
    previous_stage,
    read_json,
    require_environment,
    require_trained_folds,
    trained_folds,
)
from ldseg_auto.locks import one_at_a_time
from ldseg_auto.run_locks import exporting
from ldseg_auto.sharing.archive import MAX_TABLE_BYTES, open_archive
from ldseg_auto.sharing.manifest import (
    CHECKPOINT,
    INFERENCE,
    LICENCE,
    OPTIONAL_OF_FOLD,
    OPTIONAL_OF_MODEL,
    REQUIRED_OF_MODEL,
    SUMMARY,
    WEIGHTS,
    Entry,
    Manifest,
)
from ldseg_auto.sharing.opening import read_model, read_weights

NO_LICENCE = ("No licence was given with this model: its authors have not said what others may do with it.\n"
              "Ask them before you use it or pass it on.\n")


@one_at_a_time(exporting)
def export_model(dataset: str, output_file: str, *, configurations: Sequence[str] | None = None,
                 folds: Sequence[str | int] | None = None, trainer_name: str = DEFAULT_TRAINER,
                 plans_name: str = DEFAULT_PLANS, checkpoint_name: str = DEFAULT_CHECKPOINT,
                 licence: str | None = None, overwrite: bool = False) -> Manifest:
    """Write what prediction needs of a data set's models, and how good they are, into one zip.

    Left out: what only a training needs (optimiser, raw weights), logs and debug.json (they name folders and machines),
    nnU-Net's pickled postprocessing.

    Args:
        dataset: name or ID.
        configurations: None takes every one that is trained.
        folds: of each configuration; None takes those that are trained.
        licence: a text file for the model; None keeps the one that an imported model came with, or says that there is
            none.
        overwrite: replace the zip if it exists.

    Returns:
        What the zip holds.

    Raises:
        LDSegError: anything asked for does not exist, or the model could not be imported elsewhere.
    """
    require_environment(RESULTS)
    dataset = find_dataset(dataset)
    output = Path(output_file)
    _require_writable(output, overwrite)
    models = _find_models(dataset, trainer_name, plans_name, configurations, checkpoint_name)
    chosen = {name: parse_folds(map(str, folds)) if folds else trained_folds(model, checkpoint_name)
              for name, model in models.items()}
    manifest = Manifest(dataset, trainer_name, plans_name, checkpoint_name, chosen,
                        datetime.now(timezone.utc).isoformat(timespec="seconds"), _versions())
    _require_first_stages(models)
    for name, model in models.items():
        require_trained_folds(model, chosen[name], checkpoint_name)
        _require_importable(model, name)
    terms = _licence_of(models.values(), licence)
    return _write(output, manifest, _files(manifest, models, terms))


def _find_models(dataset: str, trainer_name: str, plans_name: str, configurations: Sequence[str] | None,
                 checkpoint_name: str) -> dict[str, Path]:
    """The folder of each configuration."""
    name = (dataset, trainer_name, plans_name)
    if configurations:
        return {configuration: find_model(*name, configuration, checkpoint_name) for configuration in configurations}
    find_model(*name, None, checkpoint_name)  # where nothing is trained it says what there is
    return find_models(*name, checkpoint_name)


def _require_first_stages(models: dict[str, Path]) -> None:
    """Raise where a cascade's second stage would be shared without the first, which its prediction needs."""
    for name, model in models.items():
        plans, _ = read_model(model)
        first = previous_stage(plans, name) if name in plans["configurations"] else None
        if first is not None and first not in models:
            raise LDSegError(f"{name} is a cascade's second stage: without {first} nobody could predict with it.",
                             f"Export both: -c {first} {name} (train {first} where it is not); or leave {name} out.")


def _require_importable(model: Path, configuration: str) -> None:
    """Raise where ldseg_import would refuse the model."""
    plans, _ = read_model(model)
    if configuration not in plans["configurations"]:
        raise LDSegError(f"{model / 'plans.json'} has no configuration {configuration}.",
                         "Name the configurations to export with -c.")


def _licence_of(models: Iterable[Path], licence: str | None) -> dict[Path, bytes]:
    """The licence of each model: the given file, or what an imported one came with."""
    if licence is not None and not Path(licence).is_file():
        raise LDSegError(f"There is no file {licence}.", "Give a text file with the model's licence to --licence.")
    sources = {model: Path(licence) if licence is not None else model / LICENCE for model in models}
    if not all(source.is_file() for source in sources.values()):
        print("No licence was given (--licence FILE), and the zip says so.")
    return {model: source.read_bytes() if source.is_file() else NO_LICENCE.encode()
            for model, source in sources.items()}


def _files(manifest: Manifest, models: dict[str, Path], terms: dict[Path, bytes]) -> Iterator[tuple[str, bytes]]:
    """Each file's name in the zip and its content."""
    for model in models.values():
        folder = f"{manifest.dataset}/{model.name}"
        yield f"{folder}/{LICENCE}", terms[model]
        for name in (*REQUIRED_OF_MODEL, *OPTIONAL_OF_MODEL):
            if name != LICENCE and (model / name).is_file():
                yield f"{folder}/{name}", (model / name).read_bytes()
        for fold in manifest.models[model.name]:
            yield from _files_of_fold(model / f"fold_{fold}", f"{folder}/fold_{fold}", manifest, fold)
    choice = folder_of(RESULTS) / manifest.dataset / INFERENCE
    if choice.is_file():
        yield f"{manifest.dataset}/{INFERENCE}", choice.read_bytes()


def _files_of_fold(source: Path, folder: str, manifest: Manifest, fold: Fold) -> Iterator[tuple[str, bytes]]:
    from ldseg_auto.sharing.weights import to_bytes

    content = _load(source / manifest.checkpoint)
    configuration = content["init_args"]["configuration"]
    trained_as = f"{content['trainer_name']}__{manifest.plans}__{configuration}"
    if trained_as != source.parent.name:
        raise LDSegError(f"{source / manifest.checkpoint} was trained as {trained_as}.",
                         "Give the model's folder the name that it was trained under, or leave it out with -c.")
    axes = content.get("inference_allowed_mirroring_axes")
    yield f"{folder}/{WEIGHTS}", to_bytes(content["network_weights"])
    yield f"{folder}/{CHECKPOINT}", _json({
        "trainer_name": content["trainer_name"], "configuration": configuration,
        "init_args": {"configuration": configuration, "fold": fold},
        "inference_allowed_mirroring_axes": None if axes is None else list(axes)})
    for name in OPTIONAL_OF_FOLD:
        if (source / name).is_file():
            yield f"{folder}/{name}", _summary(source / name) if name == SUMMARY else (source / name).read_bytes()


def _load(file: Path) -> dict[str, Any]:
    content = read_weights(file)
    missing = [key for key in ("trainer_name", "init_args") if key not in content]
    if missing:
        raise LDSegError(f"{file} lacks {', '.join(missing)}: it is no checkpoint of nnU-Net's kind.",
                         "Name another one with -chk.")
    return content


def _summary(file: Path) -> bytes:
    """The scores, without the folders in which this machine keeps the files."""
    content = read_json(file)
    for case in content.get("metric_per_case", []):
        for key in ("prediction_file", "reference_file"):
            if case.get(key):
                case[key] = PurePath(case[key]).name
    return _json(content)


def _write(output: Path, manifest: Manifest, files: Iterator[tuple[str, bytes]]) -> Manifest:
    """The files as they come, one at a time in memory, and the manifest; to a temporary name, then renamed."""
    temporary = output.with_name(f"{output.name}.part")
    entries = {}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as written:
            for name, content in files:
                if len(content) > MAX_TABLE_BYTES and not name.endswith(WEIGHTS):
                    print(f"Left out, too large to be imported: {name}")
                    continue
                entries[name] = Entry(sha256(content).hexdigest(), len(content))
                written.writestr(_entry(name), content)
            complete = replace(manifest, files=entries)
            written.writestr(_entry(complete.own_name), _json(complete.to_json()))
        with open_archive(temporary):
            pass  # it can be imported
        os.replace(temporary, output)
    except OSError as error:
        raise LDSegError(f"{output} cannot be written: {error}.", "Give -o a place with room for the zip.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return complete


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, datetime.now().timetuple()[:6])
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith((WEIGHTS, ".png")) else zipfile.ZIP_DEFLATED
    return entry


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2).encode()


def _require_writable(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise LDSegError(f"The output {output} is a folder.", "Give the name of a zip to -o.")
    if output.exists() and not overwrite:
        raise LDSegError(f"{output} exists.", "Give another name to -o, or --overwrite to replace it.")


def _versions() -> dict[str, str]:
    return {"ldseg_auto": ldseg_auto.__version__, "nnunetv2": version("nnunetv2"), "torch": version("torch"),
            "python": platform.python_version()}
