"""Dramatiq's side of the bench: ``python -m bench.peers.dramatiq_side COMMAND``, a spec in JSON on stdin, an answer on stdout."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.peers.side import run

dramatiq: Any = import_module("dramatiq")  # there are no stubs
RedisBroker: Any = import_module("dramatiq.brokers.redis").RedisBroker
results: Any = import_module("dramatiq.results")
RedisBackend: Any = import_module("dramatiq.results.backends").RedisBackend
THREADS = 8


def open_broker(port: int) -> Any:
    """Results are in a database of their own, so that they can be counted."""
    broker = RedisBroker(host="127.0.0.1", port=port)
    broker.add_middleware(results.Results(backend=RedisBackend(host="127.0.0.1", port=port, db=1), store_results=True))
    dramatiq.set_broker(broker)
    return broker


def actors_of(broker: Any) -> tuple[Any, Any]:
    def noop(payload: str) -> int:
        return 1

    def first_line(payload: str) -> int:
        return time.monotonic_ns()

    def actor(function: Callable[[str], int]) -> Any:
        return dramatiq.actor(function, broker=broker, queue_name="bench")

    return actor(noop), actor(first_line)


def submits(port: int) -> Callable[[], object]:
    noop, _ = actors_of(open_broker(port))
    return lambda: noop.send("user@example.com")


def first_lines(port: int) -> Callable[[], int]:
    _, first_line = actors_of(open_broker(port))

    def once() -> int:
        at: int = first_line.send("user@example.com").get_result(block=True, timeout=10_000)
        return at

    return once


def work(port: int, kind: str) -> None:
    broker = open_broker(port)
    actors_of(broker)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker = dramatiq.Worker(broker, worker_threads=THREADS, worker_timeout=100)
    worker.start()
    signal.sigwait({signal.SIGTERM})
    worker.stop(timeout=1_000)


if __name__ == "__main__":
    run(submits, first_lines, work)
