"""What a structure scores that the prediction, the truth or both lack: one policy for every metric (pure).

| truth has it | prediction has it | presence | Dice, NSD | HD95, ASSD | counts in means |
|---|---|---|---|---|---|
| yes | yes | both | measured | measured | yes |
| yes | no | missed | 0 | the image's diagonal | yes |
| no | yes | spurious | 0 | the image's diagonal | yes |
| no | no | absent | 1 | 0 | no, they are counted beside them |

No surface in an image is farther from another than its diagonal, so a missed structure is worse than any that was
found, and stays a number. Rightly finding nothing is no measurement of overlap: with many such cases a mean would tell
how rare the structure is. A comparison of two predictions counts such a case where the other one found something.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np


class Presence(str, Enum):
    """Which of prediction and truth hold a structure."""

    BOTH = "both"
    MISSED = "missed"
    SPURIOUS = "spurious"
    ABSENT = "absent"


POLICY: dict[str, Any] = {
    "both": "measured; counts",
    "missed (only the reference has it)": "Dice and NSD 0, HD95 and ASSD the image's diagonal in mm; counts",
    "spurious (only the prediction has it)": "Dice and NSD 0, HD95 and ASSD the image's diagonal in mm; counts",
    "absent (neither has it)": "Dice and NSD 1, HD95 and ASSD 0; left out of means, counted as n_absent",
}


def presence(predicted: bool, true: bool) -> Presence:
    """Who has the structure."""
    if predicted:
        return Presence.BOTH if true else Presence.SPURIOUS
    return Presence.MISSED if true else Presence.ABSENT


def agreement(found: Presence) -> float:
    """Dice and NSD of a structure that is not in both: 1 where both lack it, else 0."""
    return float(found is Presence.ABSENT)


def distance_mm(found: Presence, diagonal_mm: float) -> float:
    """HD95 and ASSD of a structure that is not in both: 0 where both lack it, else the image's diagonal."""
    return 0.0 if found is Presence.ABSENT else diagonal_mm


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """From one corner of the image to the opposite one, outer faces included."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))
