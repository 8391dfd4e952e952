"""Statistics of the training labels, by one pass over them: `label_fingerprint.json`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage

from ldseg_auto.checks.voxels import distinct, label_problem
from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation.workers import Workers
from ldseg_auto.folders import write_text
from ldseg_auto.label_shape import contact_areas_mm2, local_thickness_mm

FILE_NAME = "label_fingerprint.json"
FORMAT = 3  # of the file; another one is written anew
PERCENTILES = (0, 10, 50, 90, 100)
MAX_THICKNESS_VOXELS = 300_000  # of a window around each structure: the distance transform takes most of the time
MAX_THICKNESS_CASES = 20
THICKNESS_VALUES = 200  # kept of a case and class
EXAMPLES = 3  # cases named for each class


class CaseLabels(NamedTuple):
    """What one label file holds."""

    case: str
    labels: tuple[int, ...]
    volumes_mm3: tuple[float, ...]  # per class or region
    components: tuple[int, ...]  # per class or region
    thickness_mm: tuple[np.ndarray, ...] = ()  # per class or region: some values along its ridges
    contact_mm2: np.ndarray | None = None  # between labels, in the order of all labels
    problem: str = ""  # why the file cannot be used


def label_groups(ignore_label: int | None, label_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name of each foreground class (or region) -> the label values it is made of; the ignore label left out."""
    groups = {name: tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
              for name, value in label_dict.items()}
    return {name: values for name, values in groups.items()
            if values != (0,) and values != (ignore_label,)}


def in_order_of_outputs(groups: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of `label_groups` as the network's foreground outputs come: labels by value, regions as declared."""
    regions = any(len(values) > 1 for values in groups.values())
    return list(groups) if regions else sorted(groups, key=lambda name: groups[name])


def extract_label_fingerprint(cases: Mapping[str, Mapping[str, Any]], dataset_json: Mapping[str, Any],
                              reader_class: type[BaseReaderWriter], file: Path, num_processes: int = 1,
                              clean: bool = False) -> dict[str, Any]:
    """Read every training label once and describe each class.

    Args:
        cases: identifier -> {"label": file, ...}, as nnU-Net lists them.
        dataset_json: nnU-Net's description of the data set.
        reader_class: nnU-Net's reader of these files.
        file: where the result is written; what is there for the same cases and labels is returned as it is,
            unless `clean`.
        num_processes: worker processes at most; few or small files are read in this process.

    Returns:
        `labels` found, `num_cases`; per class under `classes`: `label_values`, `share_of_cases`, percentiles of
        `volume_mm3`, of `components` and of `thickness_mm` (see `local_thickness_mm`, every case weighing the same)
        where present, thickness on up to 20 cases; under `contact`, for each two labels that touch: `between`,
        `share_of_cases` and percentiles of `area_mm2`; `example_cases` name up to three cases that hold the class. In
        2D a slice counts as 1 mm thick.

    Raises:
        LDSegError: some files cannot be read or hold values that are no label; all of them are named. Or a worker
            process was killed.
    """
    if file.is_file() and not clean:
        known = json.loads(file.read_text())
        if (known.get("cases"), known.get("format"), known.get("described")) == (
                sorted(cases), FORMAT, dataset_json["labels"]):
            return known
    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    groups = label_groups(manager.ignore_label, dataset_json["labels"])
    allowed = {int(v) for v in manager.all_labels} | ({manager.ignore_label} if manager.has_ignore_label else set())
    names = {int(v) if np.ndim(v) == 0 else None: name for name, v in dataset_json["labels"].items()}
    labels = sorted(int(v) for v in manager.all_labels)
    work = partial(describe_case, reader_class=reader_class, groups=list(groups.values()), allowed=allowed,
                   labels=labels)
    measured = set(np.linspace(0, len(cases) - 1, min(MAX_THICKNESS_CASES, len(cases))).round().astype(int))
    items = [(name, cases[name]["label"], index in measured) for index, name in enumerate(sorted(cases))]
    with Workers(num_processes, flag="-npfp") as workers:
        results = workers.map(work, items, "Label fingerprint", name=itemgetter(0))
    problems = [f"{cases[r.case]['label']}: {r.problem}" for r in results if r.problem]
    if problems:
        raise LDSegError(f"{len(problems)} of {len(cases)} label files cannot be used:\n  " + "\n  ".join(problems) +
                         ".\n", f"Allowed values are {sorted(allowed)}: correct these files, or the labels in "
                         "dataset.json.")
    contact = _contact(results, [names.get(v, f"label {v}") for v in labels])
    fingerprint = _summary(results, groups) | {"contact": contact, "described": dataset_json["labels"]}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(fingerprint, indent=2))
    return fingerprint


def describe_case(item: tuple[str, str, bool], reader_class: type[BaseReaderWriter],
                  groups: Sequence[Sequence[int]], allowed: set[int], labels: Sequence[int]) -> CaseLabels:
    """Volumes and components of each group of labels in one file, and the contact of `labels`.

    Args:
        item: the case, its file, and whether thickness is measured too.

    Returns:
        what is wrong with the file is said in `problem`.
    """
    case, file, with_thickness = item
    if not Path(file).is_file():
        return CaseLabels(case, (), (), (), problem="is missing")
    try:
        volume, properties = reader_class().read_seg(file)
    except Exception as error:  # noqa: BLE001, whatever the reader raises on a damaged file belongs in the list
        return CaseLabels(case, (), (), (), problem=f"cannot be read ({error})")
    volume = np.asarray(volume)[0]
    values = distinct(volume)
    wrong = label_problem(values, allowed)
    if wrong:
        return CaseLabels(case, (), (), (), problem=wrong)
    volume, spacing_mm = volume.astype(np.int32), [float(s) for s in properties["spacing"]]
    if len(volume) == 1:  # nnU-Net's placeholder for the distance of slices that are not there
        spacing_mm[0] = 1.0
    boxes = ndimage.find_objects(volume)
    rng = np.random.default_rng(zlib.crc32(case.encode())) if with_thickness else None
    described = [_describe_group(volume, group, boxes, spacing_mm, rng) for group in groups]
    return CaseLabels(case, tuple(int(v) for v in values), tuple(d[0] for d in described),
                      tuple(d[1] for d in described), tuple(d[2] for d in described),
                      _contact_of_case(volume, labels, boxes, spacing_mm))


def _describe_group(volume: np.ndarray, group: Sequence[int], boxes: Sequence[Any], spacing_mm: Sequence[float],
                    rng: np.random.Generator | None) -> tuple[float, int, np.ndarray]:
    """Volume in mm^3, connected components (faces, edges and corners connect) and, with a generator, thickness of a
    union of labels."""
    box = _joint_box([boxes[label - 1] for label in group if 0 < label <= len(boxes)])
    if box is None:
        return 0.0, 0, np.zeros(0)
    mask = np.isin(volume[_widened(box)], group)
    thickness = np.zeros(0)
    if rng is not None:
        thickness = local_thickness_mm(mask[_window(mask, rng)], spacing_mm)
        if not len(thickness):  # thicker than the window: then it can be seen from further away, too
            thickness = _thickness_from_afar(mask, spacing_mm)
        if len(thickness) > THICKNESS_VALUES:
            thickness = rng.choice(thickness, THICKNESS_VALUES, replace=False)
    components = int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1])
    return float(mask.sum() * np.prod(spacing_mm)), components, thickness


def _thickness_from_afar(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Thickness on every n-th voxel, so that no more than `MAX_THICKNESS_VOXELS` are left."""
    steps = [-(-edge // wanted) for edge, wanted in
             zip(mask.shape, _edges_within(mask.shape, MAX_THICKNESS_VOXELS), strict=True)]
    coarse = mask[tuple(slice(None, None, step) for step in steps)]
    # the voxel that bounds the structure may have been left out; where the image ends there is none
    ends = [(int(not mask.take(0, axis).any()), int(not mask.take(-1, axis).any())) for axis in range(mask.ndim)]
    return local_thickness_mm(np.pad(coarse, ends), [s * step for s, step in zip(spacing_mm, steps, strict=True)])


def _widened(box: tuple[slice, ...]) -> tuple[slice, ...]:
    """One voxel more on each side, where the image has one: it holds the border."""
    return tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)


def _window(mask: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
    """All of the mask, or of a large one a part of at most `MAX_THICKNESS_VOXELS` around one of its voxels."""
    wanted = _edges_within(mask.shape, MAX_THICKNESS_VOXELS)
    voxels = np.flatnonzero(mask)
    centre = np.unravel_index(voxels[rng.integers(len(voxels))], mask.shape)
    starts = [int(np.clip(c - w // 2, 0, edge - w)) for c, w, edge in zip(centre, wanted, mask.shape, strict=True)]
    return tuple(slice(start, start + w) for start, w in zip(starts, wanted, strict=True))


def _edges_within(edges: Sequence[int], max_voxels: int) -> list[int]:
    """The edges with the longest cut down to one length, so that the box holds no more than `max_voxels`."""
    longest = max(edges)
    while np.prod([float(min(edge, longest)) for edge in edges]) > max_voxels:
        longest -= 1
    return [min(edge, longest) for edge in edges]


def _joint_box(boxes: Sequence[Any]) -> tuple[slice, ...] | None:
    """The smallest box around all that are not None."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(slice(min(b[axis].start for b in found), max(b[axis].stop for b in found))
                 for axis in range(len(found[0])))


def _contact_of_case(volume: np.ndarray, labels: Sequence[int], boxes: Sequence[Any],
                     spacing_mm: Sequence[float]) -> np.ndarray:
    """Areas between each two of the labels; whatever is none of them (ignored) touches nothing."""
    box = _joint_box(boxes)
    if box is None:
        return np.zeros((len(labels), len(labels)))
    part = volume[_widened(box)]
    index = np.full(max(*labels, int(part.max())) + 1, -1, dtype=np.int16)
    index[list(labels)] = range(len(labels))
    return contact_areas_mm2(index[part], len(labels), spacing_mm)


def _summary(results: Sequence[CaseLabels], groups: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    classes = {}
    for index, (name, values) in enumerate(groups.items()):
        present = [r for r in results if r.volumes_mm3[index] > 0]
        classes[name] = {
            "label_values": list(values),
            "share_of_cases": len(present) / len(results),
            "example_cases": [r.case for r in present[:EXAMPLES]],
            "volume_mm3": _percentiles([r.volumes_mm3[index] for r in present]),
            "components": _percentiles([r.components[index] for r in present]),
            "thickness_mm": _percentiles_of_all([r.thickness_mm[index] for r in present]),
        }
    return {"format": FORMAT, "labels": sorted({label for r in results for label in r.labels}),
            "num_cases": len(results), "classes": classes, "cases": [r.case for r in results]}


def _contact(results: Sequence[CaseLabels], names: Sequence[str]) -> list[dict[str, Any]]:
    areas = np.stack([r.contact_mm2 for r in results if r.contact_mm2 is not None])
    return [{"between": [names[a], names[b]], "share_of_cases": float((areas[:, a, b] > 0).mean()),
             "area_mm2": _percentiles(areas[areas[:, a, b] > 0, a, b])}
            for a in range(len(names)) for b in range(a + 1, len(names)) if areas[:, a, b].any()]


def _percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES} if len(values) else {}


def _percentiles_of_all(values_per_case: Sequence[np.ndarray]) -> dict[str, float]:
    """Every case weighs the same, however many values it has."""
    found = [values for values in values_per_case if len(values)]
    if not found:
        return {}
    values = np.concatenate(found)
    weights = np.concatenate([np.full(len(v), 1 / len(v)) for v in found])
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / len(found)
    at = np.minimum(np.searchsorted(share, np.array(PERCENTILES) / 100), len(values) - 1)
    return {f"p{p}": float(values[order][i]) for p, i in zip(PERCENTILES, at, strict=True)}
