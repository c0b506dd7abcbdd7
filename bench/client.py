"""``python -m bench.client``: submits by ``tq_node.client``, from threads and from asyncio, against one node and against three.

A submit counts when the client has heard that it was accepted. Afterwards the cluster must have as many tasks as that. The
queue is paused, so that nothing else is done.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.cluster import Cluster
from bench.context import PAYLOAD
from bench.processes import HOST, Failed, fdatasync_us, scratch
from tq_node.client import AsyncQueue, NewTask, Queue

TYPE = "noop-async"
HEAP = 1_000
"""Tasks in one ``submit_many``."""


class Sample(NamedTuple):
    tasks: int
    seconds: float
    cpu_s: float
    """CPU seconds of this process: the client, all its threads."""

    @property
    def rate(self) -> float:
        return self.tasks / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.tasks * 1e6


def by_threads(address: str, seconds: float, count: int) -> Sample:
    """Submit from ``count`` threads that share one ``Queue``."""
    done = [0] * count
    with Queue(address) as queue:
        queue.submit(TYPE, PAYLOAD, delay=3_600).cancel()  # connected
        end = time.perf_counter() + seconds

        def submitter(number: int) -> None:
            while time.perf_counter() < end:
                queue.submit(TYPE, PAYLOAD)
                done[number] += 1

        threads = [threading.Thread(target=submitter, args=(number,)) for number in range(count)]
        begun, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Sample(sum(done), time.perf_counter() - begun, time.process_time() - cpu)


def by_asyncio(address: str, seconds: float, count: int, *, batching: bool) -> Sample:
    """Submit from ``count`` coroutines that share one ``AsyncQueue``."""

    async def measure() -> Sample:
        async with AsyncQueue(address, batching=batching) as queue:
            await (await queue.submit(TYPE, PAYLOAD, delay=3_600)).cancel()
            done = 0
            begun, cpu = time.perf_counter(), time.process_time()
            end = begun + seconds

            async def submitter() -> None:
                nonlocal done
                while time.perf_counter() < end:
                    await queue.submit(TYPE, PAYLOAD)
                    done += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(submitter())
            return Sample(done, time.perf_counter() - begun, time.process_time() - cpu)

    return asyncio.run(measure())


def by_heaps(address: str, seconds: float) -> Sample:
    """Submit by ``submit_many``, one call after the other."""
    done = 0
    with Queue(address) as queue:
        queue.submit(TYPE, PAYLOAD, delay=3_600).cancel()
        begun, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() < begun + seconds:
            done += len(queue.submit_many(NewTask(TYPE, PAYLOAD) for _ in range(4 * HEAP)))
        return Sample(done, time.perf_counter() - begun, time.process_time() - cpu)


WAYS: dict[str, Callable[[str, float], Sample]] = {
    "Queue, 1 thread": lambda address, seconds: by_threads(address, seconds, 1),
    "Queue, 32 threads": lambda address, seconds: by_threads(address, seconds, 32),
    "AsyncQueue, 128 coroutines, batching off": lambda address, seconds: by_asyncio(
        address, seconds, 128, batching=False
    ),
    "AsyncQueue, 128 coroutines": lambda address, seconds: by_asyncio(address, seconds, 128, batching=True),
    "AsyncQueue, 1,024 coroutines": lambda address, seconds: by_asyncio(address, seconds, 1_024, batching=True),
    "Queue.submit_many": by_heaps,
}


def measure(directory: Path, nodes: int, seconds: float, rounds: int) -> dict[str, list[Sample]]:
    """Measure one way to submit. :raises Failed: the cluster lacks tasks that were acknowledged."""
    samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for place, (way, submit) in enumerate(WAYS.items()):
            with Cluster(directory / f"{nodes}-{number}-{place}", nodes) as cluster:
                cluster.pause()
                sample = submit(",".join(f"{HOST}:{port}" for port in cluster.ports), seconds)
                total = cluster.stats()["total"]
                if total != sample.tasks + 1:  # and the one that connected it
                    raise Failed(f"{way}: {sample.tasks} were accepted, the cluster counts {total - 1}")
                samples[way].append(sample)
                print(f"{nodes} node(s), {way}: {sample.rate:,.0f}/s", file=sys.stderr, flush=True)
    return samples


def main(arguments: list[str] | None = None) -> int:
    """Run the measurements. The exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.client", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each sample [default: 3]")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="samples of each; medians are shown [default: 3]"
    )
    parser.add_argument("--nodes", type=int, action="append", metavar="N", help="cluster sizes [default: 1 and 3]")
    said = parser.parse_args(arguments)
    try:
        with scratch() as directory:
            probe_us = fdatasync_us(directory, times=25)
            found = {nodes: measure(directory, nodes, said.seconds, said.repeat) for nodes in said.nodes or [1, 3]}
    except (Failed, OSError) as why:
        print(f"bench.client: {why}", file=sys.stderr)
        return 1
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, fdatasync {probe_us:.0f} us before")
    print(f"{'':44}" + "".join(f"{f'{nodes} node(s), tasks/s':>34}" for nodes in found) + f"{'client CPU':>16}")
    for way in WAYS:
        cells = []
        for samples in found.values():
            rates = sorted(sample.rate for sample in samples[way])
            cells.append(f"{median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})")
        cpu_us = median(sample.cpu_us for samples in found.values() for sample in samples[way])
        print(f"{way:44}" + "".join(f"{cell:>34}" for cell in cells) + f"{f'{cpu_us:.0f} us/task':>16}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
