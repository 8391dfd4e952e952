"""docs/reliability.md promises nothing that no test shows: every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def _missing(text: str) -> list[str]:
    """The tests that a text names in backticks, `tests/FILE.py::NAME`, and that are not there."""
    missing = []
    for file, name in _NAMED.findall(text):
        path = ROOT / file
        tests = {node.name for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.FunctionDef)} if path.is_file() else set()
        if not path.is_file() or (name and name not in tests):
            missing.append(f"{file}::{name}" if name else file)
    return missing


def test_every_test_that_is_named_exists():
    assert not _missing(DOCUMENT.read_text())


@pytest.mark.parametrize("text, missing", [
    ("`tests/test_locks.py::test_no_such_thing`", ["tests/test_locks.py::test_no_such_thing"]),
    ("`tests/test_nothing.py::test_a`, `tests/no/file.py`", ["tests/test_nothing.py::test_a", "tests/no/file.py"]),
    ("`tests/test_reliability_doc.py::test_a_missing_name_is_found`, `tests/test_locks.py`", [])])
def test_a_missing_name_is_found(text, missing):
    assert _missing(text) == missing


def test_every_promise_names_a_test():
    """Each row of the tables of promises ends in the tests that show it."""
    rows = [line for line in DOCUMENT.read_text().splitlines()
            if line.startswith("| ") and not line.startswith("| Promise |")]
    assert len(rows) > 20
    assert not [row for row in rows if not _NAMED.search(row)]


def test_all_that_looks_like_a_test_is_read_as_one():
    text = DOCUMENT.read_text()
    assert len(re.findall(r"tests/", text)) == len(_NAMED.findall(text))
