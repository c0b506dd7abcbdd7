"""What is counted, and how it is told."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from tq_node import limits
from tq_node.observe.exposition import Exposition
from tq_node.observe.loop_monitor import LoopMonitor
from tq_node.observe.metrics import Metrics
from tq_node.observe.text_format import TEXT
from tq_node.types import AttemptRecord, Backoff, State, TaskId, TaskRow, TaskSpec, Transition

SECOND_US = 1_000_000


def row_of(state: State, *, queue: str = "default", task_type: str = "email", **fields: Any) -> TaskRow:
    spec = TaskSpec(TaskId("t"), task_type, b"1", queue, 5, 3, None, Backoff(), None, 0, b"")
    return TaskRow(spec, 0, 1, state, fields.pop("run_at_us", 0), **fields)


def change(old: State | None, row: TaskRow, at_us: int = 0) -> tuple[Transition, TaskRow]:
    return Transition(row.id, row.spec.type, row.spec.queue, old, row.state, row.attempt, 0, at_us), row


def samples(metrics: Metrics, ages: dict[str, float] | None = None) -> dict[tuple[str, ...], float]:
    page = "".join(Exposition(metrics).blocks(TEXT, ages or {}))
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3", node="node-1")


def test_a_task_s_life(metrics: Metrics) -> None:
    failed = AttemptRecord(1, "node-1", 2 * SECOND_US, 5 * SECOND_US, "failed")
    done = AttemptRecord(2, "node-1", 9 * SECOND_US, 10 * SECOND_US, "completed")
    metrics.transitions([change(None, row_of(State.PENDING))])
    metrics.transitions([change(State.PENDING, row_of(State.PROCESSING, run_at_us=0), 2 * SECOND_US)])
    metrics.transitions([change(State.PROCESSING, row_of(State.SCHEDULED, attempts=(failed,)))])
    metrics.transitions([change(State.SCHEDULED, row_of(State.PENDING, attempts=(failed,)))])
    metrics.transitions([change(State.PENDING, row_of(State.PROCESSING, run_at_us=9 * SECOND_US), 9 * SECOND_US)])
    metrics.transitions([change(State.PROCESSING, row_of(State.COMPLETED, attempts=(failed, done)))])
    told = samples(metrics)
    pair = ("queue=default", "type=email")
    assert told["taskqueue_tasks_submitted_total", *pair] == 1
    assert told["taskqueue_attempts_total", "outcome=failed", *pair] == 1
    assert told["taskqueue_attempts_total", "outcome=completed", *pair] == 1
    assert told["taskqueue_retries_total", *pair] == 1
    assert told["taskqueue_tasks_finished_total", "outcome=completed", *pair] == 1
    assert told["taskqueue_tasks_finished_total", "outcome=failed", *pair] == 0
    assert told["taskqueue_task_wait_seconds_count", "queue=default"] == 2
    assert told["taskqueue_task_wait_seconds_sum", "queue=default"] == 2.0
    assert told["taskqueue_task_run_seconds_sum", "type=email"] == 4.0
    assert told["taskqueue_task_run_seconds_bucket", "le=1.0", "type=email"] == 1
    assert told["taskqueue_task_run_seconds_bucket", "le=+Inf", "type=email"] == 2


def test_dead_letters_lost_leases_and_cancels(metrics: Metrics) -> None:
    lost = AttemptRecord(1, "node-1", 0, 1, "lost")
    metrics.transitions([change(None, row_of(State.PENDING))])
    metrics.transitions([change(State.PENDING, row_of(State.PROCESSING))])
    metrics.transitions([change(State.PROCESSING, row_of(State.FAILED, attempts=(lost,)))])
    metrics.transitions([change(None, row_of(State.PENDING))])
    metrics.transitions([change(State.PENDING, row_of(State.CANCELLED))])
    told = samples(metrics)
    assert told["taskqueue_leases_lost_total", "reason=expired"] == 1
    assert told["taskqueue_retries_total", "queue=default", "type=email"] == 0
    assert told["taskqueue_tasks_finished_total", "outcome=cancelled", "queue=default", "type=email"] == 1


def test_a_known_empty_queue_exports_zero(metrics: Metrics) -> None:
    metrics.queue_seen("mail")
    told = samples(metrics)
    assert told["taskqueue_tasks", "queue=mail", "state=pending"] == 0
    assert told["taskqueue_queue_oldest_ready_age_seconds", "queue=mail"] == 0
    assert told["taskqueue_queue_paused", "queue=mail"] == 0
    assert told["taskqueue_tasks_dead", "queue=mail"] == 0


def test_tasks_of_the_partitions_led_here(metrics: Metrics) -> None:
    metrics.sources.task_counts = lambda: [
        ("mail", [1, 2, 3, 4, 5, 5]),
        ("", [0, 0, 0, 7, 0, 0]),
        ("mail", [0, 0, 0, 0, 0, 1]),
    ]
    told = samples(metrics)
    assert told["taskqueue_tasks", "queue=mail", "state=scheduled"] == 1
    assert told["taskqueue_tasks", "queue=mail", "state=cancelled"] == 6
    assert told["taskqueue_tasks_dead", "queue=mail"] == 5
    assert told["taskqueue_tasks", "queue=other", "state=completed"] == 7


def live(metrics: Metrics, queue: str, kind: str) -> None:
    """A task's whole life."""
    ran = (AttemptRecord(1, "node-1", 0, SECOND_US, "completed"),)
    for old, new, attempts in (
        (None, State.PENDING, ()),
        (State.PENDING, State.PROCESSING, ()),
        (State.PROCESSING, State.COMPLETED, ran),
    ):
        metrics.transitions([change(old, row_of(new, queue=queue, task_type=kind, attempts=attempts))])


class TestBounds:
    """``--metrics-labels``, 200 pairs, 100 bytes a name."""

    def test_2000_pairs_are_200_and_the_sums_are_right(self, metrics: Metrics) -> None:
        queues, kinds = 10, 200
        for number in range(queues * kinds):
            live(metrics, f"q{number % queues}", f"t{number // queues}")
        told = samples(metrics)
        submitted = {name: value for name, value in told.items() if name[0] == "taskqueue_tasks_submitted_total"}
        assert len(submitted) == limits.METRICS_PAIRS_MAX + 1
        assert sum(submitted.values()) == queues * kinds
        assert told["taskqueue_tasks_submitted_total", "queue=other", "type=other"] == queues * kinds - 200
        assert all(told["taskqueue_task_wait_seconds_count", f"queue=q{number}"] == kinds for number in range(queues))
        assert all(told["taskqueue_task_run_seconds_count", f"type=t{number}"] == queues for number in range(kinds))
        assert told["taskqueue_metrics_labels", "label=pair"] == 200
        assert told["taskqueue_metrics_labels_other_total", "label=pair"] > 0
        assert told["taskqueue_metrics_labels_other_total", "label=type"] == 0

    def test_the_first_names_stay_and_the_rest_is_other(self) -> None:
        metrics = Metrics(labels_max=3)
        for number in range(8):
            live(metrics, f"q{number}", f"t{number}")
        told = samples(metrics)
        for name, label in (
            ("taskqueue_task_wait_seconds_count", "queue"),
            ("taskqueue_task_run_seconds_count", "type"),
        ):
            found = {key[1]: value for key, value in told.items() if key[0] == name}
            assert found == {f"{label}={label[0]}0": 1, f"{label}={label[0]}1": 1, f"{label}={label[0]}2": 1} | {
                f"{label}=other": 5
            }
        assert told["taskqueue_metrics_labels_other_total", "label=queue"] >= 5

    def test_gauges_of_queues_without_room_are_added_up(self) -> None:
        metrics = Metrics(labels_max=2)
        metrics.sources.task_counts = lambda: [(f"q{n}", [0, 1, 0, 0, 10, 0]) for n in range(5)]
        metrics.sources.paused_queues = lambda: ["q4"]
        told = samples(metrics, {f"q{n}": float(n) for n in range(5)})
        assert told["taskqueue_tasks", "queue=other", "state=pending"] == 3
        assert told["taskqueue_tasks_dead", "queue=other"] == 30
        assert told["taskqueue_queue_oldest_ready_age_seconds", "queue=other"] == 4.0
        assert told["taskqueue_queue_paused", "queue=other"] == 1
        assert told["taskqueue_queue_paused", "queue=q0"] == 0

    def test_long_names_are_cut_by_bytes_and_those_that_look_alike_are_added_up(self, metrics: Metrics) -> None:
        for number in range(3):
            live(metrics, "💩" * 95 + str(number), "ü" * 51)
        told = samples(metrics)
        (queue,) = [key[1] for key in told if key[0] == "taskqueue_task_wait_seconds_count"]
        (kind,) = [key[1] for key in told if key[0] == "taskqueue_task_run_seconds_count"]
        assert queue == "queue=" + "💩" * 24 + "…"
        assert kind == "type=" + "ü" * 48 + "…"
        assert all(len(label.partition("=")[2].encode()) <= limits.METRICS_LABEL_BYTES_MAX for label in (queue, kind))
        assert told["taskqueue_tasks_submitted_total", queue, kind] == 3
        assert told["taskqueue_metrics_labels_cut_total",] > 0

    def test_a_name_of_just_100_bytes_is_whole(self, metrics: Metrics) -> None:
        live(metrics, "é" * 50, "x" * 100)
        assert ("taskqueue_tasks_submitted_total", "queue=" + "é" * 50, "type=" + "x" * 100) in samples(metrics)
        assert metrics.names_cut == 0

    def test_what_must_be_escaped(self, metrics: Metrics) -> None:
        live(metrics, 'a"b\\c', "d}=,")
        assert ("taskqueue_tasks_submitted_total", 'queue=a"b\\c', "type=d}=,") in samples(metrics)

    @pytest.mark.parametrize("emoji", [False, True])
    def test_no_block_of_a_page_is_long(self, emoji: bool) -> None:
        """A page of 2,000 pairs gives the reactor back after any of its blocks: what stands in one is counted."""
        metrics = Metrics(labels_max=limits.METRICS_LABELS_MAX)
        tail = "💩" * 24 if emoji else ""
        for number in range(2_000):
            live(metrics, f"{number % 1_000:03}{tail}"[:27], f"{number:04}{tail}"[:27])
        counts = {f"{number:03}{tail}"[:27]: [1] * 6 for number in range(1_000)}
        metrics.sources.task_counts = counts.items
        metrics.http("/tasks/submit", 201, 0.001)
        blocks = list(Exposition(metrics).blocks(TEXT, dict.fromkeys(counts, 1.0)))
        assert max(block.count("\n") for block in blocks) <= 60
        assert len(blocks) > 5_000
        assert sum(map(len, blocks)) < 12 * limits.MIB
        worst = max(len(block) for block in blocks)
        print(f"\n{len(blocks)} blocks, {sum(map(len, blocks))} characters, {worst} in the longest")


class TestRoom:
    """A name that was not used for an hour makes room."""

    def test_after_an_hour(self) -> None:
        clock = Clock()
        metrics = Metrics(labels_max=2, now_s=clock.seconds)
        live(metrics, "old", "old")
        live(metrics, "busy", "busy")
        samples(metrics)
        for _ in range(limits.METRICS_LABEL_IDLE_S // 600):
            clock.advance(600)
            live(metrics, "busy", "busy")
            samples(metrics)
        clock.advance(1)
        live(metrics, "new", "new")
        told = samples(metrics)
        waited = {key[1] for key in told if key[0] == "taskqueue_task_wait_seconds_count"}
        assert waited == {"queue=busy", "queue=new"}
        submitted = {key[1:]: value for key, value in told.items() if key[0] == "taskqueue_tasks_submitted_total"}
        assert submitted == {("queue=busy", "type=busy"): 7, ("queue=new", "type=new"): 1}

    def test_not_before(self) -> None:
        clock = Clock()
        metrics = Metrics(labels_max=1, now_s=clock.seconds)
        live(metrics, "old", "old")
        samples(metrics)
        clock.advance(limits.METRICS_LABEL_IDLE_S - 1)
        live(metrics, "new", "new")
        assert ("taskqueue_task_wait_seconds_count", "queue=other") in samples(metrics)
        clock.advance(2)
        live(metrics, "new", "new")
        told = samples(metrics)
        assert ("taskqueue_task_wait_seconds_count", "queue=new") in told
        assert ("taskqueue_task_wait_seconds_count", "queue=old") not in told

    def test_without_a_scrape_too_what_was_used_stays(self) -> None:
        """Nobody scrapes for hours; then a new name comes."""
        clock = Clock()
        metrics = Metrics(labels_max=1, now_s=clock.seconds)
        live(metrics, "used", "used")
        clock.advance(3 * limits.METRICS_LABEL_IDLE_S)
        live(metrics, "used", "used")
        live(metrics, "new", "new")
        assert ("taskqueue_task_wait_seconds_count", "queue=used") in samples(metrics)

    def test_a_queue_with_open_tasks_stays(self) -> None:
        clock = Clock()
        metrics = Metrics(labels_max=1, now_s=clock.seconds)
        metrics.sources.task_counts = lambda: [("paused", [0, 0, 0, 1, 0, 0]), ("paused", [0, 5, 0, 0, 0, 0])]
        for _ in range(3):
            samples(metrics)
            clock.advance(limits.METRICS_LABEL_IDLE_S)
        samples(metrics)
        clock.advance(1)
        live(metrics, "new", "new")
        told = samples(metrics)
        assert told["taskqueue_tasks", "queue=paused", "state=pending"] == 5
        assert ("taskqueue_tasks", "queue=new", "state=pending") not in told

    def test_a_queue_with_nothing_but_ended_tasks_makes_room_and_takes_none(self) -> None:
        clock = Clock()
        metrics = Metrics(labels_max=2, now_s=clock.seconds)
        metrics.sources.task_counts = lambda: [("over", [0, 0, 0, 9, 0, 0]), ("late", [0, 0, 0, 1, 0, 0])]
        live(metrics, "idle", "a")
        samples(metrics)
        assert set(metrics.queues.known) == {"idle", "over"}
        clock.advance(limits.METRICS_LABEL_IDLE_S + 2)
        assert samples(metrics)["taskqueue_tasks", "queue=other", "state=completed"] == 1
        clock.advance(1)
        live(metrics, "one", "a")
        clock.advance(1)
        live(metrics, "two", "a")
        assert set(metrics.queues.known) == {"one", "two"}
        assert samples(metrics)["taskqueue_tasks", "queue=other", "state=completed"] == 10

    def test_ten_thousand_new_names_look_for_room_once_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        metrics = Metrics(labels_max=5, now_s=clock.seconds)
        sweeps = 0
        sweep = metrics.queues.sweep

        def counted() -> None:
            nonlocal sweeps
            sweeps += 1
            sweep()

        monkeypatch.setattr(metrics.queues, "sweep", counted)
        for number in range(10_000):
            metrics.transitions([change(None, row_of(State.PENDING, queue=f"q{number}", task_type=f"t{number}"))])
        assert sweeps <= 1
        assert len(metrics.queues.known) == 5


def test_the_node_s_own_numbers(metrics: Metrics) -> None:
    metrics.committed(1, 3, 40, 0.002)
    metrics.http("/tasks/submit", 201, 0.004)
    metrics.sources.workers = lambda: {"busy": 2, "idle": 14}
    metrics.sources.disk_free_bytes = lambda: 123
    metrics.sources.moves = lambda: {"copying": 3, "finishing": 0}
    metrics.sources.moves_waiting = lambda: {"waiting_for_turn": 5}
    metrics.sources.copy_bytes_left = lambda: 7_000
    metrics.sources.copied_bytes = lambda: 9_000
    metrics.sources.audit_lines = lambda: 30
    metrics.sources.audit_lines_lost = lambda: 2
    metrics.sources.paused_queues = lambda: ["mail"]
    metrics.sources.is_leader = lambda: True
    metrics.sources.is_ready = lambda: False
    metrics.sources.nodes = lambda: {"active": 2, "down": 1}
    metrics.sources.partitions_short = lambda: (64, 3)
    told = samples(metrics, {"mail": 7.5})
    assert told["taskqueue_commit_entries_sum",] == 3
    assert told["taskqueue_commit_rows_bucket", "le=64.0"] == 1
    assert told["taskqueue_wal_sync_seconds_bucket", "le=0.0025"] == 1
    assert told["taskqueue_http_request_duration_seconds_count", "code=201", "route=/tasks/submit"] == 1
    assert told["taskqueue_workers", "state=busy"] == 2
    assert (told["taskqueue_leader",], told["taskqueue_ready",]) == (1, 0)
    assert (told["taskqueue_nodes", "status=active"], told["taskqueue_nodes", "status=down"]) == (2, 1)
    assert told["taskqueue_partitions_under_replicated",] == 64
    assert told["taskqueue_partitions_offline",] == 3
    assert told["taskqueue_disk_free_bytes",] == 123
    assert told["taskqueue_moves", "stage=copying"] == 3
    assert told["taskqueue_moves", "stage=finishing"] == 0
    assert told["taskqueue_moves_waiting", "reason=waiting_for_turn"] == 5
    assert (told["taskqueue_copy_bytes_left",], told["taskqueue_copied_bytes_total",]) == (7_000, 9_000)
    assert (told["taskqueue_audit_lines_total",], told["taskqueue_audit_lines_lost_total",]) == (30, 2)
    assert told["taskqueue_queue_paused", "queue=mail"] == 1
    assert told["taskqueue_queue_oldest_ready_age_seconds", "queue=mail"] == 7.5
    assert ("process_cpu_seconds_total",) in told
    (info,) = [name for name in told if name[0] == "taskqueue_build_info"]
    assert {"node=node-1", "version=1.2.3"} < set(info)


def test_the_loop_s_lag_is_how_late_a_sample_comes(metrics: Metrics) -> None:
    clock = Clock()
    service = LoopMonitor(metrics, clock, sample_s=0.25)
    service.startService()
    clock.pump([0.25, 0.25, 0.75, 0.25])
    service.stopService()
    assert clock.getDelayedCalls() == []
    assert sum(metrics.reactor_delay_s.counts) == 4
    assert metrics.reactor_delay_s.total == pytest.approx(0.5)
