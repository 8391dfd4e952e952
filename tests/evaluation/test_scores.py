import numpy as np
import pytest

from ldseg_auto.evaluation.metrics import dice
from ldseg_auto.evaluation.policy import Presence
from ldseg_auto.evaluation.scores import score_structures
from ldseg_auto.evaluation.surface import surface_metrics

SPACING = (2.0, 1.0, 0.5)
GROUPS = {"whole": (1, 2), "core": (2,), "other": (7,)}


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    prediction, reference = np.zeros((2, 12, 14, 16), np.uint16)
    for labels in (prediction, reference):
        z, y, x = rng.integers(2, 5, 3)
        labels[z:z + 5, y:y + 7, x:x + 6] = 1
        labels[z:z + 3, y:y + 3, x:x + 3] = 2
    return prediction, reference


def test_cut_out_or_not_the_same(maps):
    prediction, reference = maps
    scores = score_structures(prediction, reference, GROUPS, SPACING, dict.fromkeys(GROUPS, 1.0))
    for name, values in (("whole", (1, 2)), ("core", (2,))):
        predicted, true = np.isin(prediction, values), np.isin(reference, values)
        surface = surface_metrics(predicted, true, SPACING, 1.0)
        assert (scores[name].nsd, scores[name].hd95_mm, scores[name].assd_mm) == \
            (surface.nsd, surface.hd95_mm, surface.assd_mm)
        assert scores[name].dice == dice(predicted, true, True)
        assert scores[name].prediction_size == pytest.approx(predicted.sum() / 1000)


def test_sizes_and_their_names(maps):
    reference = maps[1]
    prediction = np.where(reference == 2, 0, reference)
    ml = score_structures(prediction, reference, GROUPS, SPACING, dict.fromkeys(GROUPS, 1.0))["whole"]
    assert (ml.reference_size, ml.size_difference) == pytest.approx((0.210, -0.027))  # 5 x 7 x 6 voxels of 1 mm3
    assert ml.as_dict("ml")["difference_ml"] == ml.size_difference
    mm2 = score_structures(prediction[4], reference[4], GROUPS, SPACING[1:], dict.fromkeys(GROUPS, 1.0))["whole"]
    assert mm2.reference_size == 21.0 and mm2.as_dict("mm2")["presence"] == "both"


def test_policy_of_the_whole_image(maps):
    prediction, reference = maps
    empty = np.zeros_like(reference)
    diagonal = np.linalg.norm([24, 14, 8])
    for pair, presence in (((empty, reference), Presence.MISSED), ((prediction, empty), Presence.SPURIOUS)):
        found = score_structures(*pair, GROUPS, SPACING, dict.fromkeys(GROUPS, 1.0))["core"]
        assert (found.presence, found.dice, found.nsd) == (presence, 0.0, 0.0)
        assert found.hd95_mm == found.assd_mm == pytest.approx(diagonal)
    found = score_structures(prediction, reference, GROUPS, SPACING, dict.fromkeys(GROUPS, 1.0))["other"]
    assert (found.presence, found.dice, found.nsd, found.hd95_mm, found.assd_mm, found.size_difference) == \
        (Presence.ABSENT, 1.0, 1.0, 0.0, 0.0, 0.0)


def test_each_structure_has_its_tolerance(maps):
    loose, strict = (score_structures(*maps, GROUPS, SPACING, {"whole": tolerance, "core": 1.0, "other": 1.0})
                     for tolerance in (50.0, 0.1))
    assert loose["whole"].nsd == 1 > strict["whole"].nsd
    assert loose["core"] == strict["core"]
