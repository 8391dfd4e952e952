"""One case: its files are read once, by nnU-Net's readers, and everything about them is checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from ldseg_auto.checks import channels, geometry, voxels
from ldseg_auto.checks.files import Case
from ldseg_auto.checks.geometry import Geometry
from ldseg_auto.checks.problem import ERROR, WARNING, Problem
from ldseg_auto.headers import header_problem
from ldseg_auto.integrity import missing_pages, scan

_COPY = "Copy the file again from where it comes from, or remove the case"
_STRAIGHTEN = ("Its axes are not at right angles: resample it to a grid whose axes are; or, where only rounding is "
               "the reason, write the header anew.")
_REPLACE = "Replace them by a value that means something, such as the background's."
_ALIGN = ("Resample one onto the other; or, if their voxels do lie on each other as nnU-Net takes them to, copy the "
          "image's header to it")


class Rules(NamedTuple):
    """What every case must be like.

    channels: names, in order.
    readers: names of nnU-Net's readers; the first that can read the first image is taken.
    labels: values that labels may have, the background first; empty where there are no labels.
    ignore: the ignore label, if there is one.
    """

    channels: tuple[str, ...]
    readers: tuple[str, ...]
    labels: tuple[int, ...] = ()
    ignore: int | None = None


@dataclass
class Report:
    """What is wrong with a case, and what is compared among the cases."""

    problems: list[Problem] = field(default_factory=list)
    reader: str = ""
    orientation: str = ""
    spacing: tuple[float, ...] = ()  # along z, y, x
    features: list[list[float]] = field(default_factory=list)  # per channel
    lowest: list[float] = field(default_factory=list)  # per channel
    images: str = ""  # digests of the voxels; "" where they mean nothing
    label: str = ""
    only_background: bool = False


class Unreadable(Exception):
    """A file that cannot be used: cause (the end of a sentence) and cure."""


def check_case(case: Case, rules: Rules) -> Report:
    """Read the files of a case and say all that is wrong with them."""
    report = Report()
    with redirect_stdout(StringIO()), warnings.catch_warnings():  # what readers print is said here in one line
        warnings.simplefilter("ignore")
        reference = _check_images(case, rules, report)
        if case.label is not None and Path(case.label).exists():  # else the listing has said so
            _check_label(case, rules, reference, report)
    return report


def _check_images(case: Case, rules: Rules, report: Report) -> Geometry | None:
    """The grid of the first image that could be read; fills the report."""
    reference, counts, readers, constants = None, [], rules.readers, []
    for file in case.images:
        try:
            array, grid, report.reader, nan_as_zero = read_file(file, readers)
        except Unreadable as error:
            report.problems.append(Problem(case.name, file, *error.args))
            continue
        readers = (report.reader,)
        counts.append(len(array))
        if reference is None:
            reference = grid
            report.spacing = grid.spacing
            report.orientation = "" if "Reorient" in report.reader else geometry.orientation(grid)
        else:
            _compare(case.name, case.images[0], file, reference, grid, report, channel=True)
        extremes = [voxels.extremes(channel) for channel in array]
        if not np.isfinite(extremes).all():
            report.problems.append(Problem(case.name, file, "holds NaN or infinite voxels", _REPLACE))
            continue
        largest = max(map(abs, np.ravel(extremes)))
        if largest > voxels.LARGEST:
            report.problems.append(Problem(case.name, file, f"holds values of {largest:.2g}, which are too large to "
                                           "compute with; often they mark voxels without a value", _REPLACE))
            continue
        if nan_as_zero:
            report.problems.append(Problem(case.name, file, "holds NaN or infinite voxels; nnU-Net's reader takes them "
                                           "for 0", _REPLACE, WARNING))
        for channel, (low, high) in zip(array, extremes, strict=True):
            report.features.append(channels.features(channel))
            report.lowest.append(low)
            constants.append((file, low == high))
        report.images += voxels.digest([array])
    if len(counts) == len(case.images) and sum(counts) != len(rules.channels):
        report.problems.append(_wrong_number(case, counts, rules))
    _check_constant(case.name, constants, reference is not None and reference.size[2] == 1, report)
    return reference


def _check_label(case: Case, rules: Rules, reference: Geometry | None, report: Report) -> None:
    assert case.label is not None
    readers = (report.reader,) if report.reader else rules.readers
    try:
        array, grid, _, nan_as_zero = read_file(case.label, readers, label=True)
    except Unreadable as error:
        report.problems.append(Problem(case.name, case.label, *error.args))
        return
    if reference is not None:
        _compare(case.name, case.images[0], case.label, reference, grid, report, channel=False)
    if len(array) != 1:
        report.problems.append(Problem(case.name, case.label, f"holds {len(array)} channels: it is a coloured picture",
                                       "Save labels as grey values: 0, 1, 2, ..."))
        return
    values = voxels.distinct(array)
    wrong = "holds NaN" if nan_as_zero else voxels.label_problem(values, rules.labels)
    if wrong:
        report.problems.append(Problem(case.name, case.label, wrong, f"Allowed are {', '.join(map(str, rules.labels))}:"
                                       " correct the file, or the labels in dataset.json."))
        return
    report.label = voxels.digest([array])
    report.only_background = not set(values.tolist()) - {0, rules.ignore}


def read_file(file: str, readers: Sequence[str], label: bool = False) -> tuple[np.ndarray, Geometry, str, bool]:
    """Voxels (channel, z, y, x), the grid, the reader that could read them, and whether it took NaN for 0.

    Raises:
        Unreadable: the file is damaged, or not of a kind that nnU-Net can use to the end.
    """
    path = Path(file)
    if not path.is_file():
        raise Unreadable("is missing" if not path.is_symlink() and not path.exists() else
                         "is a link to nothing" if path.is_symlink() else "is no file", _COPY + ".")
    if path.stat().st_size == 0:
        raise Unreadable("is empty", _COPY + ".")
    content = scan(path)
    if not content.whole:
        raise Unreadable("is cut off or damaged", _COPY + ".")
    if not all(np.isfinite(step) and step > 0 for step in content.steps):
        raise Unreadable(f"has the spacing {' x '.join(f'{s:g}' for s in content.steps)} in its header",
                         "Correct pixdim in the header of the file.")
    causes = []
    for name in readers:
        wrong = header_problem(path, name)
        if wrong is not None:
            raise Unreadable(*wrong)
        try:
            reader = recursive_find_reader_writer_by_name(name)()
            with missing_pages() as missing:
                array, properties = reader.read_seg(file) if label else reader.read_images([file])
            grid = _geometry(array, properties)
        except Exception as error:  # noqa: BLE001, whatever a reader raises on a damaged file
            causes.append(_last_line(error))
            continue
        wrong_grid = geometry.grid_problem(grid)
        if wrong_grid:
            raise Unreadable(wrong_grid, "Correct the header of the file.")
        if missing or not array.size:
            raise Unreadable("is cut off or damaged", _COPY + ".")
        return np.asarray(array), grid, name, not content.finite
    raise Unreadable(f"cannot be read by nnU-Net's {' or '.join(readers)} ({'; '.join(dict.fromkeys(causes))})",
                     _STRAIGHTEN if any("orthonormal" in cause for cause in causes) else _COPY + ".")


def _geometry(array: np.ndarray, properties: dict[str, Any]) -> Geometry:
    """The grid as nnU-Net's reader found it."""
    size = tuple(int(n) for n in array.shape[:0:-1])
    spacing = tuple(float(s) for s in properties["spacing"])
    affine = None
    if "sitk_stuff" in properties:
        header = properties["sitk_stuff"]
        dimensions = len(header["spacing"])
        affine = np.eye(dimensions + 1)
        affine[:-1, :-1] = np.reshape(header["direction"], (dimensions, dimensions)) * np.array(header["spacing"])
        affine[:-1, -1] = header["origin"]
        if dimensions == 3:  # ITK counts towards the patient's left and back, NIfTI towards right and front
            affine = np.diag([-1.0, -1, 1, 1]) @ affine
    elif "nibabel_stuff" in properties:
        header = properties["nibabel_stuff"]
        affine = np.asarray(header.get("reoriented_affine", header["original_affine"]), float)
    return Geometry(size, spacing, affine)


def _compare(case: str, first: str, file: str, reference: Geometry, grid: Geometry, report: Report,
             channel: bool) -> None:
    """The reader of images refuses channels of unlike spacing; of labels nnU-Net looks at the size only."""
    found = geometry.misfit(reference, grid)
    if found is None:
        return
    severe = found.voxels > geometry.LARGEST_SHIFT_VOXELS or (channel and not found.same_spacing)
    report.problems.append(Problem(case, file, f"{found.what} {Path(first).name}", _ALIGN + ".",
                                   ERROR if severe else WARNING))


def _wrong_number(case: Case, counts: Sequence[int], rules: Rules) -> Problem:
    expected = len(rules.channels)
    names = f"{expected} ({', '.join(rules.channels)})"
    if len(counts) == 1 and counts[0] == expected + 1 and counts[0] in (2, 4):
        return Problem(case.name, case.images[0], f"has an alpha channel: {counts[0]} channels instead of {names}",
                       'Save it without transparency, with Pillow for example: Image.open(FILE).convert("RGB").')
    together = " with its other files" if len(counts) > 1 else ""
    return Problem(case.name, case.images[0], f"has {sum(counts)} channels{together} instead of {names}", "Give every "
                   "case one file a channel, numbered _0000, _0001, ... in the order of channel_names in dataset.json.")


def _check_constant(case: str, constants: Sequence[tuple[str, bool]], flat: bool, report: Report) -> None:
    """A blank slice is common, a blank volume is a failed export; a missing sequence is often filled with zeros."""
    blank = [file for file, constant in constants if constant]
    if blank and len(blank) == len(constants):
        report.images = ""  # blank ones are no duplicates
        report.problems.append(Problem(case, blank[0], "holds one value only, as all channels of the case",
                                       "Export it again, or remove the case.", WARNING if flat else ERROR))
        return
    for file in dict.fromkeys(blank):
        report.problems.append(Problem(case, file, "has a channel of one value only", "Look at it: export it again; or "
                                       "take transparency (alpha) out of all pictures and of dataset.json.", WARNING))


def _last_line(error: Exception) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    return text[-1] if text else type(error).__name__
