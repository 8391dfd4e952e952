"""setup.cfg against what lies on disk, and what a wheel puts into site-packages."""

import configparser
import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def _listed(config) -> set[str]:
    return set(config["options"]["packages"].split())


def _on_disk() -> set[str]:
    found = set()
    for top, name in (("ldseg_auto", "ldseg_auto"), ("planners", "ldseg_auto.planners"),
                      ("trainers", "ldseg_auto.trainers")):
        for file in (ROOT / top).rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(ROOT / top).parts]))
    return found


def test_every_package_is_listed_and_has_an_init(setup_cfg):
    assert _listed(setup_cfg) == _on_disk()
    for name in _listed(setup_cfg):
        assert importlib.util.find_spec(name).origin is not None, f"{name} has no __init__.py"


@pytest.mark.parametrize("advisory, fixed", [("CVE-2025-32434", "2.6.0"), ("CVE-2026-24747", "2.10.0")])
def test_torch_has_no_known_hole_in_weights_only(advisory, fixed, setup_cfg):
    """A checkpoint of a stranger could run code in these versions, weights_only=True or not."""
    requirements = map(Requirement, setup_cfg["options"]["install_requires"].split())
    torch, = (each for each in requirements if each.name == "torch")
    oldest = Version(fixed)
    admitted = [f"{major}.{minor}.{patch}" for major in range(3) for minor in range(40) for patch in range(3)]
    assert torch.specifier.contains(version("torch"), prereleases=True)
    assert not [each for each in admitted if Version(each) < oldest and torch.specifier.contains(each)], advisory


def test_checkout_needs_no_installation():
    code = "import ldseg_auto.planners, ldseg_auto.trainers as t; print(t.__file__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert Path(ended.stdout.strip()) == ROOT / "trainers" / "__init__.py"


def test_entry_points_exist(setup_cfg):
    lines = setup_cfg["options.entry_points"]["console_scripts"].strip().splitlines()
    scripts = dict(line.split(" = ") for line in lines)
    assert set(scripts) == {"ldseg_plan_and_preprocess", "ldseg_train", "ldseg_predict", "ldseg_evaluate",
                            "ldseg_demo", "ldseg_export", "ldseg_import", "ldseg_find_best_configuration",
                            "ldseg_report"}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_wheel_and_sdist_hold_ldseg_auto_only(tmp_path, setup_cfg):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"  # setuptools leaves build folders behind
    for name in ("ldseg_auto", "planners", "trainers"):
        for file in (ROOT / name).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                _copy(file, source)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        _copy(ROOT / name, source)
    for what in ("wheel", "sdist"):
        code = f"import setuptools.build_meta as b, sys; b.build_{what}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ldseg_auto"}
    for package in _listed(setup_cfg):
        assert f"{package.replace('.', '/')}/__init__.py" in names
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    data = {str(file.relative_to(ROOT)) for file in (ROOT / "ldseg_auto").rglob("*.*")
            if file.suffix not in (".py", ".pyc")}
    assert "ldseg_auto/report/template.html" in data
    assert data <= set(names) and data <= packed


def _copy(file: Path, to: Path) -> None:
    target = to / file.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())
