"""The numbers of ``metrics`` in Prometheus's formats, made when somebody scrapes."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping

import twisted
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tq_node.observe.metrics import Histogram, Metrics
from tq_node.types import STATE_LABELS, State

_FINAL = tuple(state for state in State if state.is_final)


class Exposition(Collector):
    """Renders one ``Metrics``. Owns its registry: nothing is registered with the global one of ``prometheus_client``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._oldest_ready_age_s: Mapping[str, float] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str, oldest_ready_age_s: Mapping[str, float]) -> tuple[bytes, str]:
        """The whole page and its content type, in the format that the scraper's ``Accept`` asks for."""
        self._oldest_ready_age_s = oldest_ready_age_s
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        # Asked at registration, to find clashes of names; without it the registry would collect.
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._tasks()
        yield from self._queues()
        yield from self._node()
        yield from self._sources()

    def _tasks(self) -> Iterator[Metric]:
        pair_labels = ["queue", "type"]
        submitted = CounterMetricFamily("taskqueue_tasks_submitted", "Tasks accepted.", labels=pair_labels)
        finished = CounterMetricFamily(
            "taskqueue_tasks_finished", "Tasks that have ended.", labels=[*pair_labels, "outcome"]
        )
        attempts = CounterMetricFamily(
            "taskqueue_attempts", "Attempts that have ended.", labels=[*pair_labels, "outcome"]
        )
        retries = CounterMetricFamily(
            "taskqueue_retries", "Failed attempts that were followed by another.", labels=pair_labels
        )
        wait = HistogramMetricFamily("taskqueue_task_wait_seconds", "From due to claimed.", labels=pair_labels)
        run = HistogramMetricFamily(
            "taskqueue_task_run_seconds", "From claimed to the end of the attempt.", labels=pair_labels
        )
        for key, pair in self._metrics.pairs.items():
            submitted.add_metric(key, pair.submitted)
            retries.add_metric(key, pair.retries)
            for state in _FINAL:
                finished.add_metric([*key, state.label], pair.finished[state])
            for outcome, count in pair.attempts.items():
                attempts.add_metric([*key, outcome], count)
            _add(wait, key, pair.wait_s)
            _add(run, key, pair.run_s)
        yield from (submitted, finished, attempts, retries, wait, run)

    def _queues(self) -> Iterator[Metric]:
        metrics = self._metrics
        tasks = GaugeMetricFamily("taskqueue_tasks", "Tasks by state.", labels=["queue", "state"])
        dead = GaugeMetricFamily("taskqueue_tasks_dead", "Dead letters: tasks that failed for good.", labels=["queue"])
        age = GaugeMetricFamily(
            "taskqueue_queue_oldest_ready_age_seconds", "How long the oldest due task has waited.", labels=["queue"]
        )
        paused = GaugeMetricFamily("taskqueue_queue_paused", "1 while the queue is paused.", labels=["queue"])
        paused_now = (
            frozenset(metrics.sources.paused_queues()) if metrics.sources.paused_queues is not None else frozenset()
        )
        ages = self._oldest_ready_age_s
        for queue, states in metrics.tasks.items():
            for label, count in zip(STATE_LABELS, states, strict=True):
                tasks.add_metric([queue, label], count)
            dead.add_metric([queue], states[State.FAILED])
        known = dict.fromkeys([*metrics.tasks, *sorted(paused_now - metrics.tasks.keys())])
        for queue in known:
            age.add_metric([queue], ages.get(queue, 0.0))
            paused.add_metric([queue], float(queue in paused_now))
        yield from (tasks, dead, age, paused)

    def _node(self) -> Iterator[Metric]:
        metrics = self._metrics
        info = GaugeMetricFamily(
            "taskqueue_build_info", "Always 1.", labels=["version", "node", "python_version", "twisted_version"]
        )
        info.add_metric([metrics.version, metrics.node, platform.python_version(), twisted.__version__], 1)
        lost = CounterMetricFamily(
            "taskqueue_leases_lost", "Leases that ended before their attempt did.", labels=["reason"]
        )
        for reason, count in metrics.leases_lost.items():
            lost.add_metric([reason], count)
        http = HistogramMetricFamily(
            "taskqueue_http_request_duration_seconds", "From request read to answer written.", labels=["route", "code"]
        )
        for (route, code), histogram in metrics.http_s.items():
            _add(http, (route, str(code)), histogram)
        dropped = CounterMetricFamily("taskqueue_event_clients_dropped", "Event streams closed for reading too slowly.")
        dropped.add_metric([], metrics.event_clients_dropped)
        yield from (info, lost, http, dropped)
        for name, text, histogram in (
            ("taskqueue_wal_sync_seconds", "Write and sync of one group commit.", metrics.sync_s),
            ("taskqueue_commit_entries", "Log entries in one group commit.", metrics.commit_entries),
            ("taskqueue_commit_rows", "Rows written behind the log in one group commit.", metrics.commit_rows),
            ("taskqueue_reactor_delay_seconds", "How late the reactor ran a timer.", metrics.reactor_delay_s),
            (
                "taskqueue_reactor_held_seconds",
                "CPU of single calls of the reactor that took 10 ms or more.",
                metrics.reactor_held_s,
            ),
        ):
            family = HistogramMetricFamily(name, text)
            _add(family, (), histogram)
            yield family
        yield GaugeMetricFamily(
            "taskqueue_reactor_held_max_seconds",
            "The most CPU that one call of the reactor has taken since the start.",
            value=metrics.reactor_held_max_s,
        )

    def _sources(self) -> Iterator[Metric]:
        sources = self._metrics.sources
        if sources.workers is not None:
            workers = GaugeMetricFamily("taskqueue_workers", "Places to run a task, by state.", labels=["state"])
            for state, count in sources.workers().items():
                workers.add_metric([state], count)
            yield workers
        for name, text, label, counts in (
            ("taskqueue_moves", "Partitions led here that move, by what comes next.", "stage", sources.moves),
            (
                "taskqueue_moves_waiting",
                "Partitions that should move and do not, known at the leader.",
                "reason",
                sources.moves_waiting,
            ),
        ):
            if counts is not None:
                family = GaugeMetricFamily(name, text, labels=[label])
                for word, count in counts().items():
                    family.add_metric([word], count)
                yield family
        if sources.copied_bytes is not None:
            yield CounterMetricFamily(
                "taskqueue_copied_bytes",
                "Bytes sent to copies that were made or caught up.",
                value=sources.copied_bytes(),
            )
        for name, text, source in (
            (
                "taskqueue_disk_free_bytes",
                "Free bytes on the file system of the data directory.",
                sources.disk_free_bytes,
            ),
            ("taskqueue_store_bytes", "Bytes that the store takes on the disk.", sources.store_bytes),
            (
                "taskqueue_uncommitted_bytes",
                "Bytes of entries proposed and not yet durable.",
                sources.uncommitted_bytes,
            ),
            ("taskqueue_http_connections", "Open HTTP connections.", sources.http_connections),
            (
                "taskqueue_copy_bytes_left",
                "About what copies of partitions led here still lack before they count.",
                sources.copy_bytes_left,
            ),
        ):
            if source is not None:
                yield GaugeMetricFamily(name, text, value=source())


def _add(family: HistogramMetricFamily, labels: Iterable[str], histogram: Histogram) -> None:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        below += count
        buckets.append((repr(bound), below))
    buckets.append(("+Inf", below + histogram.counts[-1]))
    family.add_metric(list(labels), buckets, histogram.total)
