"""The report: a table for people, on the terminal or as Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.processes import ROOT
from bench.samples import OURS, Book, Kind, Row

_HEADS = ("", "system", "median", "range", "unit", "p50 / p99 ms", "CPU µs/task", "sync µs", "ours is")
_RIGHT = {2, 3, 5, 6, 7}


def facts(rounds: int, systems: dict[str, str]) -> dict[str, Any]:
    """The program, date and machine of a report."""
    return {
        "commit": commit(),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": _python(),
        "rounds": rounds,
        "systems": systems,
    }


def commit(tree: Path = ROOT) -> str:
    """The measured commit; empty without version control."""
    return _git("rev-parse", "--short=12", "HEAD", tree=tree)


def _git(*arguments: str, tree: Path = ROOT) -> str:
    try:
        said = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.rstrip()


def _python() -> str:
    """Its version, and how it was built: a profile (PGO) makes the same code a good deal faster."""
    said = subprocess.run(
        [sys.executable, ROOT / "deploy" / "interpreter.py"], capture_output=True, text=True, check=True
    )
    return said.stdout[2:].rstrip()


def heading(about: dict[str, Any]) -> str:
    changed = f" with {about['changed_files']} changed files" if about["changed_files"] else ""
    plural = "" if about["rounds"] == 1 else "s"
    return (
        f"taskqueue bench, commit {about['commit'] or 'unknown'}{changed}, {about['date']}, {about['cores']} cores "
        f"({about['machine']}), Python {about['python']}, {about['rounds']} round{plural}"
    )


def table(book: Book) -> str:
    """Medians with ranges; ``sync µs`` is the disk just before; the last column says how ours compares."""
    lines: list[tuple[str, ...]] = []
    for part in book.parts():
        lines.append((f"== {part}",))
        for kind in book.kinds(part):
            label = kind.what
            for row in book.rows(kind):
                lines.append(_line(book, row, label))
                label = ""
    widths = [max(len(line[column]) for line in [_HEADS, *lines] if len(line) > 1) for column in range(len(_HEADS))]
    rest = (line[0] if len(line) == 1 else _join(line, widths) for line in lines)
    return "\n".join([_join(_HEADS, widths), *rest])


def markdown(about: dict[str, Any], book: Book) -> str:
    """One table for each part, medians alone: a row for each kind, ours first, then a column for each peer."""
    lines = [heading(about) + ".", ""]
    lines += [f"- **{name}**: {what}" for name, what in about["systems"].items()]
    for part in book.parts():
        kinds = [(kind, book.rows(kind)) for kind in book.kinds(part)]
        peers = list(dict.fromkeys(row.system for _, rows in kinds for row in rows if row.system != OURS))
        heads = ["", "unit", OURS, "range", "CPU µs/task", "goal", *peers]
        rows = [_medians(book, kind, of_kind, peers) for kind, of_kind in kinds]
        used = [column for column in range(len(heads)) if column < 3 or any(row[column] for row in rows)]
        lines += ["", f"### {part}", ""]
        lines.append(_cells([heads[column] for column in used]))
        lines.append(_cells(["---" if column in (0, 1, 5) else "--:" for column in used]))
        lines += [_cells([row[column] for column in used]) for row in rows]
    if book.notes:
        lines += ["", *(f"- {' '.join(note.split())}" for note in book.notes)]
    return "\n".join(lines)


def _medians(book: Book, kind: Kind, rows: list[Row], peers: list[str]) -> list[str]:
    """A row of ``markdown``: what it measures, unit, ours with range, CPU and goal, then each of ``peers``."""
    of = {row.system: row for row in rows}
    ours, goal = ["", "", ""], ""
    if (mine := of.get(OURS)) is not None:
        ours = [number(mine.median), _range(mine), _middle(mine, "node_cpu_us_per_task")]
        goal = _verdict(book, mine)
    theirs = [of.get(peer) for peer in peers]
    return [kind.what, kind.unit, *ours, goal, *("" if row is None else _of_peer(book, row) for row in theirs)]


def _of_peer(book: Book, row: Row) -> str:
    marks = ["another disk"] if row.kind.part != "counts" and book.saw_another_disk(row) else []
    marks += [verdict] if (verdict := _verdict(book, row)) else []
    return number(row.median) + (f" ({', '.join(marks)})" if marks else "")


def _verdict(book: Book, row: Row) -> str:
    meets = book.meets_goal(row)
    return "" if meets is None else f"{'met' if meets else 'missed'}: {_limit(book, row)}"


def _range(row: Row) -> str:
    return f"{number(min(row.values))} to {number(max(row.values))}" if len(row.values) > 1 else ""


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _line(book: Book, row: Row, label: str) -> tuple[str, ...]:
    ratio = book.ratio(row)
    verdict = "" if ratio is None else _times(ratio)
    if verdict and row.kind.part != "counts" and book.saw_another_disk(row):
        verdict += ", on another disk"
    if (meets := book.meets_goal(row)) is not None:
        verdict += f"{', ' if verdict else ''}{'at' if meets else 'short of'} its goal {_limit(book, row)}"
    return (
        label,
        row.system,
        number(row.median),
        _range(row),
        row.kind.unit,
        f"{_middle(row, 'p50_ms')} / {_middle(row, 'p99_ms')}" if _middle(row, "p50_ms") else "",
        _middle(row, "node_cpu_us_per_task"),
        _middle(row, "fdatasync_us"),
        verdict,
    )


def _times(ratio: float) -> str:
    return f"{number(ratio)} x better" if ratio >= 1 else f"{number(1 / ratio)} x worse"


def _limit(book: Book, row: Row) -> str:
    if row.goal is not None:
        return f"{'≥' if row.kind.more_is_better else '≤'} {number(row.goal)}"
    ratio = book.ratio_goal(row)
    assert ratio is not None, "a row that meets a goal, or not, has one"
    return f"≥ {_times(ratio)}" if ratio >= 1 else f"≤ {_times(ratio)}"


def goals(book: Book) -> str:
    """The number of goals that are reached, and the rows that miss theirs."""
    rows = [row for part in book.parts() for kind in book.kinds(part) for row in book.rows(kind)]
    judged = [row for row in rows if book.meets_goal(row) is not None]
    short = [row for row in judged if not book.meets_goal(row)]
    lines = [
        f"  {row.kind.part}, {row.kind.what}, {row.system}: {number(row.median)} {row.kind.unit}, {_line(book, row, '')[-1]}"
        for row in short
    ]
    return "\n".join([f"goals: {len(judged) - len(short)} of {len(judged)} reached", *lines])


def _middle(row: Row, name: str) -> str:
    values = sorted(details[name] for details in row.details if name in details)
    return number(values[len(values) // 2]) if values else ""


def number(value: float) -> str:
    """A number with three significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _join(line: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
