"""What is counted, and how it is told."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from tq_node.observe.exposition import Exposition
from tq_node.observe.loop_monitor import LoopMonitor
from tq_node.observe.metrics import QUEUE_LABELS_MAX, TYPE_LABELS_MAX, Metrics
from tq_node.types import AttemptRecord, Backoff, State, TaskId, TaskRow, TaskSpec, Transition

SECOND_US = 1_000_000


def row_of(state: State, *, queue: str = "default", task_type: str = "email", **fields: Any) -> TaskRow:
    spec = TaskSpec(TaskId("t"), task_type, b"1", queue, 5, 3, None, Backoff(), None, 0, b"")
    return TaskRow(spec, 0, 1, state, fields.pop("run_at_us", 0), **fields)


def change(old: State | None, row: TaskRow, at_us: int = 0) -> tuple[Transition, TaskRow]:
    return Transition(row.id, row.spec.type, row.spec.queue, old, row.state, row.attempt, 0, at_us), row


def samples(metrics: Metrics, ages: dict[str, float] | None = None) -> dict[tuple[str, ...], float]:
    page, _ = Exposition(metrics).render("", ages or {})
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3", node="node-1")


def test_a_task_s_life(metrics: Metrics) -> None:
    failed = AttemptRecord(1, "node-1", 2 * SECOND_US, 5 * SECOND_US, "failed")
    done = AttemptRecord(2, "node-1", 9 * SECOND_US, 10 * SECOND_US, "completed")
    metrics.transition(*change(None, row_of(State.PENDING)))
    metrics.transition(*change(State.PENDING, row_of(State.PROCESSING, run_at_us=0), 2 * SECOND_US))
    metrics.transition(*change(State.PROCESSING, row_of(State.SCHEDULED, attempts=(failed,))))
    metrics.transition(*change(State.SCHEDULED, row_of(State.PENDING, attempts=(failed,))))
    metrics.transition(*change(State.PENDING, row_of(State.PROCESSING, run_at_us=9 * SECOND_US), 9 * SECOND_US))
    metrics.transition(*change(State.PROCESSING, row_of(State.COMPLETED, attempts=(failed, done))))
    told = samples(metrics)
    pair = ("queue=default", "type=email")
    assert told["taskqueue_tasks_submitted_total", *pair] == 1
    assert told["taskqueue_attempts_total", "outcome=failed", *pair] == 1
    assert told["taskqueue_attempts_total", "outcome=completed", *pair] == 1
    assert told["taskqueue_retries_total", *pair] == 1
    assert told["taskqueue_tasks_finished_total", "outcome=completed", *pair] == 1
    assert told["taskqueue_tasks_finished_total", "outcome=failed", *pair] == 0
    assert told["taskqueue_task_wait_seconds_count", *pair] == 2
    assert told["taskqueue_task_wait_seconds_sum", *pair] == 2.0
    assert told["taskqueue_task_run_seconds_sum", *pair] == 4.0
    assert told["taskqueue_task_run_seconds_bucket", "le=1.0", *pair] == 1
    assert told["taskqueue_task_run_seconds_bucket", "le=+Inf", *pair] == 2
    assert told["taskqueue_tasks", "queue=default", "state=completed"] == 1
    assert told["taskqueue_tasks", "queue=default", "state=pending"] == 0


def test_dead_letters_lost_leases_and_cancels(metrics: Metrics) -> None:
    lost = AttemptRecord(1, "node-1", 0, 1, "lost")
    metrics.transition(*change(None, row_of(State.PENDING)))
    metrics.transition(*change(State.PENDING, row_of(State.PROCESSING)))
    metrics.transition(*change(State.PROCESSING, row_of(State.FAILED, attempts=(lost,))))
    metrics.transition(*change(None, row_of(State.PENDING)))
    metrics.transition(*change(State.PENDING, row_of(State.CANCELLED)))
    told = samples(metrics)
    assert told["taskqueue_tasks_dead", "queue=default"] == 1
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


def test_rows_found_at_start_and_purged(metrics: Metrics) -> None:
    metrics.adjust_tasks("mail", State.FAILED, 3)
    metrics.adjust_tasks("mail", State.FAILED, -1)
    assert samples(metrics)["taskqueue_tasks_dead", "queue=mail"] == 2


def test_labels_are_bounded_and_sums_stay_right(metrics: Metrics) -> None:
    count = QUEUE_LABELS_MAX + 50
    for number in range(count):
        row = row_of(State.PENDING, queue=f"q{number}", task_type=f"t{number}")
        metrics.transition(*change(None, row))
        metrics.transition(*change(State.PENDING, row_of(State.CANCELLED, queue=f"q{number}", task_type=f"t{number}")))
    assert len(metrics.tasks) <= QUEUE_LABELS_MAX + 1
    assert len({task_type for _, task_type in metrics.pairs}) <= TYPE_LABELS_MAX + 1
    assert sum(pair.submitted for pair in metrics.pairs.values()) == count
    assert sum(states[State.CANCELLED] for states in metrics.tasks.values()) == count
    assert all(states[State.PENDING] == 0 for states in metrics.tasks.values())


def test_the_node_s_own_numbers(metrics: Metrics) -> None:
    metrics.committed(1, 3, 40, 0.002)
    metrics.http("/tasks/submit", 201, 0.004)
    metrics.sources.workers = lambda: {"busy": 2, "idle": 14}
    metrics.sources.disk_free_bytes = lambda: 123
    metrics.sources.moves = lambda: {"copying": 3, "finishing": 0}
    metrics.sources.moves_waiting = lambda: {"waiting_for_turn": 5}
    metrics.sources.copy_bytes_left = lambda: 7_000
    metrics.sources.copied_bytes = lambda: 9_000
    metrics.sources.paused_queues = lambda: ["mail"]
    told = samples(metrics, {"mail": 7.5})
    assert told["taskqueue_commit_entries_sum",] == 3
    assert told["taskqueue_commit_rows_bucket", "le=64.0"] == 1
    assert told["taskqueue_wal_sync_seconds_bucket", "le=0.0025"] == 1
    assert told["taskqueue_http_request_duration_seconds_count", "code=201", "route=/tasks/submit"] == 1
    assert told["taskqueue_workers", "state=busy"] == 2
    assert told["taskqueue_disk_free_bytes",] == 123
    assert told["taskqueue_moves", "stage=copying"] == 3
    assert told["taskqueue_moves", "stage=finishing"] == 0
    assert told["taskqueue_moves_waiting", "reason=waiting_for_turn"] == 5
    assert (told["taskqueue_copy_bytes_left",], told["taskqueue_copied_bytes_total",]) == (7_000, 9_000)
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
    stopped: list[object] = []
    service.stopService().addCallback(stopped.append)
    assert len(stopped) == 1
    assert clock.getDelayedCalls() == []
    assert sum(metrics.reactor_delay_s.counts) == 4
    assert metrics.reactor_delay_s.total == pytest.approx(0.5)
