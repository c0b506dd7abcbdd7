"""What the queues on Redis have in common: their side is a script, and how much waits or is done is asked of the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.observing import cpu_s_of, family_of
from bench.peers.base import Drain, Peer, Rate, Unavailable, wait_done
from bench.peers.redis_server import Redis, redis
from bench.processes import Failed, call, module, running
from bench.tracing import SyncCounter

WORKERS = 2
FILL_CLIENTS = 16
ALL_S = 60.0
COUNT_RESULTS = "EVAL \"redis.call('select', 1) return redis.call('dbsize')\" 0"
"""Of those who keep them in a database of their own."""
STOP_S = 5.0
"""Workers that still have tasks end by force after this."""


class OnRedis(Peer):
    """One of them."""

    side: str
    """The module of its script."""
    processes: int = WORKERS
    """How many of them are started to run tasks; some make more by themselves."""
    waiting: str
    """The command that counts what waits."""
    done: str
    """The command that counts recorded results."""

    def prepare(self) -> None:
        if shutil.which("redis-server") is None:
            raise Unavailable("redis-server is not installed")
        super().prepare()

    def submits(self, fresh: Callable[[], Path], seconds: float) -> list[tuple[int, Rate]]:
        shown = []
        for clients in self.submit_clients:
            with redis(fresh()) as server:
                shown.append((clients, self.produce(server, "produce", 1, clients=clients, seconds=seconds, count=0)))
        return shown

    def drain(self, directory: Path, drain: Drain, count: int, seconds: float) -> Rate:
        with redis(directory) as server:
            self.fill(server, count)
            return self._drain(server, drain.worker, count, seconds)

    def fill(self, server: Redis, count: int) -> None:
        """Exactly so many tasks, however they come in."""
        each, rest = divmod(count, FILL_CLIENTS)
        self.produce(server, "produce", 1, clients=FILL_CLIENTS, seconds=0.0, count=each)
        if rest:
            self.ask(server, "produce", clients=1, seconds=0.0, count=rest)

    def _drain(self, server: Redis, worker: str, count: int, seconds: float) -> Rate:
        with ExitStack() as stack:
            for _ in range(self.processes):
                stack.enter_context(self._worker(server, worker))
            rate = wait_done(lambda: server.ask(self.done), count, seconds)
        return Rate(rate, {"workers": WORKERS})

    def _worker(self, server: Redis, kind: str) -> Any:
        command = [*module(self.side, self.python), "work", str(server.port), kind]
        return running(command, directory=server.directory, log=server.directory / "worker.log", wait_s=STOP_S)

    def pick_up(self, directory: Path, count: int, gap_s: float) -> list[float]:
        with redis(directory) as server, self._worker(server, self.drains[0].worker):
            taken: list[float] = self.ask(server, "pick-up", count=count, gap_s=gap_s)
        return taken

    def syncs(self, directory: Path, count: int) -> tuple[float, float] | None:
        counter = SyncCounter(directory)
        with redis(directory, tuple(counter.prefix)) as server:
            before = counter.count()
            self.produce(server, "produce", 1, clients=1, seconds=0.0, count=count)
            between = counter.count()
            self._drain(server, self.drains[0].worker, count, ALL_S)
            return (between - before) / count * 1000, (counter.count() - between) / count * 1000

    def produce(self, server: Redis, command: str, tasks: int, **spec: object) -> Rate:
        """:param tasks: of one call. :raises Failed: not as many are stored as were submitted."""
        cpu = self._server_cpu_s(server)
        answer = self.ask(server, command, **spec)
        waiting = server.ask(self.waiting)
        if waiting != answer["total"] * tasks:
            raise Failed(f"{self.name}: {answer['total'] * tasks} tasks were submitted, {waiting} are stored")
        used = (self._server_cpu_s(server) - cpu) / max(waiting, 1) * 1e6
        return Rate(
            answer["rate"] * tasks,
            {"p50_ms": answer["p50_ms"], "p99_ms": answer["p99_ms"], "node_cpu_us_per_task": round(used, 1)},
        )

    @staticmethod
    def _server_cpu_s(server: Redis) -> float:
        return sum(cpu_s_of(pid) for pid in family_of(server.pid))

    def ask(self, server: Redis, command: str, **spec: object) -> Any:
        return call(
            [*module(self.side, self.python), command], {"port": server.port, **spec},
            directory=server.directory, log=server.directory / "side.log",
        )  # fmt: skip
