"""Clusters that store many tasks against one that stores a thousand: start, memory, disk, and what calls cost.

Half of the tasks wait in a paused queue, half are scheduled for tomorrow: none has ended, which is the worst for memory. The two
clusters run side by side and are asked in turns, so that both see the same machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from urllib.parse import quote

from bench.cluster import Cluster
from bench.context import Context, noop
from bench.drains import drain_once
from bench.goals import COST_OF_A_MILLION, RSS_MIB_OF_A_MILLION, START_S_OF_A_MILLION
from bench.load import offer
from bench.pickups import one as pick_one
from bench.reads import TASKS, read
from bench.samples import OURS, Kind
from bench.submits import fill, send_batches, send_submits

MILLION = 1_000_000
FILL_BATCH = 5_000
PICKUPS = 20
DRAINED = 2_000
BATCHES = 6
QUEUE = "beside"
"""Of what is run; the stored tasks stay in the paused default queue."""
CONCURRENCY = 64
SPREAD_BATCH = 50
"""A batch lands in some partitions of one node: so that those of the small cluster are all used, and alike, it takes many."""


class Pair:
    """The large and the small cluster, and how many tasks of theirs have been run."""

    def __init__(self, context: Context, large: Cluster, small: Cluster) -> None:
        self.context = context
        self.large = large
        self.small = small
        self.completed = {cluster: cluster.stats()["completed"] for cluster in (large, small)}
        self.paths = {cluster: _newest(cluster) for cluster in (large, small)}

    def measures(self) -> dict[str, Callable[[Cluster], float]]:
        """By name: the cost of one call or task, in ms."""
        calls = self.context.sizes.stored_calls
        return {
            # What stores most comes last: the small cluster should stay small.
            "/tasks/stats": lambda at: self._stats(at, calls),
            "status reads, 32 in flight": lambda at: 1000 / read(at, self.paths[at], requests=4 * calls).rate,
            "pick-up by an async handler": self._pick_up,
            "submit, one after the other": lambda at: send_submits(at, 1, requests=calls).p50_ms,
            "submit, 32 in flight": lambda at: 1000 / send_submits(at, 32, requests=4 * calls).rate,
            "drain of async handlers": self._drain,
            "batches of 1,000": lambda at: 1_000 / send_batches(at, 1_000, requests=BATCHES).accepted_rate,
        }

    def _stats(self, cluster: Cluster, calls: int) -> float:
        return offer(
            cluster.ports, "/tasks/stats", None, connections=len(cluster.nodes), in_flight=1, requests=calls,
            directory=cluster.directory, status=200, method="GET",
        ).p50_ms  # fmt: skip

    def _drain(self, cluster: Cluster) -> float:
        before = self.completed[cluster]
        waiting = cluster.stats()["total"] - before
        seconds, _ = drain_once(
            cluster, DRAINED, noop(queue=QUEUE), queue=QUEUE, before=before, waiting=waiting
        )  # fmt: skip
        self.completed[cluster] += DRAINED
        return seconds / DRAINED * 1000

    def _pick_up(self, cluster: Cluster) -> float:
        self.completed[cluster] += PICKUPS
        return statistics.median(pick_one(cluster, "first-line-async", queue=QUEUE) for _ in range(PICKUPS))


def _newest(cluster: Cluster) -> list[str]:
    """Of tasks that both clusters have just got in the same way: what differs is what else is stored."""
    fill(cluster, TASKS, noop(), SPREAD_BATCH)
    tasks = cluster.nodes[0].tell("GET", f"/tasks/list?scope=cluster&sort=-created_at&limit={TASKS}")["tasks"]
    return [f"/tasks/status?id={quote(task['id'])}" for task in tasks]


def stored(context: Context) -> None:
    """The whole part; its calls are repeated within, so it is done once."""
    base, *sizes = context.sizes.stored
    large = context.cluster("large", concurrency=CONCURRENCY)
    with large:
        large.pause()
        for size in sizes:
            context.say(f"submitting up to {size:,} tasks")
            _grow(context, large, size)
            _restart(context, large, size)
            with context.cluster("small", concurrency=CONCURRENCY) as small:
                small.pause()
                fill(small, max(0, base - TASKS), noop(), SPREAD_BATCH)  # the rest are those whose status is read
                _compare(context, Pair(context, large, small), size, base)
            goal = RSS_MIB_OF_A_MILLION if size >= MILLION else None
            _add(context, f"memory after the calls, {size:,} tasks", "MiB RSS", large.rss_mib(), goal)
        _cut_short(context, large, sizes[-1])


def _add(context: Context, what: str, unit: str, value: float, goal: float | None, **more: float) -> None:
    kind = Kind("stored", what, unit, more_is_better=False)
    if goal is not None:
        context.book.add_goal(kind, goal)
    context.book.add(kind, OURS, value, **more)


def _grow(context: Context, cluster: Cluster, size: int) -> None:
    """Up to so many that wait; those that earlier measures have left count too."""
    here = cluster.stats()["total"]
    missing = max(0, size - here)
    half = missing // 2
    taken = fill(cluster, half, noop(), FILL_BATCH)
    taken += fill(cluster, missing - half, noop(delay=86_400), FILL_BATCH)
    cluster.verify_total(here + missing)
    context.book.add(Kind("stored", f"submit of {size:,} tasks in batches", "tasks/s"), OURS, missing / taken)


def _restart(context: Context, cluster: Cluster, size: int) -> None:
    """In order; with how much it takes on disk, and in memory afterwards."""
    total = cluster.stats()["total"]
    cluster.stop()
    disk = cluster.disk_bytes()
    _add(context, f"disk of all nodes, {size:,} tasks", "bytes per task", disk / total, None)
    ready, whole = cluster.start()
    cluster.verify_total(total)
    goal = START_S_OF_A_MILLION if size >= MILLION else None
    _add(context, f"start of all nodes, {size:,} tasks", "s to /ready", ready, goal, whole_s=round(whole, 2))
    goal = RSS_MIB_OF_A_MILLION if size >= MILLION else None
    _add(context, f"memory of the largest node after the start, {size:,} tasks", "MiB RSS", cluster.rss_mib(), goal)


def _cut_short(context: Context, cluster: Cluster, size: int) -> None:
    """kill -9 of all right after an acknowledged batch, and start again: nothing is lost."""
    total = cluster.stats()["total"]
    fill(cluster, FILL_BATCH, noop(), FILL_BATCH)
    cluster.crash()
    ready, whole = cluster.start()
    goal = START_S_OF_A_MILLION if size >= MILLION else None
    _add(context, f"start after kill -9 of all, {size:,} tasks", "s to /ready", ready, goal, whole_s=round(whole, 2))
    cluster.verify_total(total + FILL_BATCH)


def _compare(context: Context, pair: Pair, size: int, base: int) -> None:
    for name, measure in pair.measures().items():
        for cluster in (pair.large, pair.small):
            measure(cluster)  # what is cold gets warm
        goal = COST_OF_A_MILLION if size >= MILLION else None
        for number in range(context.sizes.stored_rounds):
            first, second = (pair.large, pair.small) if number % 2 else (pair.small, pair.large)
            costs = {first: measure(first), second: measure(second)}
            large_ms, small_ms = costs[pair.large], costs[pair.small]
            _add(
                context, f"{name}, {size:,} : {base:,} tasks", "times the cost", large_ms / small_ms, goal,
                ms_large=round(large_ms, 4), ms_small=round(small_ms, 4),
            )  # fmt: skip
