"""Renders ``Metrics`` as a page for Prometheus, block by block, when a scraper asks."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import twisted
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from tq_node.observe.labels import OTHER, cut
from tq_node.observe.metrics import Metrics, PairCounts
from tq_node.observe.text_format import OPENMETRICS, TEXT, family, head, histogram_block, labelled, number_block
from tq_node.types import STATE_LABELS, State

_FINAL = tuple(state for state in State if state.is_final)
_PAIR = ("queue", "type")
_FIRST_FINAL = State.COMPLETED
_QUEUES_A_BLOCK = 16


def content_type_for(accept: str) -> str:
    """The format that the scraper's ``Accept`` asks for: one of ``TEXT`` and ``OPENMETRICS``."""
    _, chosen = choose_encoder(accept)
    return OPENMETRICS if chosen.startswith("application/openmetrics-text") else TEXT


class Exposition:
    """Renders one ``Metrics``; ``prometheus_client`` adds the metrics of the process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def blocks(self, content_type: str, oldest_ready_age_s: Mapping[str, float]) -> Iterator[str]:
        """The blocks of a page, each as of its moment, made in some ten µs; yield between two."""
        self._metrics.sweep()
        start = partial(family, is_openmetrics=content_type == OPENMETRICS)
        yield from self._pairs(start)
        yield from self._waits(start)
        yield from self._queues(start, oldest_ready_age_s)
        yield from self._labels(start)
        yield from self._node(start)
        yield from self._sources(start)
        encode = generate_openmetrics if content_type == OPENMETRICS else generate_latest
        yield encode(self._registry).decode()

    def _pairs(self, start: partial[str]) -> Iterator[str]:
        pairs = [(labelled(_PAIR, key), pair) for key, pair in self._metrics.pairs.entries()]
        for name, text, of in _PAIR_COUNTERS:
            yield start(name, "counter", text)
            for labels, pair in pairs:
                yield "".join(f"{name}_total{{{labels}{more}}} {count}\n" for more, count in of(pair))

    def _waits(self, start: partial[str]) -> Iterator[str]:
        for name, text, kind, table in (
            ("taskqueue_task_wait_seconds", "From due to claimed.", "queue", self._metrics.queues),
            ("taskqueue_task_run_seconds", "From claimed to the end of the attempt.", "type", self._metrics.types),
        ):
            yield start(name, "histogram", text)
            for key, label in table.entries():
                yield histogram_block(name, labelled((kind,), (key,)), label.histogram)

    def _queues(self, start: partial[str], ages: Mapping[str, float]) -> Iterator[str]:
        sources, queues = self._metrics.sources, self._metrics.queues
        shown: dict[str, _Queue] = {name: _Queue() for name, _ in queues.entries()}
        paused = () if sources.paused_queues is None else sources.paused_queues()
        totals: dict[str, _Queue] = {}
        counts = () if sources.task_counts is None else sources.task_counts()
        for number, (name, states) in enumerate(counts):
            if name not in totals:
                totals[name] = _Queue()
            totals[name].add(states)
            if number % _QUEUES_A_BLOCK == 0:
                yield ""
        for number, (name, total) in enumerate(totals.items()):
            queue = shown.setdefault(self._label(name, total.states), _Queue())
            queue.add(total.states)
            queue.age_s = max(queue.age_s, ages.get(name, 0.0))
            if number % _QUEUES_A_BLOCK == 0:
                yield ""
        for name in sorted(paused):
            label = cut(name)
            shown.setdefault(label if label in queues.known else self._metrics.queue_seen(name).text, _Queue()).pause()
        for name in ages.keys() - totals.keys():
            # Of copies that others lead, unless it is one of ours besides.
            if cut(name) in shown:
                queue = shown[cut(name)]
                queue.age_s = max(queue.age_s, ages[name])
        items = [(labelled(("queue",), (name,)), queue) for name, queue in shown.items()]
        yield start("taskqueue_tasks", "gauge", "Tasks by state.")
        for labels, queue in items:
            yield "".join(
                f'taskqueue_tasks{{{labels},state="{label}"}} {count}\n'
                for label, count in zip(STATE_LABELS, queue.states, strict=True)
            )
        for name, text, of in _QUEUE_GAUGES:
            yield start(name, "gauge", text)
            for labels, queue in items:
                yield f"{head(name, labels)}{of(queue)!r}\n"

    def _label(self, queue: str, states: Sequence[int]) -> str:
        """The label under which a queue's tasks are counted; open tasks mark it as used."""
        if not queue:
            return OTHER
        if any(states[:_FIRST_FINAL]):
            return self._metrics.queue_seen(queue).text
        return self._metrics.queues.offer(cut(queue)).text

    def _labels(self, start: partial[str]) -> Iterator[str]:
        metrics = self._metrics
        tables = (("queue", metrics.queues), ("type", metrics.types), ("pair", metrics.pairs))
        name = "taskqueue_metrics_labels"
        yield start(name, "gauge", "Names that have figures of their own.")
        yield number_block(name, "label", [(label, len(table.known)) for label, table in tables])
        name = "taskqueue_metrics_labels_other"
        yield start(name, "counter", "Times that something was counted under other, for want of room.")
        yield number_block(f"{name}_total", "label", [(label, table.missed) for label, table in tables])
        name = "taskqueue_metrics_labels_cut"
        yield start(name, "counter", "Times that something was counted under a name that was cut.")
        yield f"{head(f'{name}_total')}{metrics.names_cut}\n"

    def _node(self, start: partial[str]) -> Iterator[str]:
        metrics = self._metrics
        yield start("taskqueue_build_info", "gauge", "Always 1.")
        names = ("version", "node", "python_version", "twisted_version")
        about = (metrics.version, metrics.node, platform.python_version(), twisted.__version__)
        yield f"{head('taskqueue_build_info', labelled(names, about))}1\n"
        yield start("taskqueue_leases_lost", "counter", "Leases that ended before their attempt did.")
        yield number_block("taskqueue_leases_lost_total", "reason", list(metrics.leases_lost.items()))
        yield start("taskqueue_callers_refused", "counter", "Requests without a token that would do, by reason.")
        yield number_block("taskqueue_callers_refused_total", "reason", list(metrics.callers_refused.items()))
        yield start("taskqueue_over_quota", "counter", "Requests refused for a quota of their token, by quota.")
        yield number_block("taskqueue_over_quota_total", "quota", list(metrics.over_quotas.items()))
        name = "taskqueue_http_request_duration_seconds"
        yield start(name, "histogram", "From request read to answer written.")
        for (route, code), histogram in list(metrics.http_s.items()):
            yield histogram_block(name, labelled(("route", "code"), (route, str(code))), histogram)
        name = "taskqueue_event_clients_dropped"
        yield start(name, "counter", "Event streams closed for reading too slowly.")
        yield f"{head(f'{name}_total')}{metrics.event_clients_dropped}\n"
        for name, text, histogram in (
            ("taskqueue_wal_sync_seconds", "Write and sync of one group commit.", metrics.sync_s),
            ("taskqueue_commit_entries", "Log entries in one group commit.", metrics.commit_entries),
            ("taskqueue_commit_rows", "Rows written behind the log in one group commit.", metrics.commit_rows),
            ("taskqueue_reactor_delay_seconds", "How late the reactor ran a timer.", metrics.reactor_delay_s),
            ("taskqueue_reactor_held_seconds",
             "CPU of single calls of the reactor that took 10 ms or more.", metrics.reactor_held_s),
        ):  # fmt: skip
            yield start(name, "histogram", text)
            yield histogram_block(name, "", histogram)
        name = "taskqueue_reactor_held_max_seconds"
        yield start(name, "gauge", "The most CPU that one call of the reactor has taken since the start.")
        yield f"{head(name)}{metrics.reactor_held_max_s!r}\n"

    def _sources(self, start: partial[str]) -> Iterator[str]:
        sources = self._metrics.sources
        for name, text, label, counts in (
            ("taskqueue_workers", "Places to run a task, by state.", "state", sources.workers),
            ("taskqueue_moves", "Partitions led here that move, by what comes next.", "stage", sources.moves),
            ("taskqueue_tasks_waiting",
             "Tasks that wait, by what for; one that waits for two things counts in both.", "reason", sources.waiting),
            ("taskqueue_moves_waiting",
             "Partitions that should move and do not, known at the leader.", "reason", sources.moves_waiting),
            ("taskqueue_nodes", "Members of the cluster by status, as this node sees them.", "status", sources.nodes),
        ):  # fmt: skip
            if counts is not None:
                yield start(name, "gauge", text) + number_block(name, label, list(counts().items()))
        if sources.partitions_short is not None:
            under_replicated, offline = sources.partitions_short()
            for name, text, count in (
                ("taskqueue_partitions_under_replicated",
                 "Partitions with fewer copies in sync than the map gives them.", under_replicated),
                ("taskqueue_partitions_offline", "Partitions without a primary.", offline),
            ):  # fmt: skip
                yield f"{start(name, 'gauge', text)}{head(name)}{count}\n"
        for name, text, source in (
            ("taskqueue_copied_bytes", "Bytes sent to copies that were made or caught up.", sources.copied_bytes),
            ("taskqueue_audit_lines", "Lines of the audit log.", sources.audit_lines),
            ("taskqueue_audit_lines_lost",
             "Lines that the audit log lacks, for it could not be written.", sources.audit_lines_lost),
        ):  # fmt: skip
            if source is not None:
                yield f"{start(name, 'counter', text)}{head(f'{name}_total')}{source()}\n"
        for name, text, source in (
            ("taskqueue_leader", "1 while this node leads the cluster.", sources.is_leader),
            ("taskqueue_ready", "1 while /ready answers 200.", sources.is_ready),
            ("taskqueue_disk_free_bytes",
             "Free bytes on the file system of the data directory.", sources.disk_free_bytes),
            ("taskqueue_store_bytes", "Bytes that the store takes on the disk.", sources.store_bytes),
            ("taskqueue_uncommitted_bytes",
             "Bytes of entries proposed and not yet durable.", sources.uncommitted_bytes),
            ("taskqueue_http_connections", "Open HTTP connections.", sources.http_connections),
            ("taskqueue_copy_bytes_left",
             "About what copies of partitions led here still lack before they count.", sources.copy_bytes_left),
        ):  # fmt: skip
            if source is not None:
                yield f"{start(name, 'gauge', text)}{head(name)}{int(source())}\n"


class _Queue:
    """Values of the gauges of one queue, or of all queues that share a label."""

    __slots__ = ("age_s", "is_paused", "states")

    def __init__(self) -> None:
        self.states = [0] * len(State)
        self.age_s = 0.0
        self.is_paused = False

    def add(self, states: Sequence[int]) -> None:
        mine = self.states
        for state, count in enumerate(states):
            mine[state] += count

    def pause(self) -> None:
        self.is_paused = True


_PAIR_COUNTERS: tuple[tuple[str, str, Callable[[PairCounts], Iterable[tuple[str, int]]]], ...] = (
    ("taskqueue_tasks_submitted", "Tasks accepted.", lambda pair: [("", pair.submitted)]),
    ("taskqueue_tasks_finished", "Tasks that have ended.",
     lambda pair: [(f',outcome="{state.label}"', pair.finished[state]) for state in _FINAL]),
    ("taskqueue_attempts", "Attempts that have ended.",
     lambda pair: [(f',outcome="{outcome}"', count) for outcome, count in pair.attempts.items()]),
    ("taskqueue_retries", "Failed attempts that were followed by another.", lambda pair: [("", pair.retries)]),
)  # fmt: skip
"""Name, help and samples (further label, value) of what is counted for each queue and type."""
_QUEUE_GAUGES: tuple[tuple[str, str, Callable[[_Queue], float]], ...] = (
    ("taskqueue_tasks_dead", "Dead letters: tasks that failed for good.", lambda queue: queue.states[State.FAILED]),
    ("taskqueue_queue_oldest_ready_age_seconds", "How long the oldest due task has waited.", lambda queue: queue.age_s),
    ("taskqueue_queue_paused", "1 while the queue is paused.", lambda queue: int(queue.is_paused)),
)
"""Name, help and value of what is shown for each queue."""
