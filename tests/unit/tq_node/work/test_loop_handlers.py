"""``async def`` handlers on the event loops of real worker processes."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import gatherResults

from tests.unit.tq_node.work.conftest import Rig, asynchronous, gone, until, within
from tq_node.facade import AttemptFailed, Completed, Lost, Outcome, Released
from tq_node.work.loop_process import LoopProcess
from tq_node.work.process import Phase

MODULE = "tests.unit.tq_node.work.loop_handlers"


@pytest.fixture
def rig(rigs: Any) -> Any:
    return rigs(MODULE, concurrency=8)


def failed(outcome: Outcome) -> AttemptFailed:
    assert isinstance(outcome, AttemptFailed), outcome
    return outcome


async def loop_of(rig: Rig) -> LoopProcess:
    """The process, once it is ready."""
    await until(lambda: any(one.phase is Phase.BUSY for one in rig.worker.loops._all), "a process is ready")
    return next(one for one in rig.worker.loops._all if one.phase is Phase.BUSY)


def lines(rig: Rig, task_id: str) -> list[str]:
    noted = [notes for claim, _, notes in rig.queue.finished if claim.task_id == task_id and notes is not None]
    noted = [notes for claim, notes in rig.queue.noted if claim.task_id == task_id] + noted
    return [line.line for notes in noted for line in notes.lines]


@asynchronous
async def test_the_result_is_compact_json(rig: Rig) -> None:
    for value in (None, 1.5, [1, {"a": [None]}], "x" * 200_000):
        _, outcome = await rig.run("l_echo", value)
        assert isinstance(outcome, Completed)
        assert msgspec.json.decode(outcome.result) == value


@asynchronous
async def test_the_context_says_what_the_claim_says(rig: Rig) -> None:
    claim, outcome = await rig.run("l_about", timeout_ms=5_000, attempt=2, queue="mail")
    assert outcome == Completed(msgspec.json.encode([claim.task_id, "l_about", "mail", 2, True]))


@asynchronous
async def test_a_hundred_that_sleep_a_second_end_together_in_one_process(rigs: Any) -> None:
    rig = rigs(MODULE, concurrency=100)
    rig.worker.loops._most = 1
    await loop_of(rig)
    began_s = time.monotonic()
    claims = [rig.queue.put("l_sleep", 1.0) for _ in range(100)]
    await within(rig.queue.when(lambda: len(rig.queue.finished) == 100))
    took_s = time.monotonic() - began_s
    outcomes = {rig.queue.outcome_of(claim) for claim in claims}
    assert len(outcomes) == 1, "one process has run them all"
    assert 1.0 <= took_s < 1.3


@asynchronous
async def test_another_process_takes_part_where_one_has_enough_to_do(rigs: Any) -> None:
    rig = rigs(MODULE, concurrency=64)
    rig.worker.loops._most = 2
    for _ in range(64):
        rig.queue.put("l_sleep", 1.0)
    await until(lambda: rig.worker.loops.processes == 2, "two processes")
    await within(rig.queue.when(lambda: len(rig.queue.finished) == 64))


@asynchronous
async def test_what_each_prints_and_logs_is_its_own(rig: Rig) -> None:
    claims = {name: rig.queue.put("l_say", name) for name in ("one", "two", "three")}
    await gatherResults([within(rig.queue.when(lambda: len(rig.queue.finished) == 3))])
    for name, claim in claims.items():
        said = ["printed by", "logged by", "in a thread of", "warned by"]
        assert lines(rig, claim.task_id) == [f"{words} {name}" for words in said]


@asynchronous
async def test_context_variables_of_one_are_not_those_of_another(rig: Rig) -> None:
    for name in ("one", "two"):
        _, outcome = await rig.run("l_variable", name)
        assert outcome == Completed(msgspec.json.encode(f"nothing {name}"))


@asynchronous
async def test_a_cancelled_one_gets_a_cancelled_error_and_the_others_go_on(rig: Rig) -> None:
    beside = rig.queue.put("l_sleep", 3.0)
    claim = rig.queue.put("l_cancelled")
    await within(rig.queue.when(lambda: lines(rig, claim.task_id) == ["begun"]))
    rig.worker.stop_attempt(claim.task_id, claim.token)
    outcome = failed(await rig.outcome(claim))
    assert outcome.error.type == "cancelled"
    assert lines(rig, claim.task_id) == ["begun", "cancelled: True"]
    assert isinstance(await rig.outcome(beside), Completed)


@asynchronous
async def test_a_timeout_cancels(rig: Rig) -> None:
    _, outcome = await rig.run("l_cancelled", timeout_ms=200)
    assert failed(outcome).error.type == "timeout"


@asynchronous
async def test_one_that_does_not_end_costs_its_process_and_the_others_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tq_node.work.loop_attempt.CANCEL_GRACE_S", 0.3)
    beside = rig.queue.put("l_sleep", 30.0)
    claim = rig.queue.put("l_stubborn")
    process = await loop_of(rig)
    await within(rig.queue.when(lambda: lines(rig, claim.task_id) == ["begun"]))
    rig.worker.stop_attempt(claim.task_id, claim.token)
    assert failed(await rig.outcome(claim)).error.type == "cancelled"
    assert await rig.outcome(beside) == Released()
    assert gone(process.pid)
    _, after = await rig.run("l_echo", "still here")
    assert after == Completed(b'"still here"')


@asynchronous
async def test_a_loop_that_is_blocked_ends_with_its_lease(rig: Rig) -> None:
    process = await loop_of(rig)
    rig.queue.granted_ms = 1_500
    began_s = time.monotonic()
    _, outcome = await rig.run("l_block", 60.0)
    assert isinstance(outcome, Lost)
    assert 1.0 < time.monotonic() - began_s < 10
    assert gone(process.pid)


@asynchronous
async def test_one_whose_lease_is_not_renewed_is_cancelled_before_the_kernel_kills_all(rig: Rig) -> None:
    process = await loop_of(rig)
    beside = rig.queue.put("l_sleep", 2.5)
    await until(lambda: process.load == 1, "it runs")
    rig.queue.granted_ms = 2_000
    claim = rig.queue.put("l_cancelled")
    await until(lambda: process.load == 2, "both run")
    rig.queue.granted_ms = 14_000
    assert isinstance(await rig.outcome(claim), Lost)
    assert isinstance(await rig.outcome(beside), Completed)
    assert not gone(process.pid)


@asynchronous
async def test_how_it_fails(rig: Rig) -> None:
    _, outcome = await rig.run("l_raise", "value")
    error = failed(outcome).error
    assert (error.type, error.message) == ("ValueError", "bad")
    assert error.traceback is not None
    assert "in raises" in error.traceback
    assert "loop_child" not in error.traceback
    _, outcome = await rig.run("l_raise", "Retry")
    assert failed(outcome).retry_in_ms == 7_000
    _, outcome = await rig.run("l_raise", "Reject")
    assert failed(outcome).final
    _, outcome = await rig.run("l_result")
    assert failed(outcome).error.type == "result_not_json"
    _, outcome = await rig.run("l_raise", "exit")
    assert failed(outcome).error.type == "worker_died"
    _, outcome = await rig.run("l_echo", 1)
    assert outcome == Completed(b"1")


@asynchronous
async def test_a_process_that_dies_fails_what_ran_in_it(rig: Rig) -> None:
    process = await loop_of(rig)
    _, outcome = await rig.run("l_die")
    error = failed(outcome).error
    assert error.type == "worker_died"
    assert f"{process.pid} was killed by SIGKILL" in error.message


@asynchronous
async def test_a_deferred_there_and_a_future_in_the_reactor_name_the_other(rig: Rig) -> None:
    _, outcome = await rig.run("l_deferred")
    assert failed(outcome).error.message == (
        "a handler with run='asyncio' can't await a Deferred: say run='reactor' for that"
    )
    _, outcome = await rig.run("l_reactor")
    assert "run='asyncio'" in failed(outcome).error.message


@asynchronous
async def test_a_stop_releases_what_does_not_end_in_time(rigs: Any) -> None:
    rig = rigs(MODULE, concurrency=4, stop_timeout_s=0.2)
    claim = rig.queue.put("l_sleep", 60.0)
    process = await loop_of(rig)
    await until(lambda: process.load == 1, "it runs")
    await rig.worker.stopService()
    assert rig.queue.outcome_of(claim) == Released()
    assert not os.path.exists(f"/proc/{process.pid}")
