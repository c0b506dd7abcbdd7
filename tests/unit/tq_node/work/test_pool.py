"""How many worker processes there are, when one is replaced, and what happens when none can be had."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.unit.tq_node.work.conftest import Rig, asynchronous, busy, gone, states, until, within
from tq_node import limits
from tq_node.facade import AttemptFailed, Completed


async def pid_of(rig: Rig) -> int:
    _, outcome = await rig.run("print")
    assert isinstance(outcome, Completed)
    return int(outcome.result)


@asynchronous
async def test_spares_are_warm_before_any_task(rig: Rig) -> None:
    await rig.settled()
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
    await until(lambda: rig.worker.pool.idle == 6, "all are idle")
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
    await rig.settled()
    assert await pid_of(rig) != pid


@asynchronous
async def test_a_process_that_died_before_its_task_reached_it_costs_no_attempt(rig: Rig) -> None:
    pids = {await pid_of(rig) for _ in range(3)}
    await rig.settled()
    # All dead, and the reactor has had no turn to hear of it.
    for process in rig.worker.pool._all:
        os.kill(process.pid, signal.SIGKILL)
    while not all(gone(process.pid) for process in rig.worker.pool._all):
        time.sleep(0.001)
    assert rig.worker.pool.idle >= limits.CHILD_SPARES
    assert await pid_of(rig) not in pids


@asynchronous
async def test_a_task_that_was_sent_and_not_read_costs_no_attempt_either(rig: Rig) -> None:
    await rig.settled()
    stopped = list(rig.worker.pool._all)
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
        await until(lambda process=process: states(process.pid) == {"T"}, "it has stopped")
    claim = rig.queue.put("about")
    process = await rig.running(claim)
    assert process in stopped
    for other in stopped:
        os.kill(other.pid, signal.SIGKILL if other is process else signal.SIGCONT)
    assert isinstance(await rig.outcome(claim), Completed)


@asynchronous
async def test_one_that_is_noisy_while_idle_is_replaced(rig: Rig) -> None:
    _, outcome = await rig.run("noise_after")
    assert isinstance(outcome, Completed)
    pid = int(outcome.result)
    await until(lambda: gone(pid), "it is killed")
    assert (await rig.run("echo", 1))[1] == Completed(b"1")


@asynchronous
async def test_processes_that_die_unused_are_not_replaced_without_end(
    rigs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs()
    pool = rig.worker.pool
    for _ in range(3):
        await until(lambda: pool.idle > 0, "one is idle")
        for process in list(pool._all):
            process.kill()
        await until(lambda: pool.processes == 0 or pool.idle == 0, "none is")
    await until(lambda: pool._failures >= 3, "it is counted")
    assert pool.started_total <= 8


@asynchronous
async def test_sigterm_to_the_control_group_leaves_the_end_to_the_node(rig: Rig) -> None:
    await rig.settled()
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
    await rig.settled()
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
    await rig.settled()
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
    await rig.settled()
    monkeypatch.setattr("sys.executable", "/no/such/python")
    for process in list(rig.worker.pool._all):
        process.kill()
    _, outcome = await rig.run("echo")
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "worker_start_failed"
