"""Celery's side of the bench: ``python -m bench.peers.celery_side COMMAND``, a spec in JSON on stdin, an answer on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.peers.side import run

celery: Any = import_module("celery")  # there are no stubs
WORKERS = 2
PREFETCH = 64


def open_app(port: int) -> Any:
    """Results are in a database of their own, so that they can be counted."""
    url = f"redis://127.0.0.1:{port}"
    app = celery.Celery("bench", broker=f"{url}/0", backend=f"{url}/1")
    app.conf.update(
        task_default_queue="bench", task_acks_late=True, worker_prefetch_multiplier=PREFETCH, broker_pool_limit=None,
        worker_enable_remote_control=False, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False,
    )  # fmt: skip
    return app


def tasks_of(app: Any) -> tuple[Any, Any]:
    def noop(payload: str) -> int:
        return 1

    def first_line(payload: str) -> int:
        return time.monotonic_ns()

    return app.task(name="noop")(noop), app.task(name="first_line")(first_line)


def submits(port: int) -> Callable[[], object]:
    app = open_app(port)
    noop, _ = tasks_of(app)
    producer = app.amqp.Producer(app.connection_for_write())
    return lambda: noop.apply_async(("user@example.com",), producer=producer)


def first_lines(port: int) -> Callable[[], int]:
    _, first_line = tasks_of(open_app(port))

    def once() -> int:
        at: int = first_line.delay("user@example.com").get(timeout=10)
        return at

    return once


def work(port: int, kind: str) -> None:
    app = open_app(port)
    tasks_of(app)
    app.worker_main(
        ["worker", "--pool", kind, "--concurrency", str(WORKERS), "--loglevel", "ERROR", "--without-gossip",
         "--without-mingle", "--without-heartbeat"]
    )  # fmt: skip


if __name__ == "__main__":
    run(submits, first_lines, work)
