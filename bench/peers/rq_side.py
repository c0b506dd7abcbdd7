"""RQ's side of the bench: ``python -m bench.peers.rq_side COMMAND``, a spec in JSON on stdin, an answer in JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.peers import rq_tasks
from bench.peers.producing import produce

redis: Any = import_module("redis")  # there are no stubs
rq: Any = import_module("rq")
WORKERS: dict[str, Any] = {"simple": rq.SimpleWorker, "forking": rq.Worker}


def connect(port: int) -> Any:
    return redis.Redis(host="127.0.0.1", port=port)


def open_queue(port: int) -> Any:
    return rq.Queue("bench", connection=connect(port))


def main() -> None:
    command = sys.argv[1]
    if command == "work":
        port, kind = int(sys.argv[2]), sys.argv[3]
        queue = open_queue(port)
        WORKERS[kind]([queue], connection=queue.connection).work(logging_level="ERROR")
        return
    spec = json.load(sys.stdin)
    port = spec["port"]
    if command == "produce":
        answer: object = produce(lambda: _submits(port), spec["clients"], spec["seconds"], spec["count"])
    elif command == "batch":
        size = spec["size"]
        answer = produce(lambda: _batches(port, size), 1, spec["seconds"], spec["count"])
    else:
        answer = pick_up(port, spec["count"], spec["gap_s"])
    json.dump(answer, sys.stdout)


def _submits(port: int) -> Callable[[], None]:
    queue = open_queue(port)
    return lambda: queue.enqueue(rq_tasks.noop, "user@example.com")


def _batches(port: int, size: int) -> Callable[[], None]:
    queue = open_queue(port)

    def submit() -> None:
        queue.enqueue_many([rq.Queue.prepare_data(rq_tasks.noop, ("user@example.com",)) for _ in range(size)])

    return submit


def pick_up(port: int, count: int, gap_s: float) -> list[float]:
    queue = open_queue(port)
    taken = []
    for _ in range(count + 5):
        time.sleep(gap_s)  # the gap that leaves the worker idle is part of the measurement
        begun = time.monotonic_ns()
        job = queue.enqueue(rq_tasks.first_line, "user@example.com")
        result = job.latest_result(timeout=10)
        taken.append((result.return_value - begun) / 1e6)
    return taken[5:]


if __name__ == "__main__":
    main()
