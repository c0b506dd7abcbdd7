"""The page of the last run: prose that a diff can show."""

from __future__ import annotations

from tests.chaos import page
from tests.support.harness import PROJECT


def test_what_was_seen_stands_behind_what_happens_and_is_wrapped() -> None:
    lines = page.story("kill-all", "All die. " * 20, "five submits", is_short=True)
    assert lines[0].startswith("- `kill-all` (in `make test`): All die.")
    assert lines[-1].endswith("Seen: five submits.")
    assert all(line.startswith("  ") for line in lines[1:])
    assert max(map(len, lines)) <= page.COLUMNS


def test_the_kept_page_begins_with_what_the_command_writes() -> None:
    assert (PROJECT / "docs/reference/chaos.md").read_text("utf-8").startswith(page.HEAD)
