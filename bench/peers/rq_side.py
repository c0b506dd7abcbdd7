"""RQ's side of the bench: ``python -m bench.peers.rq_side COMMAND``, a spec in JSON on stdin, an answer in JSON on stdout."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.peers import rq_tasks
from bench.peers.producing import produce
from bench.peers.side import run

redis: Any = import_module("redis")  # there are no stubs
rq: Any = import_module("rq")
WORKERS: dict[str, Any] = {"simple": rq.SimpleWorker, "forking": rq.Worker}


def open_queue(port: int) -> Any:
    return rq.Queue("bench", connection=redis.Redis(host="127.0.0.1", port=port))


def submits(port: int) -> Callable[[], object]:
    queue = open_queue(port)
    return lambda: queue.enqueue(rq_tasks.noop, "user@example.com")


def batches(port: int, spec: dict[str, Any]) -> object:
    size = spec["size"]

    def make() -> Callable[[], object]:
        queue = open_queue(port)
        return lambda: queue.enqueue_many(
            [rq.Queue.prepare_data(rq_tasks.noop, ("user@example.com",)) for _ in range(size)]
        )

    return produce(make, 1, spec["seconds"], spec["count"])


def first_lines(port: int) -> Callable[[], int]:
    queue = open_queue(port)

    def once() -> int:
        at: int = queue.enqueue(rq_tasks.first_line, "user@example.com").latest_result(timeout=10).return_value
        return at

    return once


def work(port: int, kind: str) -> None:
    queue = open_queue(port)
    WORKERS[kind]([queue], connection=queue.connection).work(logging_level="ERROR")


if __name__ == "__main__":
    run(submits, first_lines, work, {"batch": batches})
