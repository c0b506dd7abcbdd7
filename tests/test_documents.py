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
PLACE = re.compile(r"`([\w./]+\.py)(?::([\w.]+))?`")
"""``file:name`` as ARCHITECTURE and the glossary write it, the file below ``tq_node`` or from the top."""
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


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "docs/explanation/glossary.md"])
def test_each_place_in_the_code_that_a_page_names_exists(page: str) -> None:
    places = PLACE.findall((PROJECT / page).read_text("utf-8"))
    assert [place for place in places if not has(*place)] == []
    assert len(places) > 20, page


def test_each_test_that_a_failure_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (PROJECT / "docs/explanation/failures.md").read_text("utf-8"))
    tests = [path.as_posix() for path in tracked("tests/*.py")]
    assert [name for name in named if not any(path.endswith("/" + name) for path in tests)] == []


def test_each_module_that_a_page_names_exists() -> None:
    """``runtime.tasks.submit``, or ``api/html.py`` beside it; a name after the module is looked for by its letters."""
    for page in tracked("*.md"):
        if page.name == "CHANGELOG.md" or page.parent.name == "newsfragments":
            continue
        text = page.read_text("utf-8")
        for name in set(re.findall(r"`(?:tq_node\.)?([a-z_]+(?:\.\w+)+)`", text)) - META_KEYS:
            if (PROJECT / "tq_node" / name.partition(".")[0]).is_dir():
                assert is_in_the_code(name.split(".")), f"{page.relative_to(PROJECT)}: {name}"
        for name in re.findall(r"-m ((?:tests|bench|tq_node)(?:\.\w+)*)", text):
            path = PROJECT / name.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: -m {name}"


META_KEYS = {"cluster.members", "cluster.tokens_seen"}


def is_in_the_code(parts: list[str]) -> bool:
    path = PROJECT / "tq_node"
    for place, part in enumerate(parts):
        if (path / part).is_dir():
            path /= part
            continue
        file = path / f"{part}.py"
        rest = parts[place + 1 :]
        if not file.exists():
            file, rest = path / "__init__.py", parts[place:]
        return not rest or re.search(rf"\b{rest[-1]}\b", file.read_text("utf-8")) is not None
    return True


def has(file: str, name: str) -> bool:
    """Whether ``name``, or ``Class.method``, is defined in that file."""
    found = [path for path in (PROJECT / "tq_node" / file, PROJECT / file) if path.exists()]
    body: list[ast.stmt] = ast.parse(found[0].read_text("utf-8")).body if found else []
    for part in filter(None, name.split(".")):
        inner = next((node for node in body if part in names_of(node)), None)
        if inner is None:
            return False
        body = inner.body if isinstance(inner, ast.ClassDef) else []
    return bool(found)


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_links_to_a_section_lead_to_a_section() -> None:
    for page in tracked("*.md"):
        for target, section in re.findall(r"\]\(([\w./-]*)#([^)\s]+)\)", page.read_text("utf-8")):
            path = page.parent / target if target else page
            assert section in sections(path), f"{page.relative_to(PROJECT)}: {target}#{section}"


@cache
def sections(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in headings)
    return frozenset(re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain)


PROSE_COLUMNS = 100
GENERATED = {"python-client.md", "CHANGELOG.md"}
"""Written by commands, out of docstrings and of fragments."""


def test_prose_is_wrapped_so_that_a_diff_shows_the_changed_thought() -> None:
    long = [
        f"{page.relative_to(PROJECT)}:{number}: {line}"
        for page in tracked("*.md")
        if page.name not in GENERATED and page.parent.name != "newsfragments"
        for number, line in prose_lines(page.read_text("utf-8"))
        if len(line) > PROSE_COLUMNS and " " in line.strip()
    ]
    assert not long


def prose_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are neither code, nor tables, nor kept from a measurement."""
    is_code = is_measured = False
    for number, line in enumerate(text.splitlines(), 1):
        start = line.lstrip()
        is_measured = (is_measured or start == "<!-- bench: begin -->") and start != "<!-- bench: end -->"
        if start.startswith("```"):
            is_code = not is_code
        elif not is_code and not is_measured and not start.startswith(("|", "#", "![", "<")):
            yield number, line
