"""What the node counts while it works. Recording is a dictionary look-up and an addition, well below a microsecond.

``prometheus_client`` is not on this path: ``exposition`` turns these numbers into its families when somebody scrapes. Labels
are bounded: a queue, a type or a pair of both beyond the bound is counted under ``other``, so sums stay right.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

import msgspec

from tq_node import limits
from tq_node.types import State, TaskRow, Transition

QUEUE_LABELS_MAX = limits.QUEUES_MAX
TYPE_LABELS_MAX = 200
PAIR_LABELS_MAX = 2_000
OTHER = "other"

HTTP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TASK_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 3_600.0)
SYNC_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
DELAY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
HELD_BUCKETS_S = (0.015, 0.02, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
COUNT_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0, 16_384.0)

_STATES = len(State)
_PROCESSING = State.PROCESSING
_FIRST_FINAL = State.COMPLETED


class Histogram:
    """Counts by bucket and the sum; ``counts`` has one more place than ``bounds``, for what is above all of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class PairCounts:
    """What is counted for one (queue, type)."""

    __slots__ = ("attempts", "finished", "retries", "run_s", "submitted", "wait_s")

    def __init__(self) -> None:
        self.submitted = 0
        self.retries = 0
        self.finished = [0] * _STATES
        self.attempts: dict[str, int] = {}
        self.wait_s = Histogram(TASK_BUCKETS_S)
        self.run_s = Histogram(TASK_BUCKETS_S)


class Sources(msgspec.Struct):
    """Facts that are asked for at a scrape rather than counted; whoever owns the fact puts its callable here.

    ``workers``: number by state (``idle``, ``busy``, ...). Each must be cheap and must not raise.
    """

    paused_queues: Callable[[], Iterable[str]] | None = None
    workers: Callable[[], Mapping[str, int]] | None = None
    disk_free_bytes: Callable[[], int] | None = None
    store_bytes: Callable[[], int] | None = None
    uncommitted_bytes: Callable[[], int] | None = None
    http_connections: Callable[[], int] | None = None
    moves: Callable[[], Mapping[str, int]] | None = None
    """By stage."""
    moves_waiting: Callable[[], Mapping[str, int]] | None = None
    """By reason."""
    copy_bytes_left: Callable[[], int] | None = None
    copied_bytes: Callable[[], int] | None = None


class Metrics:
    """One per process, handed to every room that has something to count. Reactor thread only."""

    def __init__(self, *, version: str = "0", node: str = "") -> None:
        self.version = version
        self.node = node
        self.sources = Sources()
        self.pairs: dict[tuple[str, str], PairCounts] = {}
        self.tasks: dict[str, list[int]] = {}
        """queue -> rows by state; kept by ``transition`` and ``adjust_tasks``"""
        self.leases_lost: dict[str, int] = {}
        self.http_s: dict[tuple[str, int], Histogram] = {}
        self.sync_s = Histogram(SYNC_BUCKETS_S)
        self.commit_entries = Histogram(COUNT_BUCKETS)
        self.commit_rows = Histogram(COUNT_BUCKETS)
        self.reactor_delay_s = Histogram(DELAY_BUCKETS_S)
        self.reactor_held_s = Histogram(HELD_BUCKETS_S)
        self.reactor_held_max_s = 0.0
        self.doing = "nothing yet"
        """The route, or the job in slices, that ran last: what a call that holds the reactor is logged with."""
        self.event_clients_dropped = 0
        self._types: set[str] = set()

    # --- tasks ---
    def transition(self, change: Transition, row: TaskRow) -> None:
        """One committed change of a task whose primary is here; ``row`` is the task as it is after it."""
        queue = change.queue
        pair = self.pairs.get((queue, change.task_type)) or self._pair(queue, change.task_type)
        states = self.tasks.get(queue) or self._states(queue)
        old, new = change.from_state, change.to_state
        states[new] += 1
        if old is None:
            pair.submitted += 1
        else:
            states[old] -= 1
            if old is _PROCESSING:
                self._attempt_ended(pair, new, row)
        if new is _PROCESSING:
            waited_us = change.at_us - row.run_at_us
            pair.wait_s.observe(waited_us / 1e6 if waited_us > 0 else 0.0)
        elif new >= _FIRST_FINAL:
            pair.finished[new] += 1

    def _attempt_ended(self, pair: PairCounts, new: State, row: TaskRow) -> None:
        if not row.attempts:
            outcome = new.label
        else:
            last = row.attempts[-1]
            outcome = last.outcome
            pair.run_s.observe(max(0.0, (last.ended_us - last.started_us) / 1e6))
        pair.attempts[outcome] = pair.attempts.get(outcome, 0) + 1
        if outcome == "lost":
            self.lease_lost("expired")
        elif outcome == "failed" and new < _FIRST_FINAL:
            pair.retries += 1

    def adjust_tasks(self, queue: str, state: State, delta: int) -> None:
        """Rows that appear or go without a transition: found at start, purged, or moved with their partition."""
        (self.tasks.get(queue) or self._states(queue))[state] += delta

    def queue_seen(self, queue: str) -> None:
        """Export the queue from now on, with zeros."""
        self._states(queue)

    def lease_lost(self, reason: str) -> None:
        """``reason`` is one of a few fixed words, never data."""
        self.leases_lost[reason] = self.leases_lost.get(reason, 0) + 1

    # --- store ---
    def committed(self, batches: int, entries: int, rows: int, sync_s: float) -> None:
        """One group commit became durable: log entries and rows in it, and how long the write and the sync took."""
        self.commit_entries.observe(entries)
        self.commit_rows.observe(rows)
        self.sync_s.observe(sync_s)

    # --- process ---
    def reactor_delay(self, seconds: float) -> None:
        self.reactor_delay_s.observe(seconds)

    def reactor_held(self, seconds: float) -> None:
        """One call of the reactor took so much CPU. Short ones are not told."""
        self.reactor_held_s.observe(seconds)
        self.reactor_held_max_s = max(self.reactor_held_max_s, seconds)

    def note_doing(self, what: str) -> None:
        self.doing = what

    def http(self, route: str, code: int, seconds: float) -> None:
        """One answer. ``route`` is a name from the route table, never a path as sent."""
        histogram = self.http_s.get((route, code))
        if histogram is None:
            histogram = self.http_s[route, code] = Histogram(HTTP_BUCKETS_S)
        histogram.observe(seconds)

    # --- labels ---
    def _states(self, queue: str) -> list[int]:
        states = self.tasks.get(queue)
        if states is None:
            if len(self.tasks) >= QUEUE_LABELS_MAX:
                # An over-bound queue goes under the common name for good: names are never taken away again, so a task that
                # was counted in there is also counted out there.
                queue = OTHER
            states = self.tasks.setdefault(queue, [0] * _STATES)
        return states

    def _pair(self, queue: str, task_type: str) -> PairCounts:
        if queue not in self.tasks and len(self.tasks) >= QUEUE_LABELS_MAX:
            queue = OTHER
        if task_type not in self._types:
            if len(self._types) >= TYPE_LABELS_MAX:
                task_type = OTHER
            self._types.add(task_type)
        if (queue, task_type) not in self.pairs and len(self.pairs) >= PAIR_LABELS_MAX:
            queue, task_type = OTHER, OTHER
        return self.pairs.setdefault((queue, task_type), PairCounts())
