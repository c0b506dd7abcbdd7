"""What the documents promise of themselves: rules that are cited have a row, names that are named exist."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.harness import PROJECT

RULE = re.compile(r"\b[FRIP][1-9][0-9]?[a-z]?\b")
ROWS = tuple(PROJECT / "docs/explanation" / name for name in ("replication.md", "failures.md", "raft.md", "cluster.md"))
MARKDOWN = re.compile(r"[\w./-]+\.md\b")
WRITTEN_BY_TESTS = {"page.md", "standard-webhooks.md"}
"""Pages that tests make for themselves, and one of somebody else's specification."""


@cache
def tracked(*patterns: str) -> tuple[Path, ...]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return tuple(path for name in done.stdout.splitlines() if (path := PROJECT / name).exists())


def prose_of(path: Path) -> Iterator[str]:
    """Docstrings and comments of a module."""
    text = path.read_text("utf-8")
    for part in tokenize.generate_tokens(io.StringIO(text).readline):
        if part.type == tokenize.COMMENT:
            yield part.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def rows() -> set[str]:
    """The numbers in the first cells of tables: ``| R5, R5a | who is down |`` has two."""
    cells = re.findall(r"^\|([^|]*)\|", "\n".join(page.read_text("utf-8") for page in ROWS), re.MULTILINE)
    return {number for cell in cells for number in RULE.findall(cell)}


def test_each_rule_that_the_code_cites_has_a_row() -> None:
    known = rows()
    lost = {
        (number, path.relative_to(PROJECT).as_posix())
        for path in tracked("tq_node/*.py", "tests/*.py")
        if path.name != Path(__file__).name
        if not known.issuperset(RULE.findall(path.read_text("utf-8")))
        for text in prose_of(path)
        for number in RULE.findall(text)
        if number not in known
    }
    assert not lost


def test_no_file_names_a_page_that_does_not_exist() -> None:
    paths = ["/" + page.relative_to(PROJECT).as_posix() for page in tracked("*.md")]
    for path in tracked("*.py", "*.md", "*.toml", "*.cfg", "Makefile", "deploy/*"):
        if path.is_relative_to(PROJECT / "newsfragments") or path.name in {"CHANGELOG.md", Path(__file__).name}:
            continue
        for name in set(MARKDOWN.findall(path.read_text("utf-8"))) - WRITTEN_BY_TESTS:
            ending = "/" + re.sub(r"^(\.*/)+", "", name)
            assert any(page.endswith(ending) for page in paths), f"{path.relative_to(PROJECT)}: {name}"
