"""docs/README.md leads to every page, and no link between pages leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(PROJECT / "docs").rglob("*.md"),
        *(PROJECT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    ]
)


def links(page: Path) -> set[Path]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert [str(target) for target in links(page) if not target.exists()] == []


def test_the_index_leads_to_every_page() -> None:
    index = PROJECT / "docs/README.md"
    wanted = {path for path in PAGES if path.is_relative_to(PROJECT / "docs") and path.parent.name != "decisions"}
    assert sorted(map(str, wanted - links(index) - {index})) == []
