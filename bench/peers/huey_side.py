"""Huey's side of the bench: ``python -m bench.peers.huey_side COMMAND``, a spec in JSON on stdin, an answer in JSON on stdout."""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib import import_module
from typing import Any

from bench.peers.producing import produce

huey_package: Any = import_module("huey")  # there are no stubs


def open_huey(path: str, *, fsync: bool = True) -> Any:
    """WAL, ``PRAGMA synchronous = FULL``: every commit is on disk before the call returns."""
    return huey_package.SqliteHuey("bench", filename=path, fsync=fsync, journal_mode="wal", timeout=60)


def tasks_of(huey: Any) -> tuple[Any, Any]:
    def noop(payload: str) -> int:
        return 1

    def first_line(payload: str) -> int:
        return time.monotonic_ns()

    return huey.task(name="noop")(noop), huey.task(name="first_line")(first_line)


def main() -> None:
    command = sys.argv[1]
    if command == "consume":
        consume(*sys.argv[2:])
        return
    spec = json.load(sys.stdin)
    path = spec["path"]
    if command == "produce":

        def make() -> Any:
            return lambda: noop("user@example.com")

        huey = open_huey(path)
        noop, _ = tasks_of(huey)
        answer: object = produce(make, spec["clients"], spec["seconds"], spec["count"])
    elif command == "fill":
        huey = open_huey(path, fsync=False)
        noop, _ = tasks_of(huey)
        for _ in range(spec["count"]):
            noop("user@example.com")
        answer = huey.storage.queue_size()
    else:
        answer = pick_up(path, spec["count"], spec["gap_s"])
    json.dump(answer, sys.stdout)


def consume(path: str, kind: str, workers: str) -> None:
    logging.getLogger("huey").setLevel(logging.ERROR)
    huey = open_huey(path)
    tasks_of(huey)
    huey.create_consumer(
        workers=int(workers), worker_type=kind, initial_delay=0.005, max_delay=0.005, periodic=False,
        check_worker_health=False,
    ).run()  # fmt: skip


def pick_up(path: str, count: int, gap_s: float) -> list[float]:
    huey = open_huey(path)
    _, first_line = tasks_of(huey)
    taken = []
    for _ in range(count + 5):
        time.sleep(gap_s)  # the gap that leaves the worker idle is part of the measurement
        begun = time.monotonic_ns()
        result = first_line("user@example.com")
        at = result.get(blocking=True, timeout=10, backoff=1, max_delay=0.01)
        taken.append((at - begun) / 1e6)
    return taken[5:]


if __name__ == "__main__":
    main()
