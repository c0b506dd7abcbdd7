"""kill -9 of a node that leads partitions: for how long is no write to them acknowledged?

A few writers, each with one partition of the node that dies, submit one task after another: the next as soon as the last is
acknowledged. A refused or lost submit is sent again after 25 ms, under the same id, to the next node; a call is given up after
1 s. The gap of a writer is the time between its last acknowledgement before the kill and its first one after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import NAMES, MakeCluster, ids_in, led_by, seed_of, started, wait_copies, wait_settled

pytestmark = pytest.mark.cluster

AGAIN_S = 0.025
CALL_S = 1.0
WRITERS = 6
BEFORE_S = 0.4
AFTER_S = 0.2
GIVE_UP_S = 20.0
P50_S, P99_S = 0.25, 0.6
MARGIN = 10.0
"""The push run shares its machine; the slow run is held to the targets themselves."""


class Gap(NamedTuple):
    writer: int
    seconds: float
    calls: int
    """Tries of the write that ended it."""


class Asked:
    """One connection to each node; a call that fails in any way closes its own."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._ports = ports
        self._streams: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def submit(self, node: str, task_id: str) -> int:
        """:raises OSError, EOFError, ValueError, asyncio.TimeoutError: whatever it is, the outcome is not known."""
        body = json.dumps({"type": "noop", "id": task_id, "delay": 3600}).encode()
        head = f"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(CALL_S):
                stream = self._streams.get(node)
                if stream is None:
                    stream = self._streams[node] = await asyncio.open_connection("127.0.0.1", self._ports[node])
                reader, writer = stream
                writer.write(head + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                (length,) = (line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                return int(answer.split(None, 2)[1])
        except BaseException:
            self._drop(node)
            raise

    def _drop(self, node: str) -> None:
        stream = self._streams.pop(node, None)
        if stream is not None:
            stream[1].close()

    async def close(self) -> None:
        for node in list(self._streams):
            _, writer = self._streams.pop(node)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Writer:
    def __init__(self, number: int, ports: dict[str, int], ids: Iterator[str], first: str) -> None:
        self.number = number
        self.acks: list[tuple[float, int]] = []
        """(when, how many tries it took)"""
        self._asked = Asked(ports)
        self._nodes = [first, *(name for name in ports if name != first)]
        self._ids = ids

    async def write(self, over: asyncio.Event) -> None:
        turn = 0
        try:
            while not over.is_set():
                task_id, tries = next(self._ids), 0
                while True:
                    tries += 1
                    try:
                        if await self._asked.submit(self._nodes[turn % len(self._nodes)], task_id) in (200, 201):
                            break
                    except (OSError, EOFError, ValueError, TimeoutError):
                        pass
                    if over.is_set():
                        return
                    turn += 1
                    await asyncio.sleep(AGAIN_S)
                self.acks.append((time.monotonic(), tries))
        finally:
            await self._asked.close()

    def gap(self, killed_s: float) -> Gap | None:
        """Acknowledgements that were under way at the kill belong to the time before it: the longest pause counts."""
        before = [at_s for at_s, _ in self.acks if at_s <= killed_s]
        after = [one for one in self.acks if one[0] > killed_s]
        if not after or not before:
            return None
        pauses = [(b_s - a_s, tries) for (a_s, _), (b_s, tries) in zip([(before[-1], 0), *after], after, strict=False)]
        seconds, tries = max(pauses)
        return Gap(self.number, seconds, tries)


async def one_round(cluster: Cluster, victim: str, seed: int, label: str, rolls: random.Random) -> list[Gap]:
    """Load, kill, wait until every writer has been acknowledged again."""
    partitions = rolls.sample(led_by(cluster, victim), WRITERS)
    writers = [
        # Half of them begin at the node that dies, as clients do that know one address.
        Writer(n, cluster.ports, ids_in(seed, p, f"{label}-{n}"), victim if n % 2 else rolls.choice(NAMES))
        for n, p in enumerate(partitions)
    ]
    over = asyncio.Event()
    running = [asyncio.ensure_future(writer.write(over)) for writer in writers]
    await asyncio.sleep(BEFORE_S + rolls.uniform(0, 0.1))
    killed_s = time.monotonic()
    os.kill(cluster[victim].pid, signal.SIGKILL)
    while time.monotonic() < killed_s + GIVE_UP_S and any(not w.acks or w.acks[-1][0] <= killed_s for w in writers):
        await asyncio.sleep(0.01)
    await asyncio.sleep(AFTER_S)
    over.set()
    await asyncio.gather(*running)
    gaps = [writer.gap(killed_s) for writer in writers]
    lost = [p for p, gap in zip(partitions, gaps, strict=True) if gap is None]
    assert not lost, f"no acknowledgement for {GIVE_UP_S:g} s after the kill of {victim} on partitions {lost}"
    return [gap for gap in gaps if gap is not None]


def rounds(cluster: Cluster, count: int, *, of_leader: bool) -> list[list[Gap]]:
    rolls = random.Random(f"failover {of_leader}")
    seed = seed_of(cluster)
    found = []
    for number in range(count):
        leader = cluster.leader()
        victim = leader if of_leader else rolls.choice([name for name in NAMES if name != leader])
        found.append(asyncio.run(one_round(cluster, victim, seed, f"{'l' if of_leader else 'p'}{number}", rolls)))
        cluster[victim].kill9()  # it is dead; this collects it
        cluster.start(victim)
        cluster[victim].wait_ready()
        cluster.wait_whole()
        wait_settled(cluster)
    return found


def told(what: str, found: list[list[Gap]]) -> tuple[float, float, float]:
    gaps = sorted(gap.seconds for one in found for gap in one)
    worst = sorted(max(gap.seconds for gap in one) for one in found)
    p50 = statistics.median(gaps)
    p99 = gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))]
    tries = statistics.median(gap.calls for one in found for gap in one)
    print(
        f"\n{what}: {len(found)} rounds of {WRITERS} writers, retry after {AGAIN_S * 1000:.0f} ms, time-out {CALL_S:g} s: "
        f"gap p50 {p50:.3f} s, p99 {p99:.3f} s, max {gaps[-1]:.3f} s; "
        f"worst writer of a round p50 {statistics.median(worst):.3f} s, max {worst[-1]:.3f} s; "
        f"tries of the first write p50 {tries:.0f}"
    )
    return p50, p99, gaps[-1]


@pytest.mark.parametrize("of_leader", [False, True], ids=["primary", "leader"])
def test_the_gap_of_acknowledged_writes(make_cluster: MakeCluster, of_leader: bool) -> None:
    cluster = started(make_cluster)
    what = "kill -9 of the Raft leader's node" if of_leader else "kill -9 of a primary's node"
    p50, p99, _ = told(what, rounds(cluster, 2 if of_leader else 4, of_leader=of_leader))
    assert p50 < P50_S * MARGIN
    assert p99 < P99_S * MARGIN
    cluster.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("of_leader", "count"), [(False, 20), (True, 20)], ids=["primary", "leader"])
def test_the_gap_over_many_rounds(make_cluster: MakeCluster, of_leader: bool, count: int) -> None:
    cluster = started(make_cluster)
    what = "kill -9 of the Raft leader's node" if of_leader else "kill -9 of a primary's node"
    p50, p99, _ = told(what, rounds(cluster, count, of_leader=of_leader))
    assert p50 < P50_S
    assert p99 < P99_S
    wait_copies(cluster)
    stats = cluster[NAMES[0]].get("/tasks/stats?scope=cluster").json
    assert not stats["missing"]
    cluster.stop()
