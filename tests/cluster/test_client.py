"""The client and three nodes, one of which dies: each submit is heard once, and is there once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from tests.cluster.clusters import Cluster
from tests.support.harness import until
from tq_node.client import AsyncQueue, AsyncTask, Queue

pytestmark = pytest.mark.cluster
DEADLINE_S = 60.0
"""For a machine that has much else to do: a failover takes a fraction of a second."""
PAUSED = "never-runs"
SUBMITTERS = 24
BEFORE, AFTER = 200, 600
"""Submits that are answered before the kill, and in all before it ends."""


def addresses(cluster: Cluster) -> str:
    return "localhost:" + ",".join(str(port) for port in cluster.ports.values())


def there(queue: Queue) -> Counter[str]:
    return Counter(task.id for task in queue.list(queue=PAUSED))


@pytest.mark.parametrize("batching", [True, pytest.param(False, marks=pytest.mark.long)], ids=["batches", "one by one"])
def test_kill_nine_during_submits_from_asyncio(cluster: Cluster, batching: bool) -> None:
    tasks: list[AsyncTask] = []
    names: set[str] = set()

    async def submitter(queue: AsyncQueue, number: int) -> None:
        serial = 0
        while len(tasks) < AFTER:
            serial += 1
            # Half of them under names of their own: the client's ids are not needed for safety, only some id.
            own = f"own-{batching}-{number}-{serial}" if number % 2 else None
            task = await queue.submit("email", [number, serial], id=own, queue=PAUSED)
            assert own in (None, task.id)
            tasks.append(task)
            names.add(f"{number} {serial}")

    async def story() -> None:
        async with AsyncQueue(addresses(cluster), deadline=DEADLINE_S, batching=batching) as queue:
            await queue.pause(PAUSED)
            async with asyncio.TaskGroup() as group:
                for number in range(SUBMITTERS):
                    group.create_task(submitter(queue, number))
                while len(tasks) < BEFORE:
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(cluster[cluster.leader()].kill9)
            async with asyncio.timeout(DEADLINE_S):
                stats = await queue.stats(deadline=DEADLINE_S)
            assert stats.total == len(tasks)

    asyncio.run(story())
    assert len(cluster.running) == 2
    heard = Counter(task.id for task in tasks)
    assert len(heard) == len(tasks) == len(names) >= AFTER
    with Queue(addresses(cluster), deadline=DEADLINE_S) as queue:
        assert there(queue) == heard


def test_kill_nine_during_submits_from_threads_that_knew_one_node(cluster: Cluster) -> None:
    """The others are learnt, before the one that was given dies."""
    given = "node-2"
    heard: list[str] = []
    with Queue(f"localhost:{cluster.ports[given]}", deadline=DEADLINE_S) as queue:
        queue.pause(PAUSED)
        until(lambda: len(queue.addresses) == 3, deadline_s=30, what="the others are known")

        def submitter() -> None:
            while len(heard) < AFTER:
                heard.append(queue.submit("email", queue=PAUSED).id)

        threads = [threading.Thread(target=submitter) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(heard) >= BEFORE, deadline_s=DEADLINE_S, what="submits")
        cluster[given].kill9()
        for thread in threads:
            thread.join(2 * DEADLINE_S)
        assert not any(thread.is_alive() for thread in threads)
        assert len(heard) == len(set(heard)) >= AFTER
        assert there(queue) == Counter(heard)
        # And it comes back, by the same client.
        cluster.start(given)
        cluster.wait_whole()
        cluster.wait_ready()
        task = queue.submit("email", queue=PAUSED)
        assert queue.get(task.id).id == task.id


def test_a_wait_outlives_its_node(cluster: Cluster) -> None:
    with Queue(addresses(cluster), deadline=DEADLINE_S) as queue:
        queue.pause(PAUSED)
        tasks = [queue.submit("email", number, queue=PAUSED) for number in range(9)]
        results: list[object] = []
        threads = [threading.Thread(target=lambda task=task: results.append(task.result(DEADLINE_S))) for task in tasks]
        for thread in threads:
            thread.start()
        cluster["node-3"].kill9()
        queue.resume(PAUSED)
        for thread in threads:
            thread.join(2 * DEADLINE_S)
        assert sorted(map(str, results)) == [f"Email sent: {number}" for number in range(9)]
