"""The page beside the plans says what `explain` says, and more."""

import html
import json
from html.parser import HTMLParser

import pytest

from ldseg_auto.planners.explain import candidate_rows, describe_configuration
from ldseg_auto.planners.report import write_report


@pytest.fixture
def plans(small_world):
    return json.loads((small_world["preprocessed"] / "LDSegPlans.json").read_text())


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_it_holds_every_decision_and_alternative(small_world, plans):
    page = Page((small_world["preprocessed"] / "plan_report.html").read_text())
    for plan in plans["configurations"].values():
        for sentence in describe_configuration(plan):
            assert sentence in page.words
        for row in candidate_rows(plan["ldseg"]["latent"]):
            assert set(row) <= set(page.words)
    configurations = len(plans["configurations"])
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 2 * configurations
    assert sum(attributes.get("class") == "chosen" for _, attributes in page.tags) == configurations
    assert {"shell", "core", "shell and core"} <= set(page.words)


def test_names_are_text_not_markup(small_world, plans, tmp_path):
    folder = small_world["preprocessed"]
    fingerprint, labels = (json.loads((folder / f"{name}_fingerprint.json").read_text()) for name in
                           ("dataset", "label"))
    labels["classes"]["<script>alert(1)</script>"] = labels["classes"].pop("core")
    write_report(plans, fingerprint, labels, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text and html.escape("<script>") in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
