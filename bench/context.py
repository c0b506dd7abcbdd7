"""What every part gets: where to write, how much to do, who else is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.peers.base import Peer
from bench.processes import fdatasync_us
from bench.samples import Book

T = TypeVar("T")
ASYNC_SLOTS = 512
"""``--concurrency`` for draining async handlers: the more, the more completions share a commit; no better beyond (1,024)."""
PROCESS_SLOTS = 8
"""The same for process handlers, each slot a worker process: better than 1, 2, 3, 4 and 6 on two cores, no better beyond."""
BATCH_CONNECTIONS = 2
"""Clients that send batches: one is being read while the other is on its way to the disk; 1, 4 and 8 are no better."""
PAYLOAD = "user@example.com"


def noop(task_type: str = "noop-async") -> dict[str, object]:
    """The body of a submit."""
    return {"type": task_type, "payload": PAYLOAD}


@dataclass(frozen=True)
class Sizes:
    """How much is done. Seconds for a load, numbers of tasks for what is counted.

    After ``more_rounds_s`` no part has a second round, after ``last_start_s`` none is begun: a slow disk costs rounds, not time.
    """

    load_s: float
    drain_async: int
    drain_process: int
    drain_peer: int
    drain_forking: int
    drain_peer_s: float
    pickups: int
    counted: int
    counted_peer: int
    million: int
    million_rounds: int
    million_calls: int
    rounds: int
    more_rounds_s: float
    last_start_s: float


FULL = Sizes(
    load_s=2.5, drain_async=40_000, drain_process=20_000, drain_peer=4_000, drain_forking=600, drain_peer_s=5.0, pickups=200,
    counted=20_000, counted_peer=500, million=1_000_000, million_rounds=7, million_calls=500,
    rounds=3, more_rounds_s=270.0, last_start_s=380.0,
)  # fmt: skip
QUICK = Sizes(
    load_s=0.6, drain_async=10_000, drain_process=2_500, drain_peer=1_000, drain_forking=200, drain_peer_s=1.0, pickups=30,
    counted=3_000, counted_peer=100, million=20_000, million_rounds=3, million_calls=100,
    rounds=1, more_rounds_s=20.0, last_start_s=50.0,
)  # fmt: skip


class Context:
    """See the module's docstring."""

    def __init__(
        self, directory: Path, book: Book, sizes: Sizes, peers: list[Peer], say: Callable[[str], None]
    ) -> None:
        self.book = book
        self.sizes = sizes
        self.peers = peers
        self.say = say
        self._directory = directory
        self._numbers = itertools.count()

    def fresh(self, name: str) -> Path:
        """A new directory for one measurement; how fast the disk is now is kept with what is added next."""
        directory = self._directory / f"{next(self._numbers)}-{name}"
        directory.mkdir()
        self.book.probe_us = fdatasync_us(directory, times=25)
        return directory
