"""How many worker processes there are, when one is replaced, and what happens when none can be had."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import time
from typing import Any, cast

import msgspec
import pytest
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from tests.unit.tq_node.work.conftest import Rig, asynchronous, busy, gone, states, until, within
from tq_node import limits
from tq_node.facade import Completed, Released


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
    await until(lambda: pool._failures.count >= 3, "it is counted")
    assert pool.started_total <= 8


@asynchronous
async def test_sigterm_to_the_control_group_leaves_the_end_to_the_node(rig: Rig) -> None:
    await rig.settled()
    pid = await pid_of(rig)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert await pid_of(rig) == pid


def break_starts(rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str) -> str:
    """From here on no process starts. Returns what the note says of it."""
    pool = rig.worker.pool
    if kind == "module":
        pool._spawner.start = msgspec.structs.replace(pool._spawner.start, modules=("no_such_module",))
        return "module no_such_module can't be imported"
    if kind == "slow":
        monkeypatch.setattr(limits, "CHILD_START_MS_MAX", 1)
        return "was not ready after"
    monkeypatch.setattr("sys.executable", "/no/such/python")
    return "can't be started: [Errno 2]"


@pytest.mark.parametrize("kind", ["module", "slow", "python"])
@asynchronous
async def test_where_no_process_starts_no_attempt_is_spent_and_nothing_is_claimed(
    rigs: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("tq_node.work.start_failures._BACKOFF_S", 0.05)
    rig = rigs()
    pool = rig.worker.pool
    await rig.settled()
    assert rig.worker.notes == ()
    start, python = pool._spawner.start, sys.executable
    with monkeypatch.context() as broken:
        # What the next processes need breaks in the meantime.
        says = break_starts(rig, broken, kind)
        for process in list(pool._all):
            process.kill()
        claims = [rig.queue.put("echo") for _ in range(2)]
        assert [await rig.outcome(claim) for claim in claims] == [Released(), Released()]
        await until(lambda: any(says in note.detail for note in rig.worker.notes), "it has given up")
        (note,) = rig.worker.notes
        assert note.code == "no_workers"
        assert "\n" not in note.detail
        assert rig.worker.slots_free == 0
        asked = len(rig.queue.claim_limits)
        waits = rig.queue.put("echo", 1)
        rig.worker._safety_net()
        for _ in range(3):
            await deferLater(cast("Any", reactor), 0.01)
        assert len(rig.queue.claim_limits) == asked
        assert pool.started_total < 20
    # And it comes back by itself, with all its slots once a process has been of use.
    pool._spawner.start = start
    assert sys.executable == python
    assert await rig.outcome(waits) == Completed(b"1")
    await until(lambda: rig.worker.slots_free == 4, "all slots are back")
    assert rig.worker.notes == ()


@asynchronous
async def test_what_runs_goes_on_where_no_further_process_starts(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tq_node.work.start_failures._BACKOFF_S", 0.01)
    rig = rigs(concurrency=3)
    await rig.settled()
    monkeypatch.setattr("sys.executable", "/no/such/python")
    long = rig.queue.put("listen")
    await rig.running(long)
    await until(lambda: rig.worker.pool._failures.count >= limits.CHILD_START_FAILURES_MAX, "it is known")
    assert rig.worker.pool.slots == limits.CHILD_SPARES
    assert rig.worker.notes == ()
    rig.worker.stop_attempt(long.task_id, long.token)
    assert (await rig.run("echo", 1))[1] == Completed(b"1")


@asynchronous
async def test_a_descriptor_above_the_limit_keeps_no_process_from_starting(rigs: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    high = fcntl.fcntl(0, fcntl.F_DUPFD, used + 60)
    os.set_inheritable(high, True)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, hard))
        rig = rigs(concurrency=1)
        assert (await rig.run("echo", 1))[1] == Completed(b"1")
        # One that comes later costs no more than a failed start.
        os.set_inheritable(high, True)
        for process in list(rig.worker.pool._all):
            process.kill()
        assert (await rig.run("echo", 2))[1] == Completed(b"2")
        await within(rig.worker.stopService())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(high)
