"""How fast the room is: ``python -m tests.unit.tq_node.work.measure``. Not a test; the queue is the fake one.

Prints tasks a second through WorkerService for handlers that do nothing, and the time from a wake to the finished task
on an idle node.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from tests.support.fake_queue import FakeQueue
from tq_node.facade import Completed, TaskQueue
from tq_node.work.registry import Registry
from tq_node.work.settings import WorkerSettings
from tq_node.work.worker import WorkerService

MODULES = ("tests.unit.tq_node.work.sample_handlers",)


async def rate(task_type: str, count: int, concurrency: int) -> None:
    queue = FakeQueue()
    worker = WorkerService(
        cast("TaskQueue", queue), Registry.load(MODULES), WorkerSettings(concurrency=concurrency, stop_timeout_s=1.0)
    )
    worker.startService()
    queue.wake_on_put = False
    await warm(queue, task_type, concurrency)
    for _ in range(count):
        queue.put(task_type)
    queue.finished.clear()
    start_s, cpu = time.perf_counter(), own_cpu_s()
    over: Deferred[None] = Deferred()
    queue.on_finish = lambda: over.callback(None) if len(queue.finished) == count else None
    worker.wake()
    await over
    took_s, cpu_s = time.perf_counter() - start_s, own_cpu_s() - cpu
    await worker.stopService()
    assert sum(isinstance(outcome, Completed) for _, outcome, _ in queue.finished) == count
    each_us = cpu_s / count * 1e6
    print(f"{task_type:8} {concurrency:3} slots: {count / took_s:9.0f} tasks/s, {each_us:5.1f} µs of CPU here a task")


async def warm(queue: FakeQueue, task_type: str, concurrency: int) -> None:
    for _ in range(concurrency * 20):
        queue.put(task_type)
    assert queue.worker is not None
    queue.worker.wake()
    await queue.when(lambda: len(queue.finished) == concurrency * 20)
    await deferLater(reactor, 0.3)


async def pick_up(task_type: str, count: int) -> None:
    queue = FakeQueue()
    worker = WorkerService(cast("TaskQueue", queue), Registry.load(MODULES), WorkerSettings(stop_timeout_s=1.0))
    worker.startService()
    await warm(queue, task_type, 1)
    times: list[float] = []
    for number in range(count):
        await deferLater(reactor, 0.01)
        start_s = time.perf_counter()
        queue.put(task_type)
        await queue.when(lambda number=number: len(queue.finished) == 21 + number)  # type: ignore[misc]
        times.append(time.perf_counter() - start_s)
    await worker.stopService()
    times.sort()
    print(
        f"{task_type:8} idle node: wake to finished {statistics.median(times) * 1e3:.2f} ms median, {times[-3] * 1e3:.2f} ms p98"
    )


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure() -> None:
    for _ in range(2):
        await rate("a_echo", 100_000, 16)
        await rate("echo", 40_000, 16)
        await rate("echo", 40_000, 2)
    await pick_up("a_echo", 100)
    await pick_up("echo", 100)


def main() -> None:
    def run() -> None:
        over: Any = ensureDeferred(measure())
        over.addErrback(lambda why: why.printTraceback())
        over.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(run)
    reactor.run()


if __name__ == "__main__":
    main()
