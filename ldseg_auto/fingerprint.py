"""Statistics of the training labels, by one pass over them: `label_fingerprint.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage
from tqdm import tqdm

from ldseg_auto.errors import LDSegError

FILE_NAME = "label_fingerprint.json"
PERCENTILES = (0, 10, 50, 90, 100)
_POOL_START_SECONDS = 10
_LISTED_VALUES = 5  # of the wrong values in a file


class CaseLabels(NamedTuple):
    """What one label file holds."""

    case: str
    labels: tuple[int, ...]
    volumes_mm3: tuple[float, ...]  # per class or region
    components: tuple[int, ...]  # per class or region
    problem: str = ""  # why the file cannot be used


def label_groups(label_manager: LabelManager, label_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name of each foreground class (or region) -> the label values it is made of; the ignore label left out."""
    groups = {name: tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
              for name, value in label_dict.items()}
    return {name: values for name, values in groups.items()
            if values != (0,) and values != (label_manager.ignore_label,)}


def extract_label_fingerprint(cases: Mapping[str, Mapping[str, Any]], dataset_json: Mapping[str, Any],
                              reader_class: type[BaseReaderWriter], file: Path, num_processes: int = 1,
                              clean: bool = False) -> dict[str, Any]:
    """Read every training label once and describe each class.

    Args:
        cases: identifier -> {"label": file, ...}, as nnU-Net lists them.
        dataset_json: nnU-Net's description of the data set.
        reader_class: nnU-Net's reader of these files.
        file: where the result is written; what is there for the same cases is returned as it is, unless `clean`.
        num_processes: worker processes at most; few or small files are read in this process.

    Returns:
        `labels` found, `num_cases`, and per class under `classes`: `label_values`, `share_of_cases`, percentiles of
        `volume_mm3` and of `components` where present (2D: the slice counts as 1 mm thick).

    Raises:
        LDSegError: some files cannot be read or hold values that are no label; all of them are named.
    """
    if file.is_file() and not clean:
        known = json.loads(file.read_text())
        if known.get("cases") == sorted(cases):
            return known
    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    groups = label_groups(manager, dataset_json["labels"])
    allowed = {int(v) for v in manager.all_labels} | ({manager.ignore_label} if manager.has_ignore_label else set())
    work = partial(describe_case, reader_class=reader_class, groups=list(groups.values()), allowed=allowed)
    results = _run(work, [(name, cases[name]["label"]) for name in sorted(cases)], num_processes)
    problems = [f"{cases[r.case]['label']}: {r.problem}" for r in results if r.problem]
    if problems:
        raise LDSegError(f"{len(problems)} of {len(cases)} label files cannot be used:\n  " + "\n  ".join(problems) +
                         "\n", f"Allowed values are {sorted(allowed)}: correct these files, or the labels in "
                         "dataset.json.")
    fingerprint = _summary(results, groups)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(fingerprint, indent=2))
    return fingerprint


def describe_case(named_file: tuple[str, str], reader_class: type[BaseReaderWriter],
                  groups: Sequence[Sequence[int]], allowed: set[int]) -> CaseLabels:
    """Volumes and components of each group of labels in one file; what is wrong with it goes into `problem`."""
    case, file = named_file
    if not Path(file).is_file():
        return CaseLabels(case, (), (), (), "is missing")
    try:
        labels, properties = reader_class().read_seg(file)
    except Exception as error:  # noqa: BLE001, whatever the reader raises on a damaged file belongs in the list
        return CaseLabels(case, (), (), (), f"cannot be read ({error})")
    labels = np.asarray(labels)[0]
    values = np.unique(labels)
    wrong = [v for v in values if float(v) not in allowed]
    if wrong:
        shown = ", ".join(f"{v:g}" for v in wrong[:_LISTED_VALUES])
        return CaseLabels(case, (), (), (), f"holds {shown}{', ...' if len(wrong) > _LISTED_VALUES else ''}")
    labels = labels.astype(np.int32)
    voxel_mm3 = float(np.prod(properties["spacing"][1 if labels.shape[0] == 1 else 0:]))
    boxes = ndimage.find_objects(labels)
    described = [_describe_group(labels, group, boxes) for group in groups]
    return CaseLabels(case, tuple(int(v) for v in values), tuple(count * voxel_mm3 for count, _ in described),
                      tuple(components for _, components in described))


def _describe_group(labels: np.ndarray, group: Sequence[int], boxes: Sequence[Any]) -> tuple[int, int]:
    """Voxels and connected components (faces, edges and corners connect) of a union of labels."""
    found = [boxes[label - 1] for label in group if 0 < label <= len(boxes) and boxes[label - 1] is not None]
    if not found:
        return 0, 0
    box = tuple(slice(min(b[axis].start for b in found), max(b[axis].stop for b in found))
                for axis in range(labels.ndim))
    mask = np.isin(labels[box], group)
    return int(mask.sum()), int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1])


def _run(work: Any, items: Sequence[tuple[str, str]], num_processes: int) -> list[CaseLabels]:
    """In this process where that is quicker than starting workers, which import torch first."""
    with tqdm(total=len(items), desc="Label fingerprint") as progress:
        start = perf_counter()
        results = [work(items[0])]
        progress.update()
        remaining = items[1:]
        alone = num_processes <= 1 or (perf_counter() - start) * len(remaining) < _POOL_START_SECONDS
        pool = nullcontext() if alone else get_context("spawn").Pool(min(num_processes, len(remaining)))
        with pool as workers:
            for result in map(work, remaining) if workers is None else workers.imap(work, remaining):
                results.append(result)
                progress.update()
    return results


def _summary(results: Sequence[CaseLabels], groups: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    classes = {}
    for index, (name, values) in enumerate(groups.items()):
        present = [r for r in results if r.volumes_mm3[index] > 0]
        classes[name] = {
            "label_values": list(values),
            "share_of_cases": len(present) / len(results),
            "volume_mm3": _percentiles([r.volumes_mm3[index] for r in present]),
            "components": _percentiles([r.components[index] for r in present]),
        }
    return {"labels": sorted({label for r in results for label in r.labels}), "num_cases": len(results),
            "classes": classes, "cases": [r.case for r in results]}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES} if values else {}
