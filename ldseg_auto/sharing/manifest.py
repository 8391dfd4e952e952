"""The manifest of a shared model, and the files that such a zip may hold.

    DatasetXXX_NAME/manifest.json
    DatasetXXX_NAME/ldseg_inference.json                 (optional, as all that is not in `REQUIRED_*`)
    DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/       plans.json, dataset.json, LICENSE, ...
    DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/fold_X/    weights.safetensors, checkpoint.json, ...

Names of files are never taken from a zip: they are built here from checked parts and compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ldseg_auto.errors import LDSegError

if TYPE_CHECKING:
    from ldseg_auto.folders import Fold

FORMAT_KEY = "ldseg_model_format"
FORMAT = 1  # of the zip's layout and its manifest
MANIFEST = "manifest.json"
INFERENCE = "ldseg_inference.json"  # the choice of sampler, of a data set's models or of one
WEIGHTS, CHECKPOINT, LICENCE = "weights.safetensors", "checkpoint.json", "LICENSE"
SUMMARY = "validation/summary.json"
REQUIRED_OF_MODEL = ("plans.json", "dataset.json", LICENCE)
REQUIRED_OF_FOLD = (WEIGHTS, CHECKPOINT)
OPTIONAL_OF_MODEL = ("dataset_fingerprint.json", INFERENCE)
OPTIONAL_OF_FOLD = ("progress.png", "latent_signs.json", SUMMARY)

NOT_OURS = "It was not written by ldseg_export, or changed since: do not use it, get the model from its source again."
# parts of file names on any system: nothing that separates folders, no dot at either end
_PLAIN_NAME = re.compile(r"\w(?:[\w .+=-]*[\w+=-])?")
_DATASET = re.compile(r"Dataset[0-9]{3}_" + _PLAIN_NAME.pattern, re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def short(value: Any) -> str:
    """A stranger's value for an error message: on one line, without control characters."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_plain_name(value: Any) -> bool:
    """Whether it can be the name of a file or folder, and of nothing outside the folder it is put into."""
    return isinstance(value, str) and len(value) < 200 and _PLAIN_NAME.fullmatch(value) is not None


@dataclass(frozen=True)
class Entry:
    """Of one file: SHA-256 in hexadecimal, and its size."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise LDSegError(f"The manifest gives {short(self.sha256)} as a SHA-256.", NOT_OURS)
        if type(self.bytes) is not int or self.bytes < 0:
            raise LDSegError(f"The manifest gives {short(self.bytes)} as a size.", NOT_OURS)


@dataclass(frozen=True)
class Manifest:
    """What a zip holds: the models of one data set, trainer and plans.

    Raises:
        LDSegError: a value is not of the kind described, or a file is none that such a zip may hold.
    """

    dataset: str
    trainer: str
    plans: str
    checkpoint: str  # whose weights these are; installed as checkpoint_final.pth
    configurations: dict[str, list[Fold]]  # the folds of each
    created: str
    versions: dict[str, str]
    files: dict[str, Entry] = field(default_factory=dict)  # all but the manifest itself, by their names in the zip

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not _DATASET.fullmatch(self.dataset) or not is_plain_name(self.dataset):
            raise LDSegError(f"{short(self.dataset)} is not the name of a data set that can be shared.",
                             "Names are DatasetXXX_NAME, of letters, digits and _ + - = . alone.")
        for name in ("trainer", "plans", "checkpoint"):
            _require_name(name, getattr(self, name))
        if not isinstance(self.configurations, dict) or not self.configurations:
            raise LDSegError("The manifest names no configuration.", NOT_OURS)
        for configuration, folds in self.configurations.items():
            _require_name("configuration", configuration)
            if not isinstance(folds, list) or not folds or not all(map(_is_fold, folds)) or _repeats(folds):
                raise LDSegError(f"The manifest gives {short(folds)} as the folds of {configuration}.", NOT_OURS)
        if not isinstance(self.created, str) or not isinstance(self.versions, dict):
            raise LDSegError("The manifest does not say when and with which versions it was made.", NOT_OURS)
        unknown = sorted(set(self.files) - set(self.known_files()))
        if unknown:
            raise LDSegError(f"{short(unknown[0])} is no file of a shared model.", NOT_OURS)

    @property
    def models(self) -> dict[str, list[Fold]]:
        """The folder of each model below that of the data set, and its folds."""
        return {f"{self.trainer}__{self.plans}__{configuration}": folds
                for configuration, folds in self.configurations.items()}

    @property
    def own_name(self) -> str:
        """Of the manifest in the zip."""
        return f"{self.dataset}/{MANIFEST}"

    def known_files(self) -> dict[str, bool]:
        """Every name that the zip may hold besides the manifest, and whether it must."""
        known = {f"{self.dataset}/{INFERENCE}": False}
        for model, folds in self.models.items():
            known |= _below(f"{self.dataset}/{model}", REQUIRED_OF_MODEL, OPTIONAL_OF_MODEL)
            for fold in folds:
                known |= _below(f"{self.dataset}/{model}/fold_{fold}", REQUIRED_OF_FOLD, OPTIONAL_OF_FOLD)
        return known

    def require_complete(self) -> None:
        """Raise unless every file is listed without which a model cannot be used."""
        missing = [name for name, needed in self.known_files().items() if needed and name not in self.files]
        if missing:
            raise LDSegError(f"The manifest lacks {missing[0]}.", NOT_OURS)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {FORMAT_KEY: FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """From what a manifest.json holds.

        Raises:
            LDSegError: an unknown format, or not a manifest.
        """
        if not isinstance(content, dict) or FORMAT_KEY not in content:
            raise LDSegError(f"The manifest does not say its format ({FORMAT_KEY}).", NOT_OURS)
        written = content[FORMAT_KEY]
        if type(written) is not int or written != FORMAT:
            raise LDSegError(f"The zip has format {short(written)}, this version reads {FORMAT}.",
                             "Install a newer ldseg_auto, or ask for an export by this version.")
        keys = ("dataset", "trainer", "plans", "checkpoint", "configurations", "created", "versions", "files")
        missing = [key for key in keys if key not in content]
        files = content.get("files")
        if missing or not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise LDSegError(f"The manifest lacks {', '.join(missing) or 'a list of files'}.", NOT_OURS)
        entries = {name: Entry(entry.get("sha256"), entry.get("bytes")) for name, entry in files.items()}
        return cls(**{key: content[key] for key in keys if key != "files"}, files=entries)


def _below(folder: str, required: tuple[str, ...], optional: tuple[str, ...]) -> Mapping[str, bool]:
    return {f"{folder}/{name}": name in required for name in (*required, *optional)}


def _require_name(what: str, value: Any) -> None:
    if not is_plain_name(value) or "__" in value:
        raise LDSegError(f"{short(value)} is not the name of a {what} that can be shared.",
                         "Names are of letters, digits and _ + - = . alone, without '__'.")


def _repeats(folds: list[Fold]) -> bool:
    return len(set(folds)) < len(folds)


def _is_fold(fold: Any) -> bool:
    return fold == "all" or (type(fold) is int and 0 <= fold < 10_000)
