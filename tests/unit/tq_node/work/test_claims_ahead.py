"""Claims ahead of the slots, with real worker processes: that they are held while tasks are short, and harm nothing."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.unit.tq_node.work import sample_handlers
from tests.unit.tq_node.work.conftest import Rig, asynchronous, busy, until
from tq_node import limits
from tq_node.facade import AttemptFailed, Claim, Completed, Lost, Released

SLOTS = 2
AN_HOUR_S = 3_600.0


@pytest.fixture
def no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is left alone, however slow the machine is."""
    monkeypatch.setattr("tq_node.work.worker._CHECK_S", AN_HOUR_S)


async def commits_of(rig: Rig, count: int, task_type: str = "echo", payload: object = None) -> int:
    """Run so many tasks; the commits that it took. One commit is under way at a time and takes until nothing runs any more."""
    queue = rig.queue
    queue.hold_claims = queue.hold_finishes = True
    queue.wake_on_put = False
    before = len(queue.finished)
    for _ in range(count):
        queue.put(task_type, payload)
    rig.worker.wake()
    commits = 0
    while len(queue.finished) < before + count:
        await until(lambda: bool(queue._held), "something is to be committed")
        commits += 1
        queue.release_held()
        await until(
            lambda: not rig.worker._attempts and rig.worker._dispatch_call is None,
            "what was claimed has ended, and the worker has asked for more",
        )
    queue.hold_claims = queue.hold_finishes = False
    queue.release_held()
    return commits


async def primed(rigs: Any, **options: Any) -> Rig:
    """A rig that claims ahead, as many as it may."""
    rig: Rig = rigs(concurrency=SLOTS, **options)
    await until(lambda: rig.worker.pool.idle == SLOTS, "the processes are there")
    rig.queue.wake_on_put = False
    for _ in range(100):
        rig.worker.prefetch.claim_took(0.1)
        rig.worker.prefetch.task_took(0.0001)
    assert rig.worker.prefetch.claims == limits.CLAIMS_AHEAD_MAX
    assert rig.worker.prefetch.depth == limits.CHILD_AHEAD_MAX
    return rig


async def blocked(
    rig: Rig, behind: int, task_type: str = "begin", payload: object = None
) -> tuple[list[Claim], list[Claim]]:
    """Every process runs a long task, and so many are claimed behind those: (the long ones, the others)."""
    long = [rig.queue.put("listen") for _ in range(SLOTS)]
    others = [rig.queue.put(task_type, payload) for _ in range(behind)]
    rig.worker.wake()
    await until(lambda: len(busy(rig)) == SLOTS and not rig.queue.ready, "all is claimed")
    attempts = [rig.worker._attempts[claim.task_id, claim.token] for claim in long]
    await until(lambda: all(attempt.progress_buffer._progress for attempt in attempts), "the long ones have begun")
    return long, others


def stop(rig: Rig, claims: list[Claim]) -> None:
    for claim in claims:
        rig.worker.stop_attempt(claim.task_id, claim.token)


def begun(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


@asynchronous
async def test_short_tasks_share_commits(rigs: Any, no_look: None) -> None:
    rig = rigs(concurrency=SLOTS)
    await until(lambda: rig.worker.pool.idle == SLOTS, "the processes are there")
    commits = await commits_of(rig, 400)
    print(f"\n{commits} commits for 400 tasks in {SLOTS} processes")
    # Without claims ahead it is one for each two tasks.
    assert commits < 400 / SLOTS / 2
    assert [outcome for _, outcome, _ in rig.queue.finished] == [Completed(b"null")] * 400
    assert rig.worker.running_count == 0
    assert rig.worker.slots_free == SLOTS


@asynchronous
async def test_long_tasks_are_not_claimed_ahead(rigs: Any) -> None:
    """However long a commit takes."""
    rig = rigs(concurrency=SLOTS)
    await until(lambda: rig.worker.pool.idle == SLOTS, "the processes are there")
    seconds = limits.CLAIMS_AHEAD_WAIT_MS / 1000
    for _ in range(100):
        rig.worker.prefetch.claim_took(10.0)
        rig.worker.prefetch.task_took(seconds)
    assert await commits_of(rig, 4 * SLOTS, "sleep", seconds) == 4
    assert max(rig.queue.claim_limits) == SLOTS
    assert Released() not in [outcome for _, outcome, _ in rig.queue.finished]


@asynchronous
async def test_slots_are_told_without_what_is_ahead(rigs: Any, no_look: None, tmp_path: Path) -> None:
    rig = await primed(rigs)
    assert rig.worker.slots_free == SLOTS
    long, others = await blocked(rig, 40, payload=str(tmp_path / "begun"))
    assert len(rig.worker._attempts) == SLOTS + 40
    assert rig.worker.running_count == SLOTS
    assert rig.worker.slots_free == 0
    stop(rig, long)
    await until(lambda: len(rig.queue.finished) == SLOTS + 40, "all have ended")
    assert all(isinstance(rig.queue.outcome_of(claim), Completed) for claim in long + others)
    assert rig.worker.slots_free == SLOTS


@asynchronous
async def test_what_waits_behind_long_tasks_is_given_back(rigs: Any, tmp_path: Path) -> None:
    rig = await primed(rigs)
    long, others = await blocked(rig, 40, payload=str(tmp_path / "begun"))
    await until(lambda: len(rig.queue.finished) == 40, "they are given back")
    assert {rig.queue.outcome_of(claim) for claim in others} == {Released()}
    assert not any(isinstance(outcome, AttemptFailed) for _, outcome, _ in rig.queue.finished)
    assert not begun(tmp_path / "begun")
    assert rig.worker.prefetch.claims == 0
    # And nothing is claimed while those run.
    rig.queue.put("echo")
    rig.worker.wake()
    await deferLater(reactor, 0.05)
    assert len(rig.queue.ready) == 1
    assert [rig.queue.outcome_of(claim) for claim in long] == [None] * SLOTS
    stop(rig, long)
    await until(lambda: not rig.queue.ready, "there are slots again")


@asynchronous
async def test_what_lies_ready_behind_a_long_task_runs_in_another_process(
    rigs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLAIMS_AHEAD_WAIT_MS", AN_HOUR_S * 1000)
    rig = await primed(rigs)
    long = rig.queue.put("listen")
    others = [rig.queue.put("begin", str(tmp_path / "begun")) for _ in range(40)]
    rig.worker.wake()
    await until(lambda: len(rig.queue.finished) == 40, "all but the long one have ended")
    assert all(isinstance(rig.queue.outcome_of(claim), Completed) for claim in others)
    assert set(begun(tmp_path / "begun").values()) == {1}
    stop(rig, [long])
    assert await rig.outcome(long) == Completed(b'"stopped in order"')


@asynchronous
async def test_cancel_of_what_is_claimed_ahead(rigs: Any, no_look: None, tmp_path: Path) -> None:
    """It ends at once and never begins, wherever it waits, and nobody else is harmed."""
    rig = await primed(rigs)
    long, others = await blocked(rig, 40, payload=str(tmp_path / "begun"))
    assert [process.load > 1 for process in busy(rig)] != [False] * SLOTS, "some lie ready in a process"
    assert rig.worker.pool.waiting, "some wait for one"
    stop(rig, others[::2])
    for claim in others[::2]:
        outcome = rig.queue.outcome_of(claim)
        assert isinstance(outcome, AttemptFailed)
        assert outcome.error.type == "cancelled"
    assert [rig.queue.outcome_of(claim) for claim in long + others[1::2]] == [None] * (SLOTS + 20)
    stop(rig, long)
    await until(lambda: len(rig.queue.finished) == SLOTS + 40, "all have ended")
    assert begun(tmp_path / "begun") == Counter(claim.task_id for claim in others[1::2])
    assert [rig.queue.outcome_of(claim) for claim in long] == [Completed(b'"stopped in order"')] * SLOTS


@asynchronous
async def test_stop_gives_back_what_is_claimed_ahead(rigs: Any, no_look: None, tmp_path: Path) -> None:
    rig = await primed(rigs, stop_timeout_s=30.0)
    long, others = await blocked(rig, 40, payload=str(tmp_path / "begun"))
    stopped = rig.worker.stopService()
    assert {rig.queue.outcome_of(claim) for claim in others} == {Released()}
    assert [rig.queue.outcome_of(claim) for claim in long] == [None] * SLOTS, "what runs has its time"
    stop(rig, long)
    await stopped
    assert [rig.queue.outcome_of(claim) for claim in long] == [Completed(b'"stopped in order"')] * SLOTS
    assert not begun(tmp_path / "begun")


@asynchronous
async def test_a_lease_that_ends_drops_what_is_claimed_ahead(
    rigs: Any, no_look: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEASE_RENEW_MS", 50)
    rig = await primed(rigs)
    rig.queue.granted_ms = 1_000
    long, others = await blocked(rig, 40, payload=str(tmp_path / "begun"))
    rig.queue.granted_ms = 0
    await until(lambda: len(rig.queue.finished) == SLOTS + 40, "all are lost")
    assert {type(rig.queue.outcome_of(claim)) for claim in long + others} == {Lost}
    assert not begun(tmp_path / "begun")


@asynchronous
async def test_the_death_of_a_process_costs_only_what_runs_in_it(rigs: Any, no_look: None, tmp_path: Path) -> None:
    rig = await primed(rigs)
    long, others = await blocked(rig, 40, payload=str(tmp_path / "begun"))
    for process in busy(rig):
        os.kill(process.pid, signal.SIGKILL)
    await until(lambda: len(rig.queue.finished) == SLOTS + 40, "all have ended")
    for claim in long:
        outcome = rig.queue.outcome_of(claim)
        assert isinstance(outcome, AttemptFailed)
        assert outcome.error.type == "worker_died"
    assert all(isinstance(rig.queue.outcome_of(claim), Completed) for claim in others)
    assert set(begun(tmp_path / "begun").values()) == {1}


@asynchronous
@pytest.mark.parametrize("task_type", ["exit", "os_exit", "segfault"])
async def test_tasks_that_end_their_process_among_others(rigs: Any, task_type: str, tmp_path: Path) -> None:
    rig = await primed(rigs)
    claims = [rig.queue.put("begin", str(tmp_path / "begun")) for _ in range(20)]
    bad = [rig.queue.put(task_type, 3) for _ in range(2)]
    claims += [rig.queue.put("begin", str(tmp_path / "begun")) for _ in range(20)]
    rig.worker.wake()
    await until(lambda: len(rig.queue.finished) >= 42, "all have ended")
    for claim in bad:
        outcome = rig.queue.outcome_of(claim)
        assert isinstance(outcome, AttemptFailed)
        assert outcome.error.type == "worker_died"
    released = [claim for claim in claims if rig.queue.outcome_of(claim) == Released()]
    ended = [claim for claim in claims if isinstance(rig.queue.outcome_of(claim), Completed)]
    assert len(released) + len(ended) == 40
    assert begun(tmp_path / "begun") == Counter(claim.task_id for claim in ended)


@asynchronous
async def test_a_timeout_counts_from_the_start_and_kills_nothing_else(rigs: Any, no_look: None, tmp_path: Path) -> None:
    rig = await primed(rigs)
    first = [rig.queue.put("sleep", 2.5) for _ in range(SLOTS)]
    patient = [rig.queue.put("echo", number, timeout_ms=2_000) for number in range(4)]
    timed = [rig.queue.put("spin", timeout_ms=400)]
    others = [rig.queue.put("begin", str(tmp_path / "begun"), timeout_ms=30_000) for _ in range(40)]
    rig.worker.wake()
    await until(lambda: len(rig.queue.finished) == SLOTS + 45, "all have ended")
    assert [rig.queue.outcome_of(claim) for claim in first] == [Completed(b'"slept"')] * SLOTS
    assert all(isinstance(rig.queue.outcome_of(claim), Completed) for claim in patient), (
        "they had to wait longer than that"
    )
    outcome = rig.queue.outcome_of(timed[0])
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "timeout"
    assert all(isinstance(rig.queue.outcome_of(claim), Completed) for claim in others)
    assert set(begun(tmp_path / "begun").values()) == {1}


@asynchronous
@pytest.mark.parametrize(("quiet_tasks", "every"), [(64, 71), (0, 7)])
async def test_each_task_has_its_own_lines_when_many_lie_ready(
    rigs: Any, no_look: None, monkeypatch: pytest.MonkeyPatch, quiet_tasks: int, every: int
) -> None:
    """Also those that were not printed through Python, and those behind a process's first word."""
    monkeypatch.setattr("tq_node.work.process._NO_QUEUE_TASKS", quiet_tasks)
    rig = await primed(rigs)
    printing: dict[str, list[str]] = {}
    for number in range(600):
        how = {0: "python", 1: "fd", 2: "system"}.get(number % every)
        claim = rig.queue.put("print_some", None if how is None else (how, f"of {number}"))
        printing[claim.task_id] = [] if how is None else [f"of {number}"]
    rig.worker.wake()
    await until(lambda: len(rig.queue.finished) == 600, "all have ended")
    for claim, outcome, _ in rig.queue.finished:
        assert outcome == Completed(b"null")
        assert rig.queue.lines_of(claim) == printing[claim.task_id]


@asynchronous
async def test_a_long_payload_among_short_ones(rigs: Any, no_look: None) -> None:
    rig = await primed(rigs)
    payloads: list[object] = ["x" * 300_000 if number % 5 == 0 else number for number in range(40)]
    claims = [rig.queue.put("echo", payload) for payload in payloads]
    rig.worker.wake()
    await until(lambda: len(rig.queue.finished) == 40, "all have ended")
    for claim, payload in zip(claims, payloads, strict=True):
        expected = f'"{payload}"' if isinstance(payload, str) else f"{payload}"
        assert rig.queue.outcome_of(claim) == Completed(expected.encode())


@asynchronous
async def test_async_tasks_that_come_among_those_ahead_stand_in_line(rigs: Any, no_look: None) -> None:
    sample_handlers.waiting.clear()
    rig = await primed(rigs)
    claims = [rig.queue.put("a_wait") for _ in range(6)] + [rig.queue.put("echo", 1) for _ in range(6)]
    rig.worker.wake()
    await until(lambda: not rig.queue.ready, "all are claimed")
    assert rig.worker.prefetch.claims == 0
    for started in range(SLOTS, 7):
        assert len(sample_handlers.waiting) == min(started, 6)
        assert not busy(rig)
        sample_handlers.waiting[started - SLOTS].callback(started)
    sample_handlers.waiting[5].callback(None)
    await until(lambda: len(rig.queue.finished) == 12, "all have ended")
    assert all(isinstance(rig.queue.outcome_of(claim), Completed) for claim in claims)
    sample_handlers.waiting.clear()


@asynchronous
async def test_many_in_line_that_end_at_once(rigs: Any, no_look: None) -> None:
    rig = await primed(rigs)
    claims = [rig.queue.put("a_wait") for _ in range(SLOTS)] + [rig.queue.put("a_echo", 1) for _ in range(200)]
    rig.worker.wake()
    await until(lambda: not rig.queue.ready, "all are claimed")
    assert not rig.queue.finished
    stop(rig, claims[:1])
    assert [rig.queue.outcome_of(claim) for claim in claims[SLOTS:]] == [Completed(b"1")] * 200
    stop(rig, claims[:SLOTS])
    sample_handlers.waiting.clear()


@asynchronous
async def test_where_no_process_can_be_had_what_is_ahead_is_given_back(
    rigs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not failed, which would cost each of them an attempt."""
    rig = await primed(rigs)
    monkeypatch.setattr("tq_node.work.start_failures._BACKOFF_S", AN_HOUR_S)
    monkeypatch.setattr("tq_node.work.start_failures._BACKOFF_S_MAX", AN_HOUR_S)
    monkeypatch.setattr("sys.executable", "/no/such/python")
    for process in list(rig.worker.pool._all):
        process.kill()
    claims = [rig.queue.put("echo") for _ in range(40)]
    rig.worker.wake()
    await until(lambda: len(rig.queue.finished) >= 40 - SLOTS, "most have ended")
    outcomes = [rig.queue.outcome_of(claim) for claim in claims]
    assert sum(isinstance(outcome, AttemptFailed) for outcome in outcomes) <= SLOTS
    assert sum(outcome == Released() for outcome in outcomes) >= 40 - 2 * SLOTS
