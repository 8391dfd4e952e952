"""What a prediction writes, and where."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import is_zipfile

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.integrity import scan


def files_of(case: Path, description: dict[str, Any], save_probabilities: bool, uncertainty: bool) -> list[Path]:
    """What belongs to a case, the segmentation first (it is moved there last, see `staging`): where all of it lies, the
    case is complete."""
    from ldseg_auto.inference.uncertainty import class_names, uncertainty_files

    probabilities = [Path(f"{case}.npz"), Path(f"{case}.pkl")] if save_probabilities else []
    maps = uncertainty_files(case, class_names(description)) if uncertainty else []
    return [Path(f"{case}{description['file_ending']}"), *probabilities, *maps]


def is_whole(file: Path) -> bool:
    """Whether a file is there to its end: a power cut, or a copy that was interrupted, leaves names without content."""
    if not file.is_file() or file.stat().st_size == 0:
        return False
    return is_zipfile(file) if file.suffix == ".npz" else scan(file).whole


def require_output_folder(input_folder: Path, output_folder: Path) -> None:
    """Raise unless results can be written there, and not among the images."""
    if output_folder.exists() and output_folder.resolve() == input_folder.resolve():
        raise LDSegError(f"Input and output are the same folder, {input_folder}.", "Give another folder to -o.")
    if output_folder.exists() and not output_folder.is_dir():
        raise LDSegError(f"The output {output_folder} is a file.", "Give a folder to -o.")
    try:
        output_folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output_folder):
            pass
    except OSError as error:
        raise LDSegError(f"Nothing can be written to {output_folder} ({error.strerror}).",
                         "Give a folder to -o that you may write to.") from error


def require_written(files: list[Path]) -> None:
    """Raise unless all of these exist."""
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise LDSegError(f"{len(missing)} of {len(files)} files were not written: {named(missing)}.",
                         "Look for the first error above, then run the command again with --continue_prediction.")
