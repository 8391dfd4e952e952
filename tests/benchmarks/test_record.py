"""What benchmarks write can be written again."""

from __future__ import annotations

import pytest
from accuracy import default_point, report
from peers import SIDES
from record import table, write_section


def test_a_section_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Measured\n\nWords.\n")
    write_section("first", "1", page)
    write_section("second", "2", page)
    write_section("first", "one", page)
    text = page.read_text()
    assert text.startswith("# Measured\n\nWords.\n")
    assert "\none\n" in text and "\n1\n" not in text and "\n2\n" in text
    assert text.count("<!-- first -->") == 1


def test_table():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("side", SIDES)
def test_every_side_is_compared_at_one_of_its_points(side):
    assert default_point(side) in {"ldseg-at-T": ["1 x 1"], "ldseg-paper": ["1 x 15"]}.get(
        side, ["5 x 2"] if SIDES[side].is_ours else ["one pass"])


def test_report_has_paired_differences_to_ours():
    def row(side: str, dice: float) -> dict:
        found = {"dice": [[dice + 0.01 * case, dice] for case in range(8)], "seconds": [0.5] * 8}
        return {"side": side, "fold": 0, "minutes": 5.0, "iterations": 10, "batch_size": 2,
                "points": {default_point(side): found}}

    lines = report([row("ldseg", 0.8), row("nnunet", 0.7)]).splitlines()
    assert lines[2].split(" | ")[5] == "0.8175" and lines[2].rstrip(" |").endswith("0.500")
    assert "-0.1000 [-0.1000, -0.1000]; 0.0078 0.0078" in lines[3]
