"""A real node in a scratch directory: started with twistd as users do, watched from outside, stopped in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from bench.observing import children_of, cpu_s_of, rss_mib_of, written_bytes_of
from bench.processes import HOST, ROOT, Failed, bytes_below, free_port, kill, python_path, spawn, tail, wait_ended
from bench.tracing import SyncCounter

START_S = 120.0
LOOK_S = 0.01
IDLE_S = 5.0
"""Age from which a connection is made anew: the node may be about to close an idle one."""


class Node:
    """One node. ``start`` again after ``stop`` for a second life on the same store.

    :param traced: count its syncs.
    :param extra: more options for the command line (``--join``, …).
    :param tree: the checkout whose program it runs.
    :param tls: it is asked by HTTPS.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        concurrency: int,
        traced: bool = False,
        extra: tuple[str, ...] = (),
        tree: Path = ROOT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.data_dir = self.directory / "data"
        self.log = self.directory / "node.log"
        self.port = free_port()
        self.syncs = SyncCounter(self.directory) if traced else None
        self.pid = 0
        self._concurrency = concurrency
        self._extra = extra
        self._tree = tree
        self._process: Any = None
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    # --- life ---
    def start(self) -> None:
        """Start the process, without waiting for it."""
        twistd = Path(sys.executable).with_name("twistd")
        if not twistd.exists():
            raise Failed(f"there is no twistd beside {Path(sys.executable).name}: install taskqueue first")
        command = [
            *(self.syncs.prefix if self.syncs else ()), str(twistd), "-n", "taskqueue", "--node-id", self.name,
            "--http", str(self.port), "--data-dir", str(self.data_dir), "--handlers", "bench.handlers",
            "--concurrency", str(self._concurrency), *self._extra,
        ]  # fmt: skip
        extra = {"PYTHONPATH": python_path(self._tree)}
        self._process = spawn(command, directory=self.directory, log=self.log, extra=extra)
        self.pid = self._process.pid

    def wait_ready(self, begun: float) -> float:
        """Seconds from ``begun`` (``time.perf_counter``) to ``/ready``."""
        while self.look("/ready") is None:
            self.check(begun, "become ready")
            time.sleep(LOOK_S)  # polls for readiness
        took = time.perf_counter() - begun
        self.pid = int((self.data_dir / "twistd.pid").read_text())  # not that of its tracer
        return took

    def check(self, begun: float, what: str) -> None:
        """Check the process. :raises Failed: it has ended, or the deadline for ``what`` has passed."""
        if self._process.poll() is not None or time.perf_counter() - begun > START_S:
            raise Failed(f"{self.name} did not {what}; it said:\n{tail(self.log)}")

    def ask_to_stop(self) -> None:
        """Send SIGTERM, as an operator would."""
        self._hang_up()
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def wait_stopped(self) -> int:
        """Wait for its end and return the exit code; it is killed where that takes too long. Its store is whole afterwards."""
        process, self._process = self._process, None
        return 0 if process is None else wait_ended(process)  # a second signal would not find it as patient

    def crash(self) -> None:
        """Kill it with SIGKILL."""
        self._hang_up()
        process, self._process = self._process, None
        if process is not None:
            kill(process)

    # --- HTTP ---
    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """(status, JSON) over a connection that is kept. :raises OSError: nobody answers."""
        if time.monotonic() - self._used > IDLE_S:
            self._hang_up()
        self._used = time.monotonic()
        if self._connection is None:
            self._connection = (
                http.client.HTTPConnection(HOST, self.port, timeout=60)
                if self._tls is None
                else http.client.HTTPSConnection(HOST, self.port, timeout=60, context=self._tls)
            )
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException):
            self._hang_up()
            raise

    def tell(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
        """The JSON of one good answer, as by ``ask``."""
        answered, answer = self.ask(method, path, body)
        if answered != status:
            raise Failed(f"{method} {path} was answered by {self.name} with {answered}: {answer}")
        return answer

    def look(self, path: str) -> Any:
        """The JSON of a 200; None for any other answer, or none."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, answer = self.ask("GET", path)
            return answer if status == 200 else None
        return None

    # --- from outside ---
    def rss_mib(self) -> float:
        """Memory of the node itself, without its worker processes."""
        return rss_mib_of(self.pid)

    def cpu_s(self) -> float:
        """CPU seconds so far, of the node and its worker processes that live."""
        return sum(cpu_s_of(pid) for pid in (self.pid, *children_of(self.pid)))

    def workers(self) -> int:
        """Number of worker processes."""
        return len(children_of(self.pid))

    def written_bytes(self) -> int:
        """Bytes that the node has sent to the disk so far."""
        return written_bytes_of(self.pid)

    def disk_bytes(self) -> int:
        return bytes_below(self.data_dir)
