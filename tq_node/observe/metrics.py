"""The node's counters and histograms. To record is a dictionary look-up and an addition.

``exposition`` renders them. Labels are bounded (``labels``): a queue, a type or a pair of both
beyond the bound is counted under ``other``."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from tq_node import limits
from tq_node.observe.labels import OTHER, LabelTable, cut
from tq_node.types import Change, State, TaskRow, Transition

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
    """Counts by bucket, and the sum; the last of ``counts`` is for what is above all ``bounds``."""

    __slots__ = ("bounds", "counts", "heads", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.heads: tuple[str, ...] = ()
        """Name and labels of each sample; a cache of ``exposition``."""

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Label:
    """The counts of one queue, or of one type."""

    __slots__ = ("histogram", "is_used", "seen_s", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.histogram = Histogram(TASK_BUCKETS_S)
        """For a queue: how long its tasks waited; for a type: how long its attempts ran."""
        self.is_used = False
        self.seen_s = 0.0


class PairCounts:
    """The counts of one queue and type."""

    __slots__ = ("attempts", "finished", "is_used", "retries", "seen_s", "submitted")

    def __init__(self) -> None:
        self.submitted = 0
        self.retries = 0
        self.finished = [0] * _STATES
        self.attempts: dict[str, int] = {}
        self.is_used = False
        self.seen_s = 0.0


class Sources(msgspec.Struct):
    """Callables for what is read at a scrape and not counted; whoever owns a fact sets its
    callable. ``workers``: number by state (``idle``, ``busy``, ...). Each must be cheap and must
    not raise."""

    task_counts: Callable[[], Iterable[tuple[str, Sequence[int]]]] | None = None
    """Tasks by state (in its order) of a queue, by partition led here; ``""``: several queues."""
    paused_queues: Callable[[], Iterable[str]] | None = None
    waiting: Callable[[], Mapping[str, int]] | None = None
    """Tasks that wait, by what for."""
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
    audit_lines: Callable[[], int] | None = None
    audit_lines_lost: Callable[[], int] | None = None
    is_leader: Callable[[], bool] | None = None
    is_ready: Callable[[], bool] | None = None
    nodes: Callable[[], Mapping[str, int]] | None = None
    """By status, as this node sees them."""
    partitions_short: Callable[[], tuple[int, int]] | None = None
    """Partitions short of in-sync copies, and those without a primary, by this node's map."""


class Metrics:
    """All counters of a process, handed to whatever counts. Reactor thread only."""

    def __init__(
        self,
        *,
        version: str = "0",
        node: str = "",
        labels_max: int = limits.METRICS_LABELS,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param labels_max: queues, and types, that are counted under their names."""
        self.version = version
        self.node = node
        self.sources = Sources()
        self._now_s = now_s
        spread = self._spread_use
        self.queues: LabelTable[str, Label] = LabelTable(
            labels_max, Label, OTHER, now_s, on_dropped=partial(self._dropped, 0), before_sweep=spread
        )
        self.types: LabelTable[str, Label] = LabelTable(
            labels_max, Label, OTHER, now_s, on_dropped=partial(self._dropped, 1), before_sweep=spread
        )
        self.pairs: LabelTable[tuple[str, str], PairCounts] = LabelTable(
            limits.METRICS_PAIRS_MAX, lambda key: PairCounts(), (OTHER, OTHER), now_s, before_sweep=spread
        )
        self.names_cut = 0
        """How often something was counted under a name that was cut."""
        self.leases_lost: dict[str, int] = {}
        self.callers_refused: dict[str, int] = {}
        self.over_quotas: dict[str, int] = {}
        self.http_s: dict[tuple[str, int], Histogram] = {}
        self.sync_s = Histogram(SYNC_BUCKETS_S)
        self.commit_entries = Histogram(COUNT_BUCKETS)
        self.commit_rows = Histogram(COUNT_BUCKETS)
        self.reactor_delay_s = Histogram(DELAY_BUCKETS_S)
        self.reactor_held_s = Histogram(HELD_BUCKETS_S)
        self.reactor_held_max_s = 0.0
        self.doing = "nothing yet"
        """The route or sliced job that ran last; logged with a call that held the reactor."""
        self.event_clients_dropped = 0

    # --- tasks ---
    def transitions(self, changes: Iterable[Change]) -> None:
        """Committed changes of tasks whose primary is here, each with the task after it."""
        known = self.pairs.known
        for change, row in changes:
            pair = known.get((change.queue, change.task_type)) or self._pair(change.queue, change.task_type)
            pair.is_used = True
            old, new = change.from_state, change.to_state
            if old is None:
                pair.submitted += 1
            elif old is _PROCESSING:
                self._attempt_ended(pair, change, row)
            if new is _PROCESSING:
                queue = self.queues.known.get(change.queue) or self.queue_seen(change.queue)
                waited_us = change.at_us - row.run_at_us
                queue.histogram.observe(waited_us / 1e6 if waited_us > 0 else 0.0)
            elif new >= _FIRST_FINAL:
                pair.finished[new] += 1

    def _attempt_ended(self, pair: PairCounts, change: Transition, row: TaskRow) -> None:
        new = change.to_state
        if not row.attempts:
            outcome = new.label
        else:
            last = row.attempts[-1]
            outcome = last.outcome
            kind = self.types.known.get(change.task_type) or self.type_seen(change.task_type)
            kind.histogram.observe(max(0.0, (last.ended_us - last.started_us) / 1e6))
        pair.attempts[outcome] = pair.attempts.get(outcome, 0) + 1
        if outcome == "lost":
            self.lease_lost("expired")
        elif outcome == "failed" and new < _FIRST_FINAL:
            pair.retries += 1

    def lease_lost(self, reason: str) -> None:
        """``reason`` is one of a few fixed words, never data."""
        self.leases_lost[reason] = self.leases_lost.get(reason, 0) + 1

    # --- store ---
    def committed(self, batches: int, entries: int, rows: int, sync_s: float) -> None:
        """One group commit became durable: its log entries and rows; seconds of write and sync."""
        self.commit_entries.observe(entries)
        self.commit_rows.observe(rows)
        self.sync_s.observe(sync_s)

    # --- process ---
    def reactor_delay(self, seconds: float) -> None:
        self.reactor_delay_s.observe(seconds)

    def reactor_held(self, seconds: float) -> None:
        """Count a call of the reactor that took ``seconds`` of CPU; short calls are not counted."""
        self.reactor_held_s.observe(seconds)
        self.reactor_held_max_s = max(self.reactor_held_max_s, seconds)

    def note_doing(self, what: str) -> None:
        self.doing = what

    def over_quota(self, quota: str) -> None:
        """``quota`` is a name of one, never data."""
        self.over_quotas[quota] = self.over_quotas.get(quota, 0) + 1

    def caller_refused(self, reason: str) -> None:
        """``reason`` is one of a few fixed words, never data."""
        self.callers_refused[reason] = self.callers_refused.get(reason, 0) + 1

    def http(self, route: str, code: int, seconds: float) -> None:
        """One answer. ``route`` is a name from the route table, never a path as sent."""
        histogram = self.http_s.get((route, code))
        if histogram is None:
            histogram = self.http_s[route, code] = Histogram(HTTP_BUCKETS_S)
        histogram.observe(seconds)

    # --- labels ---
    def queue_seen(self, name: str) -> Label:
        """The counts of a queue, which is exported from now on if there is room."""
        return self.queues.find(self._whole_or_cut(name))

    def type_seen(self, name: str) -> Label:
        return self.types.find(self._whole_or_cut(name))

    def sweep(self) -> None:
        """Note at each scrape which names are in use: one of the last hour keeps its place."""
        for table in (self.queues, self.types, self.pairs):
            table.sweep()

    def _spread_use(self) -> None:
        """Mark queue and type of each used pair as used: counting marks only pairs."""
        for (queue, kind), pair in self.pairs.known.items():
            if pair.is_used:
                pair.is_used, pair.seen_s = False, self._now_s()
                for table, name in ((self.queues, queue), (self.types, kind)):
                    label = table.known.get(name)
                    if label is not None:
                        label.is_used = True

    def _pair(self, queue: str, kind: str) -> PairCounts:
        return self.pairs.find((self.queue_seen(queue).text, self.type_seen(kind).text))

    def _whole_or_cut(self, name: str) -> str:
        text = cut(name)
        if text is not name:
            self.names_cut += 1
        return text

    def _dropped(self, part: int, name: str) -> None:
        """Drop the pairs of an evicted queue (part 0) or type (1)."""
        for key in [key for key in self.pairs.known if key[part] == name]:
            self.pairs.drop(key)
