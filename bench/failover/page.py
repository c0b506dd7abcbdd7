"""What is printed, and the page: docs/reference/failover.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.failover.failures import FAILURES, Failure
from bench.failover.rounds import WRITERS, Table
from bench.failover.stalls import BATCH, CONNECTIONS, LARGEST, Silence
from bench.failover.writers import AGAIN_S, CALL_S
from tq_node.cluster.settings import DEFAULT_SETTINGS

_HEADS = ("failure", "rounds", "p50", "p99", "longest", "worst of a round, p50", "tries, p50", "goal")
_TEMPLATE = Path(__file__).with_name("template.md")
_OTHERS = (
    ("etcd", "2.1 / 3.1"),
    ("Redis with Sentinel", "3.1"),
    ("NATS JetStream", "6.2 / 8.2"),
    ("RabbitMQ quorum queues", "over 60"),
)
"""Seconds of the same gap after silence (SIGSTOP), p50 / p99 or p50, three nodes on two cores, measured once."""


def facts(rounds: int) -> dict[str, Any]:
    return report.facts(rounds, {})


def heading(about: Mapping[str, Any]) -> str:
    changed = f" with {about['changed_files']} changed files" if about["changed_files"] else ""
    return (
        f"commit {about['commit'] or 'unknown'}{changed}, {about['date']}, {about['cores']} cores ({about['machine']}), "
        f"Python {about['python']}"
    )


def lines(found: Mapping[str, Table]) -> str:
    """For the terminal."""
    rows = [_HEADS, *(_row(failure, found[failure.name]) for failure in FAILURES if failure.name in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 1 <= column <= 6 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def silences(found: Sequence[Silence]) -> str:
    return "\n".join(
        f"{one.burners} processes that burn CPU, {one.seconds:.0f} s, {one.tasks:,} tasks taken in: a living node seemed silent "
        f"for {_s(one.p50)} in the middle, {_s(one.p999)} at p99.9, {_s(one.longest)} at most; taken for dead: {one.deaths}"
        for one in found
    )


def _row(failure: Failure, one: Table) -> tuple[str, ...]:
    times = (_s(one.p50), _s(one.p99), _s(one.longest), _s(one.worst_p50))
    return (failure.title, str(one.rounds), *times, f"{one.tries_p50:.0f}", goal(failure, one))


def goal(failure: Failure, one: Table) -> str:
    """Empty: none was set."""
    said = []
    for name, value, most in (("p50", one.p50, failure.goal_s[0]), ("p99", one.p99, failure.goal_s[1])):
        if most is not None:
            said.append(f"{name} < {_s(most)}: {'yes' if value < most else 'no'}")
    return ", ".join(said)


def _s(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def whole(about: Mapping[str, Any], found: Mapping[str, Table], silent: Sequence[Silence]) -> str:
    table = _markdown([_HEADS, *(_row(failure, found[failure.name]) for failure in FAILURES)])
    held_up = _markdown(
        [
            ("beside", "for", "tasks taken in", "p50", "p99.9", "longest", "taken for dead"),
            *(
                (f"{one.burners} processes that burn CPU" if one.burners else "nothing else", f"{one.seconds:.0f} s",
                 f"{one.tasks:,}", _s(one.p50), _s(one.p999), _s(one.longest), str(one.deaths))
                for one in silent
            ),
        ]
    )  # fmt: skip
    return _TEMPLATE.read_text("utf-8").format(
        heading=heading(about), table=table, writers=WRITERS, again=f"{AGAIN_S * 1000:.0f} ms", call=f"{CALL_S:g} s",
        others=_markdown([("", "seconds, p50 / p99"), *_OTHERS]), held_up=held_up, connections=CONNECTIONS, batch=BATCH,
        largest=f"{LARGEST:,}", session=f"{DEFAULT_SETTINGS.session_ms / 1000:g} s",
        suspect=f"{DEFAULT_SETTINGS.suspect_ms / 1000:g} s",
    )  # fmt: skip
