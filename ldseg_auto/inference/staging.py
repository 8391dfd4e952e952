"""What belongs to a case appears at once and whole: written into a folder of its own, then moved to its place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_folder(case: Path) -> Path:
    """OUT/CASE -> OUT/CASE.part: holds what is unfinished of a case; what a killed run left there counts as nothing."""
    return case.parent / f"{case.name}.part"


def clean_part_folder(case: Path) -> Path:
    """The case's part folder, made anew."""
    folder = part_folder(case)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def remove_part_folder(case: Path) -> None:
    """Where there is one."""
    shutil.rmtree(part_folder(case), ignore_errors=True)


@contextmanager
def published(case: Path, last: str) -> Iterator[Path]:
    """Inside the block a folder to write the case's files to, as they are to lie beside `case`; at its end they are
    moved there, if nothing was raised.

    Args:
        case: OUT/CASE.
        last: name of the file that is moved last, the segmentation; an older one is removed before anything is moved.
            So where it lies, all else of its run lies too, and where the run is killed, it does not.
    """
    folder = part_folder(case) / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        (case.parent / last).unlink(missing_ok=True)
        files = [path for path in folder.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path.name == last, str(path))):
            target = case.parent / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        remove_part_folder(case)
