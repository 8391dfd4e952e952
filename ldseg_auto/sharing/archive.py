"""Reading a zip that a stranger wrote: names, sizes and manifest are checked first, every byte while it is unpacked."""

from __future__ import annotations

import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from unicodedata import normalize

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing.manifest import MANIFEST, NOT_OURS, WEIGHTS, Manifest, short

# Weights hardly compress; tables do, but are small: a zip that promises more than this is made to fill a disk.
MAX_GROWTH = 20  # unpacked bytes for each byte of the zip,
MAX_SMALL_BYTES = 100 * 2 ** 20  # and on top of that
MAX_TABLE_BYTES = 32 * 2 ** 20  # of a file that is not weights: such files are read whole
_CHUNK_BYTES = 2 ** 20
_DAMAGED = "It is damaged or not complete: copy or download it again."
# what zipfile and what it is built on raise on a damaged file
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError,
                                        RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Archive:
    """A zip whose names, sizes and manifest fit together."""

    manifest: Manifest
    zip: zipfile.ZipFile

    @property
    def unpacked_bytes(self) -> int:
        """Of all files together."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def unpack(self, folder: Path) -> None:
        """Write every file below `folder`, which must hold none of them.

        Raises:
            LDSegError: a file is not what the manifest says.
            OSError: it cannot be written.
        """
        (folder / self.manifest.dataset).mkdir(exist_ok=True)
        (folder / self.manifest.own_name).write_bytes(_content(self.zip, self.manifest.own_name))
        for name in self.manifest.files:
            self._unpack(name, folder / name)

    def _unpack(self, name: str, target: Path) -> None:
        expected = self.manifest.files[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = sha256(), 0
        with _reading(name), self.zip.open(name) as source, open(target, "xb") as written:
            while size <= expected.bytes and (chunk := source.read(_CHUNK_BYTES)):
                size += len(chunk)
                digest.update(chunk)
                written.write(chunk)
        if (size, digest.hexdigest()) != (expected.bytes, expected.sha256):
            raise LDSegError(f"{name} is not what the manifest says: {size} bytes with the SHA-256 "
                             f"{digest.hexdigest()}, not {expected.bytes} with {expected.sha256}.", NOT_OURS)


@contextmanager
def open_archive(file: Path) -> Iterator[Archive]:
    """The zip of a shared model, checked; nothing is written.

    Raises:
        LDSegError: it is not a zip, damaged, not a shared model, or made to do harm.
    """
    if not file.is_file():
        raise LDSegError(f"There is no file {file}.", "Give a zip that ldseg_export wrote.")
    with _reading(file.name, OSError):
        opened = zipfile.ZipFile(file)
    with opened:
        entries = opened.infolist()
        _require_harmless(entries)
        _require_bounded(entries, file.stat().st_size)
        for entry in entries:
            with _reading(entry.filename, OSError), opened.open(entry):
                pass  # its own header fits the table of contents
        manifest = _read_manifest(opened)
        _require_as_listed(entries, manifest)
        yield Archive(manifest, opened)


@contextmanager
def _reading(name: str, *more: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, *more) as error:
        reason = f"{type(error).__name__}: {short(str(error))}"
        raise LDSegError(f"{short(name)} cannot be read ({reason}).", _DAMAGED) from error


def _require_harmless(entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise unless every entry is an ordinary file with a name of its own inside the folder it is unpacked to."""
    names: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        reason = _harm(entry, name)
        # many file systems take Plans.json for plans.json, some an accented letter for a letter and its accent
        same = normalize("NFKC", name).casefold()
        if same in names:
            reason = "is there twice"
        if reason:
            raise LDSegError(f"The zip's entry {short(name)} {reason}.", NOT_OURS)
        names.add(same)


def _harm(entry: zipfile.ZipInfo, name: str) -> str | None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    checks = {
        "has a name with a backslash": "\\" in name,
        "has an absolute path": name.startswith("/"),
        "names a drive": ":" in name,
        "leaves the folder": ".." in name.split("/"),
        "has a name that is cut or changed": name != entry.filename,
        "is a symbolic link": stat.S_ISLNK(kind),
        "is not an ordinary file": kind not in (0, stat.S_IFREG),
        "is encrypted": bool(entry.flag_bits & 1),
        "is compressed in an unusual way": entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _require_bounded(entries: Iterable[zipfile.ZipInfo], zip_bytes: int) -> None:
    """Raise if the files would be far larger than the zip; `unpack` reads no more than they are said to hold."""
    unpacked = sum(entry.file_size for entry in entries)
    allowed = MAX_SMALL_BYTES + MAX_GROWTH * zip_bytes
    if unpacked > allowed:
        raise LDSegError(f"The zip has {zip_bytes} bytes and would unpack to {unpacked}, more than the {allowed} that "
                         "a model of that size may take: it is made to fill the disk.", NOT_OURS)
    for entry in entries:
        if entry.file_size > MAX_TABLE_BYTES and not entry.filename.endswith(f"/{WEIGHTS}"):
            raise LDSegError(f"The zip's entry {short(entry.filename)} would have {entry.file_size} bytes, more than "
                             f"{MAX_TABLE_BYTES}.", NOT_OURS)


def _read_manifest(opened: zipfile.ZipFile) -> Manifest:
    found = [name for name in opened.namelist() if name.split("/")[1:] == [MANIFEST]]
    if len(found) != 1:
        raise LDSegError(f"The zip has {len(found) or 'no'} {MANIFEST}: ldseg_export did not write it.",
                         "Give a zip that ldseg_export wrote. One of nnU-Net's own is installed by "
                         "nnUNetv2_install_pretrained_model_from_zip; it can run code, trust its author first.")
    manifest = Manifest.from_json(parse_json(_content(opened, found[0]), found[0]))
    if manifest.own_name != found[0]:
        raise LDSegError(f"{short(found[0])} describes the data set {short(manifest.dataset)}.", NOT_OURS)
    manifest.require_complete()
    return manifest


def _require_as_listed(entries: Iterable[zipfile.ZipInfo], manifest: Manifest) -> None:
    sizes = {entry.filename: entry.file_size for entry in entries}
    extra = sorted(set(sizes) - set(manifest.files) - {manifest.own_name})
    missing = sorted(set(manifest.files) - set(sizes))
    if extra or missing:
        raise LDSegError(f"The zip holds {short(extra[0])}, which its manifest does not list." if extra else
                         f"The zip lacks {short(missing[0])}, which its manifest lists.", NOT_OURS)
    for name, listed in manifest.files.items():
        if sizes[name] != listed.bytes:
            raise LDSegError(f"{name} has {sizes[name]} bytes, not the {listed.bytes} of the manifest.", NOT_OURS)


def parse_json(content: bytes, name: str) -> Any:
    """What a table of a shared model holds.

    Raises:
        LDSegError: it is not JSON.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LDSegError(f"{short(name)} is not valid JSON ({error}).", NOT_OURS) from error


def _content(opened: zipfile.ZipFile, name: str) -> bytes:
    with _reading(name, OSError), opened.open(name) as source:
        return source.read()
