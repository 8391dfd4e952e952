"""A report of the tiny trained model, written once, and copies of that model to take things away from."""

import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldseg_auto.report.run import write_report

MODULES = ("ldseg_auto.report.page", "ldseg_auto.report.training", "ldseg_auto.report.reliability",
           "ldseg_auto.planners.report")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Page(HTMLParser):
    """Tags with their attributes, all text, and what each tag with an id holds at first."""

    def __init__(self, text: str):
        super().__init__()
        self.source, self.tags, self.words, self.by_id, self._id = text, [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._id = attributes.get("id")

    def handle_data(self, data):
        self.words.append(data)
        if self._id is not None:
            self.by_id.setdefault(self._id, data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def page_of() -> Callable[[Path], Page]:
    return lambda file: Page(file.read_text())


@pytest.fixture(scope="session")
def reported(small_world, tmp_path_factory) -> Path:
    """The report of the 3D model."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        for variable in FOLDERS:
            patch.setenv(variable, str(small_world[variable]))
        assert write_report("7", output=str(file), device="cpu", cases=1) == file
    return file


@pytest.fixture
def own_model(in_small_world, tmp_path, monkeypatch) -> Path:
    """A copy of the 3D model's folder, to change."""
    model = tmp_path / "results" / in_small_world["model"].parent.name / in_small_world["model"].name
    shutil.copytree(in_small_world["model"], model, ignore=shutil.ignore_patterns("checkpoint_best.pth"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return model


@pytest.fixture
def quick(monkeypatch):
    """Without plots and reverse diffusion, which take most of the time."""
    for module in MODULES:
        monkeypatch.setattr(f"{module}.plot", lambda draw, description, *args, **kwargs: f"<p>{description}</p>")
    monkeypatch.setattr("ldseg_auto.report.build._sampled", lambda model, case, *_: [f"film of {case.name}"])
