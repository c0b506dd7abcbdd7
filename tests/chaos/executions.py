"""What handlers did, by the lines that they wrote, against what the record says (P3)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

LEDGER = "TEST_LEDGER"
"""Environment variable of a node: the file for its handlers' lines."""


class Executions(NamedTuple):
    """``starts``: all there were. ``extra``: those beyond the attempts that the record shows as ended by themselves, because a
    node or its lease was lost meanwhile, or the attempt was given back. ``repeated``: attempts that began more than once, which
    nothing may cause: each start is committed before its handler runs."""

    starts: int
    extra: int
    repeated: list[str]


def executions(ledgers: Iterable[Path], record: Mapping[str, Mapping[str, Any]]) -> Executions:
    """:param record: every task at the end, as ``/tasks/status`` shows it."""
    tokens: dict[str, Counter[str]] = defaultdict(Counter)
    for ledger in ledgers:
        if ledger.exists():
            for line in ledger.read_text().splitlines():
                task_id, _, token, word, _ = line.split()
                tokens[task_id][token] += word == "began"
    extra = 0
    for task_id, began in tokens.items():
        attempts = record[task_id]["attempts"] if task_id in record else ()
        accounted = sum(attempt["outcome"] != "lost" for attempt in attempts)
        extra += max(0, began.total() - accounted)
    repeated = [
        f"{task_id} {token}" for task_id, began in tokens.items() for token, count in began.items() if count > 1
    ]
    return Executions(sum(began.total() for began in tokens.values()), extra, sorted(repeated))
