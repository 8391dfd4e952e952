"""Pieces of HTML: escaped, described, and without ids that two plots share."""

import re

from ldseg_auto.report.parts import paragraph, plot, table

BAD = "<img src=x onerror=alert(1)>"


def test_text_is_escaped():
    for piece in (paragraph(BAD), table([BAD], [[BAD]]), plot(lambda axes: None, BAD, BAD)):
        assert "<img" not in piece and "&lt;img" in piece


def test_a_plot_names_no_web_page():
    assert "http" not in (svg := plot(_line, "a line")) and "<metadata" not in svg and "<path" in svg


def test_marked_rows():
    assert table(["a"], [["1"], ["2"]], [False, True]).count("class=chosen") == 1
    assert "class=chosen" not in table(["a"], [["1"]])


def _line(axes):
    axes.plot([0, 1], color="black")


def test_plots_of_one_page_share_no_id_and_take_the_pages_colour():
    first, second = plot(_line, "a line"), plot(lambda axes: axes.plot([1, 0]), "another")
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', first):
        assert reference in ids[0]
    assert "currentColor" in first and "#000000" not in first
    assert 'role=img aria-label="a line"' in first


def test_the_same_drawing_gives_the_same_text():
    assert plot(_line, "a line") == plot(_line, "a line")


def test_the_size_is_the_pictures():
    assert 'width="216pt"' in plot(_line, "a line", inches=(3, 2))
