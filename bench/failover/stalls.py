"""How long a living node may seem silent: ``T_session`` must be longer, or a busy cluster would bury the living (R5).

Three nodes run and copy all that clients can give them, the largest batches among it, beside processes that burn CPU. Whenever
the leader looks, it notes how long each other node has been silent; all of them live, and are only held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.processes import ROOT
from tests.cluster.clusters import Cluster, View, Watch
from tests.cluster.replicated import HANDLERS, wait_settled
from tests.support.harness import Nodes

CONNECTIONS = 32
"""Of each of the two clients; one of them sends batches."""
BATCH, LARGEST = 100, 10_000
"""Tasks in a batch; each second one is of the largest size that is accepted."""
SHOWN_S = 0.2
_NOTE = '''"""Note for how long the leader thinks that each other node has been silent, whenever it looks."""
import os
_PATH = os.environ.get("BENCH_SILENCE")
if _PATH:
    from tq_node.cluster.liveness import Liveness
    _is_silent = Liveness.is_silent
    def is_silent(self, node, now_ms):
        with open(_PATH, "a") as file:
            file.write(f"{self.silence_ms(node, now_ms)} {self.pace.session_ms}\\n")
        return _is_silent(self, node, now_ms)
    Liveness.is_silent = is_silent
'''


class Silence(NamedTuple):
    """How long the leader thought that a living node was silent, in seconds; and what was done meanwhile."""

    seconds: float
    burners: int
    looks: int
    p50: float
    p999: float
    longest: float
    session: float
    """``T_session``."""
    tasks: int
    deaths: int
    """Living nodes that were taken for dead."""


def measured(directory: Path, seconds: float, burners: int) -> Silence:
    directory.mkdir()
    site = directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_NOTE)
    noted = directory / "silence"
    nodes = Nodes(directory)
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "BENCH_SILENCE": str(noted)}
    cluster = Cluster(nodes, options=HANDLERS, environment=environment)
    try:
        cluster.start()
        cluster.wait_whole()
        cluster.wait_ready()
        wait_settled(cluster)
        noted.write_text("")
        before = _total(cluster)
        watch = Watch(cluster.founder, cluster.ports[cluster.founder], every_s=SHOWN_S)
        watch.start()
        with _burning(burners), _clients(cluster):
            time.sleep(seconds)  # the load runs meanwhile
        watch.end()
        looks = [line.split() for line in noted.read_text().splitlines()]
        silences = sorted(int(silence) / 1000 for silence, _ in looks)
        cluster.wait_whole()
        return Silence(
            seconds, burners, len(silences), silences[len(silences) // 2], silences[int(len(silences) * 0.999)], silences[-1],
            int(looks[0][1]) / 1000, _total(cluster) - before, _deaths(sample.view for sample in watch.samples),
        )  # fmt: skip
    finally:
        nodes.close()
        cluster.close()


def _deaths(views: Iterable[View]) -> int:
    statuses = [view.statuses for view in views]
    return sum(now[name] == "down" != before.get(name) for before, now in itertools.pairwise(statuses) for name in now)


def _total(cluster: Cluster) -> int:
    answer = cluster[cluster.founder].get("/tasks/stats?scope=cluster", deadline_s=60.0).json
    return int(answer["stats"]["total"])


@contextlib.contextmanager
def _burning(count: int) -> Iterator[None]:
    with _children([sys.executable, "-c", "while True: pass"] for _ in range(count)):
        yield


@contextlib.contextmanager
def _clients(cluster: Cluster) -> Iterator[None]:
    ports = ",".join(map(str, cluster.ports.values()))
    with _children([sys.executable, "-m", "bench.failover.stalls", kind, ports] for kind in ("single", "batch")):
        yield


@contextlib.contextmanager
def _children(commands: Iterable[list[str]]) -> Iterator[None]:
    children = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) for command in commands
    ]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


# --- the client, a process of its own ---
def _body(count: int) -> bytes:
    task = {"type": "noop", "payload": "user@example.com"}
    return json.dumps(task if count == 1 else {"tasks": [task] * count}).encode()


async def _send(port: int, path: str, body_of: Callable[[], bytes]) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError, ValueError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while True:
                    body = body_of()
                    writer.write(
                        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    )
                    writer.write(body)
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    (length,) = (line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                    await reader.readexactly(int(length.split(b":")[1]))
            finally:
                writer.close()
        await asyncio.sleep(0.1)


async def _client(kind: str, ports: list[int]) -> None:
    one, some, most = _body(1), _body(BATCH), _body(LARGEST)
    largest_s = time.monotonic()

    def batch() -> bytes:
        nonlocal largest_s
        if time.monotonic() - largest_s < 1.0:
            return some
        largest_s = time.monotonic()
        return most

    path, body_of = ("/tasks/submit", lambda: one) if kind == "single" else ("/tasks/batch", batch)
    await asyncio.gather(*(_send(ports[n % len(ports)], path, body_of) for n in range(CONNECTIONS)))


if __name__ == "__main__":
    asyncio.run(_client(sys.argv[1], [int(port) for port in sys.argv[2].split(",")]))
