"""``docs/reference/chaos.md``: what the suite does and what came of it, written by the command itself."""

from __future__ import annotations

import os
import platform
import subprocess
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.judge import Result
from tests.chaos.playing import SCENARIOS, summary
from tests.support.harness import PROJECT

HEAD = """# Chaos

```
make chaos                                      # every scenario, about half an hour
.venv/bin/python -m tests.chaos --list          # what there is
.venv/bin/python -m tests.chaos kill-all drain  # some of them
```

Each scenario starts three real nodes on loopback (`twistd -n taskqueue`), loads them through all
three with submits that carry their own ids, strong and local reads, cancels and retries, does the
harm below, heals it, and waits until every accepted task has ended. Then it is checked that

- nothing acknowledged is missing, nothing is there that was refused, no task has two births or two
  completions, and no final state was left but by a retry that a client asked for;
- all that clients heard of one task fits one order, strong reads included (linearizable, checked
  for each task);
- every node shows the same, and all copies that the cluster map names are equal to the byte;
- each attempt that handlers began, on whichever node, began once;
- memory and file descriptors of each node stayed within bounds, and the descriptors of clients that
  went are free again;
- no log has a traceback or a critical line but where the scenario is about one.

The checker has tests of its own (`tests/support/test_history.py`): spoilt histories must be named.
What a system can't do (mount a tmpfs, inject faults with `strace`, step clocks with `libfaketime`)
is skipped and said. Exit code 1: a promise was broken; logs, stores and the history are kept.

*Unknown*: calls whose outcome the client was not told (a broken connection, a time-out after 1 s).
*Extra executions*: starts of a handler beyond the attempts that ended by themselves: those of nodes
that died, or lost their lease. P3 allows them; P2 allows none of them in the record.
"""
COLUMNS = 100


def write_page(path: Path, results: Sequence[Result], commit: str | None = None) -> None:
    path.write_text("\n".join([HEAD, *_table(results, commit or _commit())]) + "\n", "utf-8")


def _table(results: Sequence[Result], commit: str) -> list[str]:
    """Figures in a table; below it, a paragraph for each scenario with what happens and what was seen."""
    figures = [_figures(result) for result in results]
    return [
        "## The last run",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, commit {commit}, {os.cpu_count()} cores, {_system()}:",
        "",
        *_wrapped(f"**{summary(results)}.**"),
        "",
        "| scenario | s | acknowledged | unknown | lost | doubled | extra executions | MiB | descriptors |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *figures,
        "",
        "## What happens",
        "",
        *(line for result in results for line in _story(result)),
    ]


def _figures(result: Result) -> str:
    if result.skipped:
        return f"| `{result.name}` | skipped |" + " |" * 7
    return (
        f"| `{result.name}` | {result.seconds:.0f} | {result.acknowledged} | {result.unknown} | {result.lost} | "
        f"{result.doubled} | {result.extra} of {result.starts} | {result.peak.rss_mib:.0f} | {result.peak.descriptors} |"
    )


def _story(result: Result) -> list[str]:
    scenario = SCENARIOS[result.name]
    if result.skipped:
        seen = f"skipped: {result.skipped}"
    else:
        seen = "**broken**: " + result.broken[0].splitlines()[0] if result.broken else result.told
    return story(result.name, scenario.told.replace("``", "`"), seen, is_short=scenario.is_short)


def story(name: str, told: str, seen: str, *, is_short: bool) -> list[str]:
    """One item of the list, wrapped."""
    text = f"- `{name}`{' (in `make test`)' if is_short else ''}: {told}{f' Seen: {seen}.' if seen else ''}"
    return _wrapped(text, "  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _system() -> str:
    return f"Python {platform.python_version()}, {platform.system()} {platform.release().split('-', maxsplit=1)[0]}"


def _commit() -> str:
    """With a plus where the tree has changes that are in no commit."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
