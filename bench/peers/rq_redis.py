"""RQ on Redis that syncs each write: ``appendonly yes``, ``appendfsync always``."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.peers.base import Drain, Peer, Rate, Unavailable, wait_done
from bench.processes import HOST, Failed, call, free_port, module, running, tail
from bench.tracing import SyncCounter

WORKERS = 2
ALL_S = 60.0
_START_S = 20.0


class RqRedis(Peer):
    name = "rq"
    requirement = "rq ~= 3.0"
    distribution = "rq"
    about = (
        f"redis-server with appendonly yes, appendfsync always, over TCP; {WORKERS} SimpleWorkers, which run tasks in their own "
        'process; "rq (fork)" are its default workers, which fork for each task'
    )  # fmt: skip
    submit_clients = (1, 32, 128)
    drains = (Drain("rq", "simple"), Drain("rq (fork)", "forking", is_slow=True))

    def prepare(self) -> None:
        if shutil.which("redis-server") is None:
            raise Unavailable("redis-server is not installed")
        super().prepare()

    def submit(self, directory: Path, clients: int, seconds: float) -> Rate:
        with _redis(directory) as redis:
            return self._produce(redis, "produce", 1, clients=clients, seconds=seconds, count=0)

    def batch(self, directory: Path, size: int, seconds: float) -> Rate | None:
        with _redis(directory) as redis:
            return self._produce(redis, "batch", size, size=size, seconds=seconds, count=0)

    def drain(self, directory: Path, drain: Drain, count: int, seconds: float) -> Rate:
        with _redis(directory) as redis:
            self._produce(redis, "batch", count, size=count, seconds=0.0, count=1)
            return self._drain(redis, drain.worker, count, seconds)

    def _drain(self, redis: _Redis, worker: str, count: int, seconds: float) -> Rate:
        command = [*module("bench.peers.rq_side", self.python), "work", str(redis.port), worker]
        with ExitStack() as stack:
            for _ in range(WORKERS):
                stack.enter_context(running(command, directory=redis.directory, log=redis.directory / "worker.log"))
            done = wait_done(lambda: redis.ask("ZCARD rq:finished:bench"), count, seconds)
            return Rate(done, {"workers": WORKERS})

    def pick_up(self, directory: Path, count: int, gap_s: float) -> list[float]:
        with _redis(directory) as redis:
            command = [*module("bench.peers.rq_side", self.python), "work", str(redis.port), "simple"]
            with running(command, directory=directory, log=directory / "worker.log"):
                taken: list[float] = self._ask(redis, "pick-up", count=count, gap_s=gap_s)
        return taken

    def syncs(self, directory: Path, count: int) -> tuple[float, float]:
        counter = SyncCounter(directory)
        with _redis(directory, tuple(counter.prefix)) as redis:
            before = counter.count()
            self._produce(redis, "produce", 1, clients=1, seconds=0.0, count=count)
            between = counter.count()
            self._drain(redis, "simple", count, ALL_S)
            return (between - before) / count * 1000, (counter.count() - between) / count * 1000

    def _produce(self, redis: _Redis, command: str, tasks: int, **spec: object) -> Rate:
        answer = self._ask(redis, command, **spec)
        waiting = redis.ask("LLEN rq:queue:bench")
        if waiting != answer["total"] * tasks:
            raise Failed(f"rq: {answer['total'] * tasks} tasks were submitted, {waiting} are stored")
        return Rate(answer["rate"] * tasks, {"p50_ms": answer["p50_ms"], "p99_ms": answer["p99_ms"]})

    def _ask(self, redis: _Redis, command: str, **spec: object) -> Any:
        return call(
            [*module("bench.peers.rq_side", self.python), command], {"port": redis.port, **spec},
            directory=redis.directory, log=redis.directory / "rq.log",
        )  # fmt: skip


class _Redis:
    """A redis-server that runs."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    def ask(self, command: str) -> int:
        """A command that is answered with a number."""
        with socket.create_connection((HOST, self.port), 10) as connection, connection.makefile("rb") as answers:
            connection.sendall(f"{command}\r\n".encode())
            line = answers.readline()
        if not line.startswith(b":"):
            raise OSError(f"redis-server says {line!r}")
        return int(line[1:])


@contextlib.contextmanager
def _redis(directory: Path, prefix: tuple[str, ...] = ()) -> Iterator[_Redis]:
    redis = _Redis(directory, free_port())
    log = directory / "redis.log"
    command = [
        *prefix, "redis-server", "--bind", HOST, "--port", str(redis.port), "--dir", str(directory), "--save", "",
        "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0",
        "--pidfile", str(directory / "redis.pid"),
    ]  # fmt: skip
    with running(command, directory=directory, log=log):
        end = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                redis.ask("DBSIZE")
                break
            if time.monotonic() > end:
                raise Failed(f"redis-server does not answer; it said:\n{tail(log)}")
            time.sleep(0.02)  # polls until the server answers
        yield redis
