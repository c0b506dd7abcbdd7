"""How long an idle cluster takes from a submit to the first line of the handler."""

from __future__ import annotations

import statistics
import time
from urllib.parse import quote

from bench.cluster import Cluster
from bench.context import Context, noop
from bench.processes import Failed
from bench.samples import Kind

ASYNC = Kind("pick-up", "async handler, p50", "ms", more_is_better=False)
PROCESS = Kind("pick-up", "process handler, p50", "ms", more_is_better=False)
GAP_S = 0.01
"""Pause between two submits, so that the cluster is idle again."""
WARM_UP = 5


def pick_up(context: Context) -> None:
    """One round of everybody; a sample is a round's median."""
    count = context.sizes.pickups
    for system in context.trees:
        with context.cluster("pick-up", system=system) as cluster:
            for kind, task_type in ((ASYNC, "first-line-async"), (PROCESS, "first-line-process")):
                add(context, kind, system, [one(cluster, task_type) for _ in range(count + WARM_UP)][WARM_UP:])
            cluster.verify_total(2 * (count + WARM_UP))
    context.each_peer(
        lambda peer: add(context, PROCESS, peer.name, peer.pick_up(context.fresh(peer.name), count, GAP_S))
    )


def one(cluster: Cluster, task_type: str, **fields: object) -> float:
    """Milliseconds from just before the request is sent, to each node in turn, to the handler's first line, on one clock."""
    time.sleep(GAP_S)  # the gap that leaves the nodes idle is part of the measurement
    node = cluster.next()
    begun = time.monotonic_ns()
    task_id = node.tell("POST", "/tasks/submit", noop(task_type, **fields), status=201)["task_id"]
    task = node.tell("GET", f"/tasks/status?id={quote(task_id)}&wait=10")
    if task["status"] != "completed" or not isinstance(task["result"], int):
        raise Failed(f"a task of the pick-up is not completed: {task}")
    return (task["result"] - begun) / 1e6


def add(context: Context, kind: Kind, system: str, taken_ms: list[float]) -> None:
    taken = sorted(taken_ms)
    p99 = taken[len(taken) * 99 // 100]
    context.book.add(
        kind, system, statistics.median(taken), p50_ms=round(statistics.median(taken), 3), p99_ms=round(p99, 3)
    )
