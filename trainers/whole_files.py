"""Files that are there as a whole or not at all, where nnU-Net or matplotlib writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

from ldseg_auto.folders import write_text


def save_json_whole(content: Any, file: str, indent: int = 4, sort_keys: bool = True) -> None:
    """batchgenerators' `save_json`, by way of a temporary name."""
    write_text(Path(file), json.dumps(content, indent=indent, sort_keys=sort_keys))


def save_nothing(*_: Any, **__: Any) -> None:
    """In place of `save_json_whole`, in a process that leaves the files to another one."""


def draw_whole(name: str, draw: Callable[[str], None], folder: str, log: Callable[[str], None]) -> None:
    """A picture, by way of a temporary folder. No picture is worth a training: a full disk is only reported.

    Args:
        name: of the file.
        draw: writes a file of that name into the folder that it is given.
        folder: of the picture.
        log: is told where it could not be written.
    """
    temporary = Path(folder) / f"{name}.part"
    try:
        temporary.mkdir(exist_ok=True)
        draw(str(temporary))
        os.replace(temporary / name, Path(folder) / name)
    except OSError as error:
        log(f"WARNING: {name} was not written ({error}).")
    finally:
        rmtree(temporary, ignore_errors=True)
