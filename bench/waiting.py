"""``python -m bench.waiting``: what remote workers that wait at one node take of its core, and how soon one of them hears of a
task that another node takes."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Self

from bench.cluster import Cluster
from bench.idle import CALM_S, measure
from bench.processes import Failed, scratch

WORKERS = 1_000
SECONDS = 30.0
WAIT_S = 30
TASKS = 100
GAP_S = 0.05
"""Pause between two submits, so that the cluster is idle again."""
HEARD_S = 10.0
TYPE = "far"
"""No node has a handler for it."""


class Waiting:
    """Workers over a connection each, all at one node."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._count = count
        self.asked = 0
        self._heard: dict[str, float] = {}
        self._rows: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number in range(self._count):
            self._rows.append(asyncio.create_task(self._work(number)))
            await asyncio.sleep(WAIT_S / self._count)  # spread, as workers that started at different times are
        return self

    async def __aexit__(self, *_: object) -> None:
        for row in self._rows:
            row.cancel()
        for ended in await asyncio.gather(*self._rows, return_exceptions=True):
            if isinstance(ended, Exception) and not isinstance(ended, asyncio.CancelledError):
                raise ended

    async def _work(self, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for turn in range(10**6):
            said = {
                "worker": f"w-{number}",
                "claim_id": f"{number}-{turn}",
                "types": [TYPE],
                "limit": 1,
                "wait": WAIT_S,
            }
            answer = await post(reader, writer, "/work/claim", said)
            self.asked += 1
            now_s = time.monotonic()
            for one in answer["claims"]:
                self._heard[one["task_id"]] = now_s
                done = {"task_id": one["task_id"], "token": one["token"], "outcome": "completed", "result": 1}
                await post(reader, writer, "/work/finish", {"worker": f"w-{number}", "claims": [done]})

    async def heard_s(self, task_id: str) -> float:
        """When one of them had the task, monotonic."""
        until_s = time.monotonic() + HEARD_S
        while task_id not in self._heard:
            if time.monotonic() > until_s:
                raise Failed(f"no worker has heard of {task_id} within {HEARD_S:g} s")
            await asyncio.sleep(0.001)  # looks at a book; the time itself is taken where the answer comes
        return self._heard[task_id]


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, said: object
) -> dict[str, list[dict[str, str]]]:
    body = json.dumps(said).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    status = await reader.readline()
    length = 0
    while (line := await reader.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    answer = await reader.readexactly(length)
    if status.split()[1:2] not in ([b"200"], [b"201"]):
        raise Failed(f"{path} is answered {status!r} {answer[:200]!r}")
    return dict(json.loads(answer))


async def look(cluster: Cluster, workers: int, seconds: float) -> tuple[float, int, list[float], list[float]]:
    """Percent of a core that the waiting takes, requests meanwhile, milliseconds to each pick-up and to each submit's answer."""
    before = await asyncio.to_thread(measure, cluster, seconds / 3)
    async with Waiting(cluster.nodes[0].port, workers) as waiting:
        asked = waiting.asked
        during = await asyncio.to_thread(measure, cluster, seconds)
        asked = waiting.asked - asked
        reader, writer = await asyncio.open_connection("127.0.0.1", cluster.nodes[-1].port)
        taken_ms, submits_ms = [], []
        for number in range(TASKS):
            await asyncio.sleep(GAP_S)
            begun_s = time.monotonic()
            task = await post(reader, writer, "/tasks/submit", {"type": TYPE, "payload": number})
            submits_ms.append((time.monotonic() - begun_s) * 1_000)
            taken_ms.append((await waiting.heard_s(str(task["task_id"])) - begun_s) * 1_000)
        writer.close()
    return during[0].percent - before[0].percent, asked, taken_ms, submits_ms


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 1 where a bound that was given is passed."""
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description=__doc__)
    parser.add_argument("--workers", type=int, default=WORKERS, help="how many wait [default: 1000]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to look [default: 30]")
    parser.add_argument("--at-most", type=float, metavar="PERCENT", help="fail where the waiting takes more of a core")
    parser.add_argument("--p50-at-most", type=float, metavar="MS", help="fail where half of the pick-ups take longer")
    said = parser.parse_args(arguments)
    try:
        with scratch() as directory, Cluster(directory, 3) as cluster:
            percent, asked, taken_ms, submits_ms = asyncio.run(look(cluster, said.workers, said.seconds))
    except (Failed, OSError) as why:
        print(f"bench.waiting: {why}", file=sys.stderr)
        return 1
    p50_ms, p99_ms = statistics.median(taken_ms), sorted(taken_ms)[len(taken_ms) * 99 // 100]
    rate = asked / (said.seconds + CALM_S)
    print(f"{said.workers} workers wait at node-1: {percent:.2f} % of a core, {rate:.0f} requests a second")
    print(f"submitted at node-3, heard by a worker at node-1: p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms")
    print(f"the submit's own answer: p50 {statistics.median(submits_ms):.2f} ms")
    is_dear = said.at_most is not None and percent > said.at_most
    return int(is_dear or (said.p50_at_most is not None and p50_ms > said.p50_at_most))


if __name__ == "__main__":
    sys.exit(main())
