"""The documentation says what the program does: flags, defaults, messages; and its links lead somewhere."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from command_server import our_commands
from doc_pages import DOCS, PAGES, ROOT, name_of, tokens_of


def documented_flags(page: Path) -> dict[str, str]:
    """First and second cell of each row of the section Flags."""
    section = page.read_text().split("\n## Flags\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.MULTILINE))


def expected_flags(parser) -> dict[str, str | None]:
    """What a page must say: the flag with its value, and the default (None: anything)."""
    flags: dict[str, str | None] = {}
    for action in parser._actions:
        if action.dest == "help":
            continue
        value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
        parts = [*action.option_strings[:1], value if action.nargs != 0 else "", "..." if action.nargs == "+" else ""]
        default = re.search(r"\(default: ([^()]*)\)", action.help % {"default": action.default})
        flags[" ".join(filter(None, parts))] = ("required" if action.required else "off" if action.nargs == 0 else
                                                default.group(1) if default else None)
    return flags


@pytest.mark.parametrize("command", sorted(our_commands()))
def test_flags_are_those_of_the_command(command):
    module = our_commands()[command].split(":")[0]
    found = documented_flags(DOCS / "commands" / f"{command}.md")
    expected = expected_flags(import_module(module)._parser())
    assert set(found) == set(expected)
    assert {flag: found[flag] for flag, default in expected.items() if default is not None} == {
        flag: default for flag, default in expected.items() if default is not None}


def test_every_command_has_a_page_and_every_page_is_in_the_table_of_contents():
    pages = {page.stem for page in (DOCS / "commands").glob("*.md")}
    assert pages == set(our_commands())
    contents = (DOCS / "README.md").read_text()
    missing = [name_of(page) for page in PAGES[1:] if page.name != "README.md"
               and f"({page.relative_to(DOCS).as_posix()})" not in contents]
    assert not missing


def texts_in_the_source() -> list[str]:
    """Every string; "\\0" stands for what is filled in."""
    return [text for folder in ("ldseg_auto", "planners", "trainers") for file in (ROOT / folder).rglob("*.py")
            for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.expr) for text in _texts(node)]


def _texts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)]
    if isinstance(node, ast.BinOp):
        return [left + right for left in _texts(node.left) for right in _texts(node.right)]
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return ["\0"]


def test_messages_are_those_of_the_source():
    quoted = re.findall(r"^\| `([^`]+)` \|", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(quoted) > 40
    messages = texts_in_the_source()
    for text in quoted:
        assert len(text.replace("...", "")) >= 7, f"{text}: too little to be recognised by"
        pattern = re.compile(".*".join(map(re.escape, text.split("..."))), re.DOTALL)
        assert any(pattern.match(message) for message in messages), f"no error says: {text}"


def anchors_of(page: Path) -> set[str]:
    """GitHub's: lower case, no punctuation, hyphens for spaces."""
    tokens = tokens_of(page)
    titles = [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


MARKDOWN = [*ROOT.glob("*.md"), *(file for folder in ("docs", "benchmarks", "ldseg_auto")
                                  for file in sorted((ROOT / folder).rglob("*.md")))]


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(page):
    for token in tokens_of(page):
        for child in token.children or ():
            address = str(child.attrGet("href") or child.attrGet("src") or "")
            if not address or re.match(r"[a-z]+:", address):
                continue
            path, _, anchor = address.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists() and target.is_relative_to(ROOT), f"{name_of(page)}: {address}"
            assert not anchor or anchor in anchors_of(target), f"{name_of(page)}: {address}"
