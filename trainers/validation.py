"""The final validation of a fold: of the final checkpoint into validation/, of the best one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from shutil import rmtree
from typing import Any

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.folders import write_text
from ldseg_auto.integrity import scan

SIGNS_FILE = "latent_signs.json"


def validate(trainer: Any, best: bool, save_probabilities: bool) -> None:
    """Validate a trained trainer.

    Args:
        best: checkpoint_best.pth, into validation_best/; what the final checkpoint's validation wrote stays as it is.
        save_probabilities: as .npz too.
    """
    if best:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    with into_validation_best(trainer) if best else nullcontext():
        trainer.perform_actual_validation(save_probabilities)


def require_whole_references(trainer: Any) -> None:
    """Raise where a label map to compare with is cut off: readers take its missing end for background."""
    folder = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    ending = trainer.dataset_json["file_ending"]
    cut = [file.name for case in trainer.do_split()[1]
           if (file := folder / f"{case}{ending}").is_file() and not scan(file).whole]
    if cut:
        raise LDSegError(f"Label maps in {folder} are cut off or damaged: {named(cut)}.",
                         "Copy them again from labelsTr of the raw data, then run the same command: training is kept.")


@contextmanager
def into_validation_best(trainer: Any) -> Iterator[None]:
    """What the trainer writes inside the block becomes validation_best/, whole or not at all: nnU-Net always writes to
    validation/, which must go on describing the final checkpoint."""
    from ldseg_auto.collectives import rank, wait_for_all

    fold = Path(trainer.output_folder)
    temporary, best = fold / "validation_best.part", fold / "validation_best"
    if rank() == 0:
        rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    wait_for_all()
    trainer.output_folder, trainer.hands_on = str(temporary), False
    try:
        yield
    finally:
        trainer.output_folder, trainer.hands_on = str(fold), True
    if rank() == 0:
        _move(temporary, best)


def _move(temporary: Path, best: Path) -> None:
    validation = temporary / "validation"
    summary = validation / "summary.json"
    if summary.is_file():  # names the files it scored
        write_text(summary, summary.read_text().replace(str(validation), str(best)))
    if (temporary / SIGNS_FILE).is_file():
        (temporary / SIGNS_FILE).replace(validation / SIGNS_FILE)
    rmtree(best, ignore_errors=True)
    validation.rename(best)
    rmtree(temporary)
