"""How long an idle node takes from a submit to the first line of the handler."""

from __future__ import annotations

import statistics
import time
from urllib.parse import quote

from bench.context import Context, noop
from bench.node import Node
from bench.processes import Failed
from bench.samples import OURS, Kind

ASYNC = Kind("pick-up", "async handler", "ms", more_is_better=False, goal=5.0)
PROCESS = Kind("pick-up", "process handler", "ms", more_is_better=False, goal=10.0)
GAP_S = 0.01
"""Between two submits: the node is idle again."""
WARM_UP = 5


def pick_up(context: Context) -> None:
    """One round of everybody; a sample is a round's median."""
    count = context.sizes.pickups
    with Node(context.fresh("pick-up")) as node:
        for kind, task_type in ((ASYNC, "first-line-async"), (PROCESS, "first-line-process")):
            add(context, kind, OURS, [one(node, task_type) for _ in range(count + WARM_UP)][WARM_UP:])
        node.verify_total(2 * (count + WARM_UP))
    for peer in context.peers:
        add(context, PROCESS, peer.name, peer.pick_up(context.fresh(peer.name), count, GAP_S))


def one(node: Node, task_type: str) -> float:
    """Milliseconds from just before the request is sent to the handler's first line, on the clock that both read."""
    time.sleep(GAP_S)  # the gap that leaves the node idle is part of the measurement
    begun = time.monotonic_ns()
    task_id = node.tell("POST", "/tasks/submit", noop(task_type), status=201)["task_id"]
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
