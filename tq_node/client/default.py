"""The queue of this process that task functions submit to: ``configure``, else ``TQ_URL``.

It is opened with the first submit, and closed when the process ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tq_node.client.models import NewTask
from tq_node.client.synchronous import Queue


class Submits(Protocol):
    """What a task function needs of a queue: ``Queue`` has it, and ``tq_node.testing``'s too."""

    def submit_new(self, task: NewTask, deadline: float | None) -> Any:
        """Submit a task, block until it is accepted; its handle."""

    async def submit_new_async(self, task: NewTask, deadline: float | None) -> Any:
        """The same, from an asyncio loop; the handle's methods block."""

    def submit_many(self, tasks: Iterable[NewTask], *, deadline: float | None = None) -> Any:
        """Submit many tasks in batches; their handles, in order."""


class _Default:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queue: Submits | None = None
        self.is_ours = False
        """It was opened here."""


_default = _Default()


def configure(addresses: str | Iterable[str] | None = None, **options: Any) -> None:
    """Set where task functions submit; an earlier default queue is closed.

    :param addresses: as ``Queue``'s; None: those in ``TQ_URL``, else ``localhost:8080``.
    :param options: as ``Queue``'s.
    :raises ValueError: an argument does not fit."""
    queue = _opened(addresses, options)
    with _default.lock:
        before, was_ours = _default.queue, _default.is_ours
        _default.queue, _default.is_ours = queue, True
    if was_ours and isinstance(before, Queue):
        before.close()


def default_queue() -> Submits:
    """The process's queue; opened by what the environment says if nothing was configured."""
    with _default.lock:
        if _default.queue is None:
            _default.queue, _default.is_ours = _opened(None, {}), True
        return _default.queue


@contextmanager
def using(queue: Submits) -> Iterator[None]:
    """A context in which task functions of the whole process submit to ``queue``, for tests."""
    with _default.lock:
        before = _default.queue, _default.is_ours
        _default.queue, _default.is_ours = queue, False
    try:
        yield
    finally:
        with _default.lock:
            _default.queue, _default.is_ours = before


def _opened(addresses: str | Iterable[str] | None, options: dict[str, Any]) -> Queue:
    where = addresses if addresses is not None else os.environ.get("TQ_URL") or "localhost:8080"
    return Queue(where, **options)
