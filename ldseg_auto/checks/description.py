"""dataset.json: is it what nnU-Net expects?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import read_json
from ldseg_auto.sharing.trusted import require_trusted_description

_KEYS = ("channel_names", "labels", "numTraining", "file_ending")
_VERSION_1 = {"channel_names": "modality"}  # what nnU-Net's first version called it


def read_description(folder: Path) -> dict[str, Any]:
    """dataset.json of a raw data set.

    Raises:
        LDSegError: it cannot be read, or is not what nnU-Net expects; all that is wrong with it is listed. Or the
            folders of images and labels are missing.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        raise LDSegError(f"{folder} lacks dataset.json.", "Put the data there in nnU-Net's format.")
    content = read_json(file)
    found = description_problems(content)
    if found:
        raise LDSegError(f"{file} {'; '.join(found)}.", "Correct it; nnU-Net's documentation/dataset_format.md "
                         'describes it: {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, '
                         '"numTraining": 10, "file_ending": ".nii.gz"}')
    require_trusted_description(content)
    missing = [name for name in ("imagesTr", "labelsTr") if "dataset" not in content and not (folder / name).is_dir()]
    if missing:
        raise LDSegError(f"{folder} lacks {', '.join(missing)}.", "Put the data there in nnU-Net's format.")
    return content


def description_problems(content: Any) -> list[str]:
    """What is wrong with the content of dataset.json, as ends of a sentence. What LabelManager refuses it says itself.
    """
    if not isinstance(content, Mapping):
        return ["is no JSON object"]
    missing = [f"{key} (nnU-Net v1 called it {_VERSION_1[key]})" if _VERSION_1.get(key) in content else key
               for key in _KEYS if key not in content]
    found = [f"lacks {', '.join(missing)}"] if missing else []
    for key, check in (("channel_names", _channel_names), ("labels", _labels), ("numTraining", _number),
                       ("file_ending", _ending), ("dataset", _listing)):
        if key in content:
            found += check(content[key])
    return found


def _channel_names(names: Any) -> list[str]:
    if not isinstance(names, Mapping) or not names:
        return ['has channel_names that are not like {"0": "T1", "1": "T2"}']
    if list(names) != [str(i) for i in range(len(names))]:
        return [f"numbers its channel_names {', '.join(map(str, names))}, not 0, 1, ... in this order"]
    return []


def _labels(labels: Any) -> list[str]:
    if not isinstance(labels, Mapping) or not labels:
        return ['has labels that are not like {"background": 0, "liver": 1}']
    if all(str(key).isdecimal() for key in labels):
        return ["has its labels the wrong way round, as nnU-Net v1 had them: names come first, "
                '{"background": 0, "liver": 1}']
    values = [v for value in labels.values() for v in (value if isinstance(value, list) else [value])]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return ["has labels that are no whole numbers"]
    if labels.get("background") != 0:
        return ['has no label "background": 0']
    present = sorted(set(values))
    if present != list(range(len(present))):
        return [f"has the labels {present}, which are not consecutive from 0 (background) on: relabel the files, 255 "
                "to 1 for example"]
    return []


def _number(number: Any) -> list[str]:
    good = isinstance(number, int) and number > 0
    return [] if good else [f"has numTraining {number!r}, which is no number of cases"]


def _ending(ending: Any) -> list[str]:
    if not isinstance(ending, str) or not ending.strip("."):
        return [f"has the file_ending {ending!r}"]
    return [] if ending.startswith(".") else [f"has the file_ending {ending!r} without its dot: .{ending}"]


def _listing(listed: Any) -> list[str]:
    well_formed = isinstance(listed, Mapping) and listed and all(
        isinstance(files, Mapping) and isinstance(files.get("label"), str) and isinstance(files.get("images"), list)
        and files["images"] and all(isinstance(file, str) for file in files["images"]) for files in listed.values())
    return [] if well_formed else ['has a dataset that is not like {"CASE": {"images": [FILE, ...], "label": FILE}, '
                                   "...}"]
