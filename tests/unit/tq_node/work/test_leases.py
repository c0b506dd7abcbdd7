"""Leases of worker processes, with real ones; the lock of the workers; and what happens when the node dies (F30, F40)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.unit.tq_node.work.conftest import Rig, asynchronous, gone, states, until
from tq_node import limits
from tq_node.facade import Completed, Lost, Released
from tq_node.work.lease import WorkersLock


async def expired(rig: Rig, task_type: str, payload: object = None) -> None:
    start_s = time.monotonic()
    _, outcome = await rig.run(task_type, payload)
    assert isinstance(outcome, Lost)
    assert time.monotonic() - start_s < 20


@asynchronous
@pytest.mark.parametrize(("task_type", "payload"), [("sleep", 60), ("spin", None), ("hold_gil", 0.9)])
async def test_without_renewal_the_kernel_ends_it(rigs: Any, task_type: str, payload: object) -> None:
    rig = rigs()
    rig.queue.granted_ms = 300
    await rig.run("echo")
    await expired(rig, task_type, payload)


@asynchronous
async def test_renewal_keeps_it_running(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASE_RENEW_MS", 50)
    rig = rigs()
    await rig.settled()
    rig.queue.granted_ms = 1_000
    _, outcome = await rig.run("sleep", 3.0)
    assert outcome == Completed(b'"slept"')
    assert len(rig.queue.lease_questions) > 10


@asynchronous
async def test_a_lease_is_over_with_its_task(rig: Rig) -> None:
    await rig.settled()
    rig.queue.granted_ms = 1_000
    _, outcome = await rig.run("print")
    assert isinstance(outcome, Completed)
    await deferLater(reactor, 1.2)
    assert int(outcome.result) in [process.pid for process in rig.worker.pool._all]


@asynchronous
async def test_a_process_stopped_beyond_its_lease_runs_no_further_instruction(rig: Rig, tmp_path: Path) -> None:
    """F30, F40: SIGSTOP past the lease, then SIGCONT; nothing of the handler happens after that."""
    await rig.settled()
    rig.queue.granted_ms = 2_000
    marks = tmp_path / "marks"
    claim = rig.queue.put("mark", str(marks))
    process = await rig.running(claim)
    await until(marks.exists, "the handler runs")
    os.kill(process.pid, signal.SIGSTOP)
    await until(lambda: states(process.pid) == {"T"}, "it has stopped")
    written = marks.stat().st_size
    await deferLater(reactor, 2.2)
    assert rig.queue.outcome_of(claim) is None
    assert marks.stat().st_size == written
    os.kill(process.pid, signal.SIGCONT)
    outcome = await rig.outcome(claim)
    assert isinstance(outcome, Lost)
    assert marks.stat().st_size == written


@asynchronous
async def test_renewals_that_are_not_read_end_in_a_kill(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stays stopped would keep its attempt for ever: the node believes only what is acknowledged."""
    monkeypatch.setattr(limits, "LEASE_RENEW_MS", 50)
    monkeypatch.setattr(limits, "SAFETY_NET_S", 0.1)
    monkeypatch.setattr("tq_node.work.pool._LEASE_SLACK_S", 0.2)
    rig = rigs()
    rig.queue.granted_ms = 300
    claim = rig.queue.put("listen")
    os.kill((await rig.running(claim)).pid, signal.SIGSTOP)
    outcome = await rig.outcome(claim)
    assert isinstance(outcome, Lost)


@asynchronous
async def test_nothing_is_started_without_a_lease(rig: Rig) -> None:
    rig.queue.granted_ms = 0
    assert (await rig.run("echo"))[1] == Released()
    assert (await rig.run("a_echo"))[1] == Released()


def test_the_lock_proves_that_nobody_else_is_there(tmp_path: Path) -> None:
    first, second = WorkersLock(tmp_path / "workers.lock"), WorkersLock(tmp_path / "workers.lock")
    assert first.prove_alone()
    assert first.prove_alone()
    assert not second.prove_alone()
    first.close()
    assert second.prove_alone()
    second.close()
    second.close()


NODE = """
import sys
from typing import cast
from twisted.internet import reactor
from tests.support.fake_queue import FakeQueue
from tq_node.work.lease import WorkersLock
from tq_node.work.process_environment import ProcessEnvironment
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings
from tq_node.work.worker import WorkerService

lock = WorkersLock(sys.argv[1])
assert lock.prove_alone()
queue = FakeQueue()
registry = Registry.load(["tests.unit.tq_node.work.sample_handlers"])
environment = ProcessEnvironment(lock_fd=lock.fd)
worker = WorkerService(queue, registry, WorkerSettings(environment=environment))
worker.startService()
for task_type, payload in [("mark", sys.argv[2]), ("grandchild", 3), ("sleep", 60), ("hold_gil", 2)]:
    queue.put(task_type, payload)
def ready():
    busy = [p for p in worker.pool._all if p.phase.value == "busy"]
    if len(busy) == 3 and worker.pool.idle >= 2:
        print(*[process.pid for process in worker.pool._all], flush=True)
    else:
        reactor.callLater(0.01, ready)
ready()
reactor.run()
"""


@asynchronous
async def test_the_death_of_the_node_ends_all_its_processes(tmp_path: Path) -> None:
    lock = WorkersLock(tmp_path / "workers.lock")
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(lock.path), str(tmp_path / "marks")], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    try:
        pids = [int(pid) for pid in node.stdout.readline().split()]
        assert len(pids) >= 5
        assert not lock.prove_alone()
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    await until(lambda: all(gone(pid) for pid in pids), "all are gone")
    # A process that a handler has left behind lives on for now: it does not hold the lock.
    assert lock.prove_alone()
    written = (tmp_path / "marks").stat().st_size
    await deferLater(reactor, 0.1)
    assert (tmp_path / "marks").stat().st_size == written
    lock.close()
