import numpy as np
import pytest

from ldseg_auto.evaluation.policy import Presence
from ldseg_auto.evaluation.scores import METRICS, StructureScores
from ldseg_auto.evaluation.summary import compare, summarise

MISSED = StructureScores(Presence.MISSED, 0.0, 0.0, 20.0, 20.0, 0.0, 3.0)
SPURIOUS = StructureScores(Presence.SPURIOUS, 0.0, 0.0, 20.0, 20.0, 2.0, 0.0)
ABSENT = StructureScores(Presence.ABSENT, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def found(dice: float) -> StructureScores:
    return StructureScores(Presence.BOTH, dice, dice, 10 * (1 - dice), 5 * (1 - dice), 3.0, 2.0)


def test_what_counts_in_means():
    summary = summarise({"a": {"organ": found(0.9), "lesion": found(0.6)}, "b": {"organ": found(0.7), "lesion": MISSED},
                         "c": {"organ": found(0.8), "lesion": SPURIOUS}, "d": {"organ": found(0.8), "lesion": ABSENT}},
                        "ml")
    lesion = summary["classes"]["lesion"]
    assert [lesion[k] for k in ("n", "n_missed", "n_spurious", "n_absent")] == [3, 1, 1, 1]
    assert lesion["dice"]["mean"] == pytest.approx(0.2)
    assert lesion["hd95_mm"]["mean"] == pytest.approx((4 + 20 + 20) / 3)
    assert lesion["difference_ml"]["mean"] == pytest.approx((1 - 3 + 2) / 3)
    assert lesion["where_both"] == {"n": 1, "dice": 0.6, "nsd": 0.6, "hd95_mm": pytest.approx(4),
                                    "assd_mm": pytest.approx(2)}
    assert summary["classes"]["organ"]["dice"]["mean"] == pytest.approx(0.8)
    assert summary["mean"]["dice"]["mean"] == pytest.approx(0.5)
    low, high = summary["mean"]["dice"]["interval"]
    assert 0 < low < 0.5 < high < 1


def test_a_class_that_no_case_has_is_left_out_of_the_mean():
    summary = summarise({"a": {"organ": found(0.9), "lesion": ABSENT}}, "ml")
    assert summary["classes"]["lesion"]["dice"] == {"mean": None, "interval": None}
    assert summary["classes"]["lesion"]["where_both"] == {"n": 0, **dict.fromkeys(METRICS)}
    assert summary["mean"]["dice"] == {"mean": pytest.approx(0.9), "interval": None}


def test_comparison_counts_a_case_that_either_found_something_in():
    first = {"a": {"lesion": found(0.9)}, "b": {"lesion": ABSENT}, "c": {"lesion": ABSENT}}
    second = {"c": {"lesion": ABSENT}, "b": {"lesion": SPURIOUS}, "a": {"lesion": found(0.8)}}  # in another order
    comparison = compare(first, second)
    outcome = comparison["classes"]["lesion"]["dice"]
    assert (outcome["n"], outcome["n_equal"]) == (2, 0)
    assert (outcome["first"], outcome["second"], outcome["difference"]) == pytest.approx((0.95, 0.4, 0.55))
    assert comparison["mean"]["dice"]["difference"] == pytest.approx(0.55)
    assert comparison["cases"]["b"]["lesion"]["hd95_mm"] == [0.0, 20.0]
    assert compare(second, first)["classes"]["lesion"]["dice"]["difference"] == pytest.approx(-0.55)


def test_p_values_are_corrected_for_the_number_of_classes():
    rng = np.random.default_rng(0)
    same = {"sure": found(0.8), "unsure": found(0.8), "equal": found(0.5), "never": ABSENT}
    first = {str(i): same for i in range(12)}
    second = {str(i): {"sure": found(0.5 + 0.01 * rng.random()), "unsure": found(0.8 + rng.normal(0, 0.1)),
                       "equal": found(0.5), "never": ABSENT} for i in range(12)}
    classes = compare(first, second)["classes"]
    assert set(classes["sure"]) == set(METRICS)
    sure, unsure, equal = (classes[name]["dice"] for name in ("sure", "unsure", "equal"))
    assert sure["p"] == pytest.approx(2 / 2 ** 12) and sure["p_holm"] == pytest.approx(3 * sure["p"])
    assert unsure["p"] > 0.05 and unsure["p_holm"] == pytest.approx(min(1, 2 * unsure["p"]))
    assert (equal["p"], equal["p_holm"], equal["difference"], equal["n_equal"]) == (1.0, 1.0, 0.0, 12)
    assert classes["never"]["dice"] is None
    low, high = sure["interval"]
    assert 0.28 < low < sure["difference"] < high < 0.31
