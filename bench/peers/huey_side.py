"""Huey's side of the bench: ``python -m bench.peers.huey_side COMMAND``, a spec in JSON on stdin, an answer in JSON on stdout."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.peers.side import run

huey_package: Any = import_module("huey")  # there are no stubs
WORKERS = 2


def open_huey(port: int) -> Any:
    return huey_package.RedisHuey("bench", host="127.0.0.1", port=port)


def tasks_of(huey: Any) -> tuple[Any, Any]:
    def noop(payload: str) -> int:
        return 1

    def first_line(payload: str) -> int:
        return time.monotonic_ns()

    return huey.task(name="noop")(noop), huey.task(name="first_line")(first_line)


def submits(port: int) -> Callable[[], object]:
    noop, _ = tasks_of(open_huey(port))
    return lambda: noop("user@example.com")


def first_lines(port: int) -> Callable[[], int]:
    _, first_line = tasks_of(open_huey(port))

    def once() -> int:
        at: int = first_line("user@example.com").get(blocking=True, timeout=10, backoff=1, max_delay=0.005)
        return at

    return once


def work(port: int, kind: str) -> None:
    logging.getLogger("huey").setLevel(logging.ERROR)
    huey = open_huey(port)
    tasks_of(huey)
    huey.create_consumer(workers=WORKERS, worker_type=kind, periodic=False, check_worker_health=False).run()


if __name__ == "__main__":
    run(submits, first_lines, work)
