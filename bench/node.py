"""A real node in a scratch directory: started with twistd as users do, watched from outside, stopped in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from bench.processes import HOST, Failed, bytes_below, free_port, kill, spawn, stop, tail
from bench.tracing import SyncCounter

START_S = 120.0
POLL_S = 0.02
DRAIN_S = 180.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1024 * 1024


class Node:
    """One node. Use it as a context manager; ``start`` again after ``stop`` for a second life on the same store.

    :param traced: count its syncs.
    :param extra: more options for the command line (``--join``, …).
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "node-1",
        concurrency: int = 16,
        traced: bool = False,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.data_dir = self.directory / "data"
        self.log = self.directory / "node.log"
        self.port = free_port()
        self.syncs = SyncCounter(self.directory) if traced else None
        self.pid = 0
        self._name = name
        self._concurrency = concurrency
        self._extra = extra
        self._process: Any = None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.stop()
        elif self._process is not None:
            stop(self._process, signal_to=self.pid)

    # --- life ---
    def start(self) -> float:
        """Seconds from the start of the process to ``/ready``."""
        twistd = Path(sys.executable).with_name("twistd")
        if not twistd.exists():
            raise Failed(f"there is no twistd beside {Path(sys.executable).name}: install taskqueue first")
        command = [
            *(self.syncs.prefix if self.syncs else ()), str(twistd), "-n", "taskqueue", "--node-id", self._name,
            "--http", str(self.port), "--data-dir", str(self.data_dir), "--handlers", "bench.handlers",
            "--concurrency", str(self._concurrency), *self._extra,
        ]  # fmt: skip
        begun = time.perf_counter()
        self._process = spawn(command, directory=self.directory, log=self.log)
        self.pid = self._process.pid
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - begun > START_S:
                kill(self._process)
                raise Failed(f"the node did not become ready; it said:\n{tail(self.log)}")
            time.sleep(0.01)  # polls for readiness
        took = time.perf_counter() - begun
        self.pid = int((self.data_dir / "twistd.pid").read_text())
        return took

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", "/ready")[0] == 200
        return False

    def stop(self) -> None:
        """As an operator would; its store is whole afterwards."""
        self._hang_up()
        process, self._process = self._process, None
        if process is not None and (code := stop(process, signal_to=self.pid)) != 0:
            raise Failed(f"the node ended with code {code}; it said:\n{tail(self.log)}")

    def crash(self) -> None:
        """kill -9."""
        self._hang_up()
        process, self._process = self._process, None
        kill(process)

    # --- HTTP ---
    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """(status, JSON) over a connection that is kept. :raises OSError: nobody answers."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException):
            self._hang_up()
            raise

    def tell(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
        """As ``ask``, for one good answer only."""
        answered, answer = self.ask(method, path, body)
        if answered != status:
            raise Failed(f"{method} {path} was answered with {answered}: {answer}")
        return answer

    def stats(self) -> dict[str, int]:
        counts: dict[str, int] = self.tell("GET", "/tasks/stats")["stats"]
        return counts

    def pause(self, queue: str = "default") -> None:
        self.tell("POST", f"/tasks/pause?queue={quote(queue)}")

    def resume(self, queue: str = "default") -> None:
        self.tell("POST", f"/tasks/resume?queue={quote(queue)}")

    # --- what must add up ---
    def verify_total(self, wanted: int) -> None:
        """As many tasks in the store as were answered with 201."""
        total = self.stats()["total"]
        if total != wanted:
            raise Failed(f"{wanted} tasks were acknowledged, /tasks/stats counts {total}")

    def wait_completed(self, wanted: int) -> float:
        """``time.perf_counter`` at which ``/tasks/stats`` first showed them all completed, each with its status recorded."""
        end = time.perf_counter() + DRAIN_S
        while (counts := self.stats())["completed"] < wanted:
            if time.perf_counter() > end or counts["total"] < wanted:
                raise Failed(f"{wanted} tasks were submitted, after at most {DRAIN_S:g} s the node has {counts}")
            time.sleep(POLL_S)  # polls until the queue has drained
        at = time.perf_counter()
        if counts["completed"] != wanted or counts["total"] != wanted:
            raise Failed(f"{wanted} tasks were submitted, /tasks/stats says {counts}")
        for task in self.tell("GET", "/tasks/list?status=completed&limit=5")["tasks"]:
            if task.get("result") != 1 or task["attempt"] != 1:
                raise Failed(f"a completed task without its result: {task}")
        return at

    # --- from outside ---
    def rss_mib(self) -> float:
        """Of the node itself, without its worker processes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def cpu_s(self) -> float:
        """CPU seconds so far, of the node and its worker processes that live."""
        return sum(_cpu_s(pid) for pid in (self.pid, *_children(self.pid)))

    def workers(self) -> int:
        """How many worker processes there are."""
        return len(_children(self.pid))

    def written_bytes(self) -> int:
        """What the node has sent to the disk so far."""
        for line in Path(f"/proc/{self.pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
        return 0

    def disk_mib(self) -> float:
        return bytes_below(self.data_dir) / _MIB


def _cpu_s(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
