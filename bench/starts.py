"""How long an empty cluster takes from its first process to the first answer, and until every copy is in sync."""

from __future__ import annotations

from bench.context import Context
from bench.samples import OURS, Kind

READY = Kind("start", "new nodes, all /ready", "s", more_is_better=False)
WHOLE = Kind("start", "new nodes, every partition in sync on all", "s", more_is_better=False)
AGAIN = Kind("start", "the same nodes again, all /ready", "s", more_is_better=False)


def start(context: Context) -> None:
    """One round."""
    cluster = context.cluster("start")
    try:
        ready, whole = cluster.start()
        context.book.add(READY, OURS, ready)
        context.book.add(WHOLE, OURS, whole)
        cluster.stop()
        context.book.add(AGAIN, OURS, cluster.start()[0])
    except BaseException:
        cluster.crash()
        raise
    cluster.stop()
