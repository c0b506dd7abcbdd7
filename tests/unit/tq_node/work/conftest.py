"""Worker services over the fake queue: with real worker processes, or on a clock in hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock, deferLater

from tests.support.fake_queue import FakeQueue
from tq_node.facade import Claim, Outcome, TaskQueue
from tq_node.work.handlers import RunIn
from tq_node.work.process import Phase, WorkerProcess
from tq_node.work.process_attempt import ProcessAttempt
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings
from tq_node.work.worker import WorkerService

DEADLINE_S = 30.0
Test = TypeVar("Test", bound=Callable[..., Any])
asynchronous = cast("Callable[[Test], Test]", pytest_twisted.ensureDeferred)
"""For tests that are coroutines and run in the reactor."""
SAMPLES = "tests.unit.tq_node.work.sample_handlers"


class Rig:
    """A started service, its queue, and waiting with a deadline."""

    def __init__(
        self, module: str = SAMPLES, *, reactor: Any = None, monotonic: Callable[[], float] = monotonic, **options: Any
    ) -> None:
        self.queue = FakeQueue()
        self.registry = Registry.load([module])
        settings = WorkerSettings(**{"stop_timeout_s": 0.0, "concurrency": 4} | options)
        self.worker = WorkerService(
            cast("TaskQueue", self.queue), self.registry, settings, reactor=reactor, monotonic=monotonic
        )

    def start(self) -> Rig:
        self.worker.startService()
        return self

    async def run(self, task_type: str, payload: object = None, **claim: Any) -> tuple[Claim, Outcome]:
        """Put one task and wait until it has ended."""
        put = self.queue.put(task_type, payload, **claim)
        return put, await self.outcome(put)

    async def running(self, claim: Claim) -> WorkerProcess:
        """Wait until a worker process has the task."""
        found: list[WorkerProcess] = []

        def there() -> bool:
            attempt = self.worker._attempts.get((claim.task_id, claim.token))
            if isinstance(attempt, ProcessAttempt) and attempt._process is not None:
                found.append(attempt._process)
            return bool(found)

        await until(there, f"{claim.task_id} runs")
        return found[0]

    async def settled(self) -> None:
        """Wait until as many processes as there should be are idle, and none is starting or dying."""
        pool = self.worker.pool
        await until(lambda: pool.idle == pool.processes >= pool._spares, "all processes are idle")

    async def outcome(self, claim: Claim) -> Outcome:
        await within(self.queue.when(lambda: self.queue.outcome_of(claim) is not None))
        outcome = self.queue.outcome_of(claim)
        assert outcome is not None
        return outcome


def within(deferred: Deferred[Any], seconds: float = DEADLINE_S) -> Deferred[Any]:
    return deferred.addTimeout(seconds, cast("Any", reactor))


async def until(reached: Any, what: str) -> None:
    """For what no event tells about, such as another process being gone."""
    for _ in range(int(DEADLINE_S / 0.01)):
        if reached():
            return
        await deferLater(cast("Any", reactor), 0.01)
    pytest.fail(f"still not: {what}")


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def states(pid: int) -> set[str]:
    """Of its threads, as ps shows them."""
    return {path.read_text().rsplit(")", 1)[1].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")}


def busy(rig: Rig) -> list[WorkerProcess]:
    return [process for process in rig.worker.pool._all if process.phase is Phase.BUSY]


@pytest.fixture
def rigs() -> Iterator[Any]:
    """Makes rigs with real worker processes and stops them at the end; nothing may be left of them."""
    made: list[Rig] = []

    def make(module: str = SAMPLES, **options: Any) -> Rig:
        made.append(Rig(module, **options).start())
        return made[-1]

    yield make
    for rig in made:
        pids = [process.pid for process in rig.worker.pool._all]
        if rig.worker.running:
            pytest_twisted.blockon(within(ensureDeferred(_stop(rig))))
        assert rig.worker.pool.processes == rig.worker.loops.processes == 0
        assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


async def _stop(rig: Rig) -> None:
    await rig.worker.stopService()


@pytest.fixture
def rig(rigs: Any) -> Any:
    return rigs()


class ClockRig(Rig):
    """On a clock in hand, for asynchronous handlers and dispatch; no worker process can be started."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        super().__init__(reactor=self.clock, monotonic=self.clock.seconds, **options)
        self.worker._registry = Registry(
            {name: handler for name, handler in self.registry._handlers.items() if handler.run is RunIn.REACTOR}, ()
        )

    def turn(self) -> None:
        """One turn of the reactor."""
        self.clock.advance(0)

    def put(self, task_type: str, payload: object = None, **claim: Any) -> Claim:
        put = self.queue.put(task_type, payload, **claim)
        self.turn()
        return put


@pytest.fixture
def clock_rig() -> Iterator[ClockRig]:
    from tests.unit.tq_node.work import sample_handlers

    sample_handlers.waiting.clear()
    rig = ClockRig()
    rig.start()
    rig.turn()
    yield rig
    if rig.worker.running:
        stopped = rig.worker.stopService()
        rig.queue.release_held()
        rig.clock.pump([1.0] * 20)
        assert stopped.called
    assert rig.clock.getDelayedCalls() == []
    sample_handlers.waiting.clear()
