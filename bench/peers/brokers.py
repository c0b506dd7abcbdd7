"""What the brokers of three nodes have in common: messages without a recorded status, clients on raw sockets."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.observing import cpu_s_of, family_of
from bench.peers.base import Drain, Peer, Rate
from bench.processes import Failed, call, module

NODES = 3
BATCH_CLIENTS = 3
FILL_BATCH = 500
PREFETCH = 500
EMPTY_S = 20.0


class Broker(abc.ABC):
    """Three nodes that run."""

    directory: Path
    ports: list[int]
    pids: list[int]

    @abc.abstractmethod
    def stored(self) -> int:
        """Messages that wait."""

    @abc.abstractmethod
    def verify_copies(self) -> None:
        """:raises Failed: not every node has a copy."""

    def verify_empty(self) -> None:
        """:raises Failed: messages are left that were acknowledged by their consumers."""
        end = time.monotonic() + EMPTY_S
        while left := self.stored():
            if time.monotonic() > end:
                raise Failed(f"{left} messages are left after {EMPTY_S:g} s, though all were acknowledged")
            time.sleep(0.1)  # polls until the acknowledgements have been taken in

    def cpu_s(self) -> float:
        return sum(cpu_s_of(pid) for first in self.pids for pid in family_of(first))


class BrokerPeer(Peer):
    """One of them."""

    speaks: str
    drains: tuple[Drain, ...]

    @abc.abstractmethod
    def broker(self, directory: Path) -> AbstractContextManager[Broker]:
        """Three new nodes, ready."""

    def submits(self, fresh: Callable[[], Path], seconds: float) -> list[tuple[int, Rate]]:
        with self.broker(fresh()) as broker:
            return [
                (clients, self._send(broker, clients=clients, size=1, seconds=seconds))
                for clients in self.submit_clients
            ]

    def batches(self, fresh: Callable[[], Path], sizes: Sequence[int], seconds: float) -> list[tuple[int, Rate]]:
        with self.broker(fresh()) as broker:
            return [(size, self._send(broker, clients=BATCH_CLIENTS, size=size, seconds=seconds)) for size in sizes]

    def _send(self, broker: Broker, **spec: object) -> Rate:
        before = broker.stored()
        cpu = broker.cpu_s()
        answer = self._ask(broker, "submit", **spec)
        used = broker.cpu_s() - cpu
        stored = broker.stored() - before
        if stored != answer["total"]:
            raise Failed(f"{self.name}: {answer['total']} messages were confirmed, {stored} are stored")
        broker.verify_copies()
        more = {name: answer[name] for name in ("p50_ms", "p99_ms")}
        return Rate(answer["rate"], {**more, "node_cpu_us_per_task": round(used / max(stored, 1) * 1e6, 1)})

    def drain(self, directory: Path, drain: Drain, count: int, seconds: float) -> Rate:
        with self.broker(directory) as broker:
            full, rest = divmod(count, FILL_BATCH)
            self._ask(broker, "submit", clients=BATCH_CLIENTS, size=FILL_BATCH, seconds=0.0, count=full)
            if rest:
                self._ask(broker, "submit", clients=1, size=rest, seconds=0.0, count=1)
            cpu = broker.cpu_s()
            answer = self._ask(broker, "drain", count=count, seconds=seconds, prefetch=PREFETCH)
            used = (broker.cpu_s() - cpu) / answer["done"] * 1e6
            if answer["done"] >= count:
                broker.verify_empty()
            return Rate(answer["rate"], {"node_cpu_us_per_task": round(used, 1)})

    def pick_up(self, directory: Path, count: int, gap_s: float) -> list[float]:
        with self.broker(directory) as broker:
            taken: list[float] = self._ask(broker, "pick-up", count=count, gap_s=gap_s, prefetch=PREFETCH)["taken_ms"]
            return taken

    def _ask(self, broker: Broker, command: str, **spec: object) -> Any:
        answer = call(
            module("bench.peers.broker_side"),
            {"command": command, "speaks": self.speaks, "ports": broker.ports, **spec},
            directory=broker.directory, log=broker.directory / "side.log",
        )  # fmt: skip
        if "wrong" in answer:
            raise Failed(f"{self.name}: {answer['wrong']}")
        return answer
