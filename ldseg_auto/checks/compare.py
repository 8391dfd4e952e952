"""What only shows when cases are compared with each other, or with those that a model was trained on. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ldseg_auto.checks.channels import Summary, better_order, summarise
from ldseg_auto.checks.files import Case
from ldseg_auto.checks.problem import WARNING, Problem
from ldseg_auto.errors import named

if TYPE_CHECKING:
    from ldseg_auto.checks.case import Report

_OTHER_UNIT = 100.0  # times the median: mm taken for m or um; resampling would take terabytes
_AIR_HU = -200.0  # every CT shows air below


def facts(reports: Mapping[str, Report]) -> dict[str, Any]:
    """What predictions are compared with later: orientations with the number of cases, and each channel's look."""
    orientations = Counter(report.orientation for report in reports.values() if report.orientation)
    return {"orientations": dict(sorted(orientations.items())),
            "channels": summarise([report.features for report in reports.values()])}


def duplicates(cases: Iterable[Case], reports: Mapping[str, Report]) -> list[Problem]:
    """Images that are there under two names: with the same label one of them is left out; with another one they may be
    two readings, which must not be split up between training and validation. Without labels it is a warning."""
    seen: dict[str, list[Case]] = defaultdict(list)
    problems = []
    for case in cases:
        report = reports[case.name]
        if not report.images:
            continue
        for first in seen[report.images][:1]:
            what = f"holds the same voxels as {first.images[0]}"
            if case.label is None:
                problems.append(Problem(case.name, case.images[0], what, "Is one of them another patient's?", WARNING))
            elif report.label == reports[first.name].label:
                problems.append(Problem(case.name, case.images[0], f"{what}, and has the same labels", "Remove one of "
                                        "both: trained on one, the model would be validated on the other."))
            else:
                problems.append(Problem(case.name, case.images[0], f"{what}; the labels differ", "If both are meant, "
                                        "keep them in one part of each fold with ldseg_train --group_by.", WARNING))
        seen[report.images].append(case)
    return problems


def unlike_spacing(cases: Iterable[Case], reports: Mapping[str, Report]) -> list[Problem]:
    """Cases whose spacing is so far from the others' that it must be in another unit."""
    known = [(case, reports[case.name].spacing) for case in cases if len(reports[case.name].spacing) == 3]
    if not known:
        return []
    median = np.median([spacing for _, spacing in known], axis=0)
    return [Problem(case.name, case.images[0], f"has the spacing {' x '.join(f'{s:g}' for s in spacing)}, most have "
                    f"{' x '.join(f'{s:g}' for s in median)} (z, y, x)", "Is it in mm? Correct the header of the file.")
            for case, spacing in known if np.abs(np.log(spacing / median)).max() > np.log(_OTHER_UNIT)]


def unlike_orientation(cases: Iterable[Case], reports: Mapping[str, Report], known: Mapping[str, int]) -> list[Problem]:
    """Images whose axes point elsewhere than those of every training image: nnU-Net does not turn them."""
    codes = {case: reports[case.name].orientation for case in cases}
    return [Problem(case.name, case.images[0], f"has the orientation {code}; the training images have "
                    f"{', '.join(known)}", "Reorient it as they are, unless the model has learned to see it from every "
                    "side.", WARNING) for case, code in codes.items() if known and code not in ("", *known)]


def unlike_order(cases: Iterable[Case], reports: Mapping[str, Report], names: Sequence[str],
                 summary: Summary) -> list[Problem]:
    """Cases whose channels would fit the training set's intensities in another order, and do not in theirs."""
    problems = []
    for case in cases:
        order = better_order(reports[case.name].features, summary)
        if order is not None:
            looks = "; ".join(f"channel {i:04d} ({names[i]}) looks like {names[order.index(i)]}"
                              for i in range(len(order)) if order[i] != i)
            problems.append(Problem(case.name, case.images[0], f"and its channels may be in a wrong order: {looks}",
                                    "Look at them, and rename the files if so.", WARNING))
    return problems


def of_the_whole(folder: str, reports: Mapping[str, Report], names: list[str]) -> list[Problem]:
    """Warnings about the training set as one: mixed orientations, a CT that is none."""
    problems = []
    by_orientation: dict[str, list[str]] = defaultdict(list)
    for case, report in reports.items():
        by_orientation[report.orientation].append(case)
    by_orientation.pop("", None)
    if len(by_orientation) > 1:
        groups = sorted(by_orientation.items(), key=lambda group: -len(group[1]))
        described = "; ".join(f"{code}: {len(cases)} ({named(cases, 3)})" for code, cases in groups)
        problems.append(Problem("", folder, f"holds images of different orientations: {described}", "Reorient them "
                                "alike, or look whether left and right are meant to be told apart.", WARNING))
    lows = [[report.lowest[i] for report in reports.values()] for i in range(len(names))]
    ct = [i for i, name in enumerate(names) if name.upper() == "CT" and min(lows[i]) > _AIR_HU]
    other = [i for i, name in enumerate(names) if name.upper() != "CT" and max(lows[i]) < _AIR_HU]
    problems += [Problem("", folder, f"holds no CT in channel {i:04d}, which is named so: no image has air (below "
                         f"{_AIR_HU:g} HU); channel {j:04d} ({names[j]}) has", "Are channel_names in the files' order?",
                         WARNING) for i in ct for j in other]
    return problems
