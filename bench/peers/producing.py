"""Clients of a peer that submit for some seconds, in threads spread over processes. Runs in the peer's environment."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

PROCESSES_MAX = 4
WARM_UP = 5
"""One in so many seconds."""


def produce(make: Callable[[], Callable[[], object]], clients: int, seconds: float, count: int = 0) -> dict[str, float]:
    """Call what ``make`` makes, from ``clients`` threads, for ``seconds`` or ``count`` times each.

    :param make: called once in each thread.
    """
    processes = min(PROCESSES_MAX, clients)
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(clients)
    answers: Any = context.Queue()
    shares = [clients // processes + (number < clients % processes) for number in range(processes)]
    started = [context.Process(target=_process, args=(make, share, seconds, count, ready, answers)) for share in shares]
    for process in started:
        process.start()
    taken: list[float] = []
    total, begun, ended = 0, float("inf"), 0.0
    for _ in started:
        part, counted, first, last = answers.get(timeout=seconds + 120)
        taken += part
        total += counted
        begun, ended = min(begun, first), max(ended, last)
    for process in started:
        process.join()
    taken.sort()
    return {
        "total": total,
        "rate": len(taken) / max(ended - begun, 1e-9),
        "p50_ms": round(taken[len(taken) // 2] * 1000, 3),
        "p99_ms": round(taken[len(taken) * 99 // 100] * 1000, 3),
    }


def _process(
    make: Callable[[], Callable[[], object]], threads: int, seconds: float, count: int, ready: Any, answers: Any
) -> None:
    taken: list[float] = []
    totals: list[int] = []
    spans: list[tuple[float, float]] = []

    def client() -> None:
        submit = make()
        ready.wait(60)
        begun = time.monotonic()
        warm = begun + seconds / WARM_UP
        end = begun + seconds if seconds else float("inf")
        mine: list[float] = []
        calls = 0
        before = begun
        while before < end and (not count or calls < count):
            submit()
            after = time.monotonic()
            calls += 1
            # What ends later counts among the total, but fewer and fewer clients were at work then.
            if warm <= after <= end:
                mine.append(after - before)
            before = after
        taken.extend(mine)
        totals.append(calls)
        spans.append((warm, min(before, end)))

    started = [threading.Thread(target=client) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    answers.put((taken, sum(totals), min(span[0] for span in spans), max(span[1] for span in spans)))
