"""Where a report goes: JSON and a picture beside one another; and, when asked, the tables in the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import report
from bench.plot import svg
from bench.processes import ROOT, Failed
from bench.samples import Book

DOCS = ROOT / "docs" / "reference"
PAGE = DOCS / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def write(directory: Path, about: dict[str, Any], book: Book) -> list[Path]:
    """``performance.json`` and ``performance.svg``; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "performance.json", directory / "performance.svg"]
    write_json(written[0], about, book)
    written[1].write_text(svg(book, report.heading(about)), "utf-8")
    return written


def write_json(path: Path, about: dict[str, Any], book: Book) -> None:
    path.write_text(json.dumps({**about, **book.as_json()}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_page(page: Path, about: dict[str, Any], book: Book) -> None:
    """Put the tables between the marks of the page. :raises Failed: it has none."""
    text = page.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{report.markdown(about, book)}\n{END}{after}", "utf-8")
