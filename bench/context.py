"""What every part is given: where to write, how much to do, which peers to measure."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import Cluster
from bench.peers.base import Peer
from bench.processes import ROOT, Failed, fdatasync_us
from bench.samples import OURS, Book

ASYNC_SLOTS = {1: 512, 3: 256}
"""``--concurrency`` of each node for draining async handlers, by the number of nodes; the more, the more share a commit."""
PROCESS_SLOTS = {1: 8, 3: 4}
"""``--concurrency`` of each node for draining process handlers, each slot a worker process."""
BATCH_CONNECTIONS = {1: 2, 3: 3}
"""Clients that send batches: one is being read while another is on its way to the disk."""
LOAD_PROCESSES = {1: 1, 32: 1, 128: 1}
"""Processes for so many clients. One sends far more than nodes on two cores answer; ``client_cpu`` in the JSON shows it."""
PAYLOAD = "user@example.com"


def noop(task_type: str = "noop-async", **fields: object) -> dict[str, object]:
    """The body of a submit."""
    return {"type": task_type, "payload": PAYLOAD, **fields}


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
    stored: tuple[int, ...]
    stored_rounds: int
    stored_calls: int
    rounds: int
    more_rounds_s: float
    last_start_s: float


FULL = Sizes(
    load_s=2.5, drain_async=50_000, drain_process=50_000, drain_peer=4_000, drain_forking=600, drain_peer_s=5.0, pickups=200,
    counted=20_000, counted_peer=500, stored=(1_000, 100_000, 1_000_000), stored_rounds=5, stored_calls=300,
    rounds=3, more_rounds_s=1_000.0, last_start_s=1_200.0,
)  # fmt: skip
QUICK = Sizes(
    load_s=0.6, drain_async=10_000, drain_process=2_500, drain_peer=1_000, drain_forking=200, drain_peer_s=1.0, pickups=30,
    counted=3_000, counted_peer=100, stored=(1_000, 20_000), stored_rounds=3, stored_calls=100,
    rounds=1, more_rounds_s=20.0, last_start_s=150.0,
)  # fmt: skip


class Context:
    """See the module's docstring."""

    def __init__(
        self, directory: Path, book: Book, sizes: Sizes, nodes: int, peers: list[Peer], say: Callable[[str], None]
    ) -> None:
        self.book = book
        self.sizes = sizes
        self.nodes = nodes
        self.peers = peers
        self.say = say
        self.trees = {OURS: ROOT}
        """Checkouts whose nodes are measured, by the name of their rows; ours first."""
        self._directory = directory
        self.failures = 0
        self._numbers = itertools.count()

    def fresh(self, name: str) -> Path:
        """A new directory for one measurement; how fast the disk is now is kept with what is added next."""
        directory = self._directory / f"{next(self._numbers)}-{name}"
        directory.mkdir()
        self.book.probe_us = fdatasync_us(directory, times=25)
        return directory

    def cluster(self, name: str, *, concurrency: int = 16, traced: bool = False, system: str = OURS) -> Cluster:
        """Nodes of one of ``trees``, in a fresh directory; not started yet."""
        tree = self.trees[system]
        return Cluster(self.fresh(name), self.nodes, concurrency=concurrency, traced=traced, tree=tree)

    def each_peer(self, measure: Callable[[Peer], None]) -> None:
        """One after the other. What goes wrong with one is noted, and the others are still measured."""
        for peer in self.peers:
            try:
                measure(peer)
            except (Failed, OSError) as why:
                self.failures += 1
                self.book.note(f"{peer.name} FAILED: {why}")

    @property
    def async_slots(self) -> int:
        return ASYNC_SLOTS[self.nodes]

    @property
    def process_slots(self) -> int:
        return PROCESS_SLOTS[self.nodes]
