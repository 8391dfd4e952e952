"""One pass over the cases, one in memory at a time: pictures, volumes for the viewer, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.calibration import BINS, confidence_bins
from ldseg_auto.report.cases import Case
from ldseg_auto.report.embedded import MAX_CHARACTERS, embed
from ldseg_auto.report.pictures import Palette, slice_pictures
from ldseg_auto.report.volumes import Volumes, read_volumes

MAX_PICTURES = 200  # cases


@dataclass
class Walk:
    """What the pass gathers; cases by their index."""

    slices: dict[int, list[dict]] = field(default_factory=dict)
    embedded: dict[int, dict[str, Any]] = field(default_factory=dict)
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))
    counted: int = 0  # cases in the bins
    flat: bool = False  # images of one slice have nothing to scroll
    left_out: list[str] = field(default_factory=list)


def walk(cases: Sequence[Case], shown: Sequence[int], reader: BaseReaderWriter, labels: LabelManager,
         colours: Palette) -> Walk:
    """Read the cases whose truth is there.

    Args:
        shown: cases that get two slices and, as far as there is room, volumes for the viewer; the first come first.

    Returns:
        What was gathered; a case that cannot be read is named in `left_out`.
    """
    found = Walk()
    others = sorted(set(range(len(cases))) - set(shown), key=lambda i: (cases[i].mean_dice or 0, cases[i].name))
    order = [i for i in [*shown, *others] if cases[i].truth is not None and cases[i].prediction.is_file()]
    drawable = [i for i in order if cases[i].images]
    pictured = set(drawable[:MAX_PICTURES])
    for index in tqdm(order, desc="cases", disable=None):
        case = cases[index]
        if index not in pictured and case.probabilities is None:
            continue
        try:
            volumes = read_volumes(case, reader, labels.has_regions)
        except LDSegError as error:
            found.left_out.append(f"{error.cause} {error.cure}")
            continue
        _count(found, volumes, labels)
        if index in pictured:
            _picture(found, index, volumes, index in shown, colours)
    scrollable = [i for i in shown if i in found.slices and not found.flat]
    if len(found.embedded) < len(scrollable):
        found.left_out.append(f"The viewer has room for {len(found.embedded)} of {len(scrollable)} cases: more than "
                              f"{MAX_CHARACTERS / 1e6:g} MB of volumes would make the page slow.")
    if len(pictured) < len(drawable):
        found.left_out.append(f"Only {MAX_PICTURES} cases have pictures, the worst first, to keep the page small.")
    return found


def _count(found: Walk, volumes: Volumes, labels: LabelManager) -> None:
    if volumes.probabilities is not None:
        regions = labels.foreground_regions if labels.has_regions else None
        bins = confidence_bins(volumes.probabilities, volumes.truth, volumes.prediction, regions, labels.ignore_label)
        found.bins += bins
        found.counted += bool(bins[0].any())


def _picture(found: Walk, index: int, volumes: Volumes, shown: bool, colours: Palette) -> None:
    found.slices[index] = slice_pictures(volumes, colours, with_errors=shown)
    if len(volumes.truth) == 1:
        found.flat = True
    elif shown:
        _embed(found, index, embed(volumes))


def _embed(found: Walk, index: int, embedded: dict[str, Any]) -> None:
    used = sum(len(text) for each in found.embedded.values() for text in each["files"].values())
    if used + sum(map(len, embedded["files"].values())) <= MAX_CHARACTERS:
        found.embedded[index] = embedded
