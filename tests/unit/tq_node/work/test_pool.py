"""How many worker processes there are, when one is replaced, and what happens when none can be had."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.unit.tq_node.work.conftest import Rig, busy, until, within
from tq_node import limits
from tq_node.facade import AttemptFailed, Completed

asynchronous = pytest_twisted.ensureDeferred


async def pid_of(rig: Rig) -> int:
    _, outcome = await rig.run("print")
    assert isinstance(outcome, Completed)
    return int(outcome.result)


@asynchronous
async def test_spares_are_warm_before_any_task(rig: Rig) -> None:
    await until(lambda: rig.worker.pool.idle == limits.CHILD_SPARES, "the spares are idle")
    assert rig.worker.pool.processes == limits.CHILD_SPARES


@asynchronous
async def test_it_grows_to_the_concurrency_and_shrinks_again(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs(concurrency=6)
    claims = [rig.queue.put("listen") for _ in range(6)]
    await until(lambda: len(busy(rig)) == 6, "all six run")
    assert rig.worker.pool.processes == 6
    for claim in claims:
        rig.worker.stop_attempt(claim.task_id, claim.token)
    await gatherResults([ensureDeferred(rig.outcome(claim)) for claim in claims])
    monkeypatch.setattr(limits, "CHILD_IDLE_S_MAX", -1.0)
    rig.worker.pool.sweep()
    await until(lambda: rig.worker.pool.processes == limits.CHILD_SPARES, "it has shrunk")


@asynchronous
async def test_a_process_is_replaced_after_so_many_tasks(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHILD_TASKS_MAX", 2)
    rig = rigs(concurrency=1)
    pids = [await pid_of(rig) for _ in range(5)]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3
    await until(lambda: rig.worker.pool.processes <= 2, "the old ones are gone")


@asynchronous
async def test_an_idle_process_that_is_killed_is_replaced(rig: Rig) -> None:
    pid = await pid_of(rig)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pid not in [process.pid for process in rig.worker.pool._all], "it is gone")
    await until(lambda: rig.worker.pool.idle == limits.CHILD_SPARES, "it is replaced")
    assert await pid_of(rig) != pid


@asynchronous
async def test_sigterm_to_the_control_group_leaves_the_end_to_the_node(rig: Rig) -> None:
    pid = await pid_of(rig)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert await pid_of(rig) == pid


@asynchronous
async def test_a_module_that_no_longer_loads_fails_the_attempts_and_does_not_spin(
    rigs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tq_node.work.pool._BACKOFF_S", 0.05)
    rig = rigs()
    pool = rig.worker.pool
    await until(lambda: pool.idle == limits.CHILD_SPARES, "the spares are idle")
    # What the next processes load breaks in the meantime.
    pool._start = msgspec.structs.replace(pool._start, modules=("no_such_module",))
    for process in list(pool._all):
        process.kill()
    outcomes = [(await rig.run("echo"))[1] for _ in range(3)]
    for outcome in outcomes:
        assert isinstance(outcome, AttemptFailed)
        assert outcome.error.type == "worker_start_failed"
        assert "module no_such_module can't be imported" in outcome.error.message
        assert "\n" not in outcome.error.message
    assert pool.started_total < 20
    # And it comes back by itself.
    pool._start = msgspec.structs.replace(pool._start, modules=rig.registry.modules)
    await until(lambda: pool.idle == limits.CHILD_SPARES, "it works again")
    assert (await rig.run("echo", 1))[1] == Completed(b"1")


@asynchronous
async def test_a_process_that_never_gets_ready_is_given_up(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHILD_START_MS_MAX", 1)
    rig = rigs()
    _, outcome = await rig.run("echo")
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "worker_start_failed"
    assert "was not ready after" in outcome.error.message
    await within(rig.worker.stopService())


@asynchronous
async def test_processes_that_cannot_be_started_at_all(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs(concurrency=2)
    await until(lambda: rig.worker.pool.idle == 2, "the spares are idle")
    monkeypatch.setattr("sys.executable", "/no/such/python")
    for process in list(rig.worker.pool._all):
        process.kill()
    _, outcome = await rig.run("echo")
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "worker_start_failed"
