"""Huey on SQLite. It has no server: a client writes to the database itself, so no HTTP is in its numbers."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.peers.base import Drain, Peer, Rate, wait_done
from bench.processes import Failed, call, module, running
from bench.tracing import SyncCounter

WORKERS = 2
ALL_S = 60.0


class HueySqlite(Peer):
    name = "huey"
    requirement = "huey ~= 3.5"
    distribution = "huey"
    about = (
        "SqliteHuey(fsync=True, journal_mode='wal'), that is synchronous = FULL; no server, clients write the file; "
        f"{WORKERS} workers that look every 5 ms; no batches; a task being run is no longer in its store"
    )
    submit_clients = (1, 32)
    drains = (Drain("huey", "process"), Drain("huey", "thread", is_threads=True))

    def submit(self, directory: Path, clients: int, seconds: float) -> Rate:
        answer = self._ask(directory, "produce", clients=clients, seconds=seconds, count=0)
        waiting = _count(directory, "task")
        if waiting != answer["total"]:
            raise Failed(f"huey: {answer['total']} tasks were submitted, {waiting} are stored")
        return Rate(answer["rate"], {"p50_ms": answer["p50_ms"], "p99_ms": answer["p99_ms"]})

    def batch(self, directory: Path, size: int, seconds: float) -> Rate | None:
        return None

    def drain(self, directory: Path, drain: Drain, count: int, seconds: float) -> Rate:
        self._ask(directory, "fill", count=count)
        return self._drain(directory, drain.worker, count, seconds)

    def _drain(self, directory: Path, worker: str, count: int, seconds: float, prefix: tuple[str, ...] = ()) -> Rate:
        with running(
            [*prefix, *self._consumer(directory, worker)], directory=directory, log=directory / "consumer.log"
        ):
            return Rate(wait_done(lambda: _count(directory, "kv"), count, seconds), {"workers": WORKERS})

    def pick_up(self, directory: Path, count: int, gap_s: float) -> list[float]:
        self._ask(directory, "fill", count=0)  # makes the database
        with running(self._consumer(directory, "process"), directory=directory, log=directory / "consumer.log"):
            taken: list[float] = self._ask(directory, "pick-up", count=count, gap_s=gap_s)
        return taken

    def syncs(self, directory: Path, count: int) -> tuple[float, float]:
        self._ask(directory, "fill", count=0)
        syncs = SyncCounter(directory)
        self._ask(directory, "produce", prefix=tuple(syncs.prefix), clients=1, seconds=0.0, count=count)
        submits = syncs.count()
        syncs = SyncCounter(directory)  # strace writes its file anew
        self._drain(directory, "process", count, ALL_S, tuple(syncs.prefix))
        return submits / count * 1000, syncs.count() / count * 1000

    def _consumer(self, directory: Path, worker: str) -> list[str]:
        return [*module("bench.peers.huey_side", self.python), "consume", _path(directory), worker, str(WORKERS)]

    def _ask(self, directory: Path, command: str, *, prefix: tuple[str, ...] = (), **spec: object) -> Any:
        return call(
            [*prefix, *module("bench.peers.huey_side", self.python), command], {"path": _path(directory), **spec},
            directory=directory, log=directory / "huey.log",
        )  # fmt: skip


def _path(directory: Path) -> str:
    return str(directory / "huey.sqlite3")


def _count(directory: Path, table: str) -> int:
    """Rows of ``task`` (waiting) or ``kv`` (results)."""
    with closing(sqlite3.connect(f"file:{_path(directory)}?mode=ro", uri=True, timeout=60)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)
