"""How the console does under load: ``python -m tests.tui.measure [SECONDS]``. Prints what it finds; no node is needed.

1,000 events a second from three scripted nodes and a list of a million tasks, on 120x40 without a terminal: a key is pressed five
times a second, on each screen in turn, and the time to the next paint is taken.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from textual import events

from tests.support.fake_cluster import FakeCluster
from tq_tui import keys
from tq_tui.app import Console
from tq_tui.client.models import Event

PER_SECOND = 1_000
HEAP = 10
SIZE = (120, 40)
KEYS = ("down", "down", "up", "pagedown", "pageup")
MEMORY_S = 60.0
PAGE_BYTES = resource.getpagesize()


class Measured(Console):
    """Knows when it last painted."""

    painted: asyncio.Event | None = None

    def _display(self, screen: Any, renderable: Any) -> None:
        super()._display(screen, renderable)
        if self.painted is not None:
            self.painted.set()


def memory_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 1_048_576


async def burden(fake: FakeCluster, over: asyncio.Event) -> int:
    """Tell so many events a second; gives how many it was."""
    told, began = 0, time.monotonic()
    while not over.is_set():
        for _ in range(HEAP):
            name = fake.names[told % len(fake.names)]
            to = ("pending", "processing", "completed")[told % 3]
            task_id = f"task-{told % 1_000_000:07}"
            fake.tell(Event(task_id, "email", "default", to, "2027-01-15T08:00:00.123Z", None, 1, name, told % 64))
            told += 1
        await asyncio.sleep(max(0.0, began + told / PER_SECOND - time.monotonic()))
    return told


async def pressed(app: Measured, key: str) -> float:
    """Seconds from a key to the paint that follows it."""
    app.painted = asyncio.Event()
    began = time.perf_counter()
    app.post_message(events.Key(key, None))
    await app.painted.wait()
    return time.perf_counter() - began


async def measure(seconds: float) -> None:
    fake = FakeCluster()
    fake.million = 1_000_000
    app = Measured(fake, [fake.address(name) for name in fake.names])
    memory: list[float] = []
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(1.5)
        over = asyncio.Event()
        burdened = asyncio.create_task(burden(fake, over))
        began, cpu = time.monotonic(), time.process_time()
        each: dict[str, list[float]] = {}
        while time.monotonic() - began < seconds:
            for kind in (keys.TASKS, keys.EVENTS, keys.NODES):
                app.go(kind)
                await asyncio.sleep(0.5)
                if time.monotonic() - began >= len(memory) * MEMORY_S:
                    memory.append(memory_mib())
                for key in KEYS:
                    each.setdefault(kind, []).append(1_000 * await pressed(app, key))
                    await asyncio.sleep(0.2)
        share = (time.process_time() - cpu) / (time.monotonic() - began)
        over.set()
        told = await burdened
        for kind, found in each.items():
            ordered = sorted(found)
            print(
                f"{kind:<8} key to paint: median {statistics.median(ordered):5.1f} ms, "
                f"95 % {ordered[int(len(ordered) * 0.95)]:5.1f} ms, worst {ordered[-1]:5.1f} ms, of {len(ordered)}"
            )
        print(f"{told / seconds:,.0f} events a second for {seconds:.0f} s, {app.events.total:,} of {told:,} arrived")
        print(f"process: {share:.0%} of a core, the load is made in it")
        print(f"memory each minute, MiB: {' '.join(f'{one:.0f}' for one in [*memory, memory_mib()])}")
        print(f"machine: load average {' '.join(f'{one:.1f}' for one in os.getloadavg())}, {os.cpu_count()} cores")


if __name__ == "__main__":
    asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
