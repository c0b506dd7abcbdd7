"""Real ``twistd -n taskqueue`` processes for tests: start, wait until ready, ask over HTTP, hurt, stop, look at the log.

Everything here blocks, with a deadline. Ready means that ``/ready`` says so.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.support.crowded import stretched
from tq_node import limits

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
TWISTD = str(Path(sys.executable).with_name("twistd"))
READY_S = 30.0
EXIT_S = 40.0
HTTP_S = 15.0
AHEAD = PROJECT / "tests" / "support" / "ahead"
"""Has the ``sitecustomize`` of processes whose wall clock is moved."""
PATIENCE = 4
"""Deadlines are told for an idle machine; beside other load all takes so many times as long. Only a failure waits for it."""
ASKED_EVERY_S, ASKED_EVERY_S_MAX = 0.02, 0.25
_PORT_OFFSETS = (0, 1_000, 2_000)
_TROUBLE = re.compile(r"Traceback \(most recent call last\)|\[[^\]\n]*#(?:warn|error|critical)\]|Unhandled")
HELD = re.compile(r"the reactor was held for ([\d.]+) s.*")
"""A node's own word that one call of its reactor took over 100 ms of CPU: no load beside excuses that."""
_OURS = re.compile(r"TQ_|(?:NODE_ID|HTTP_ADDR|JOIN_ADDR)$")
_random = random.Random()


class TimedOut(AssertionError):
    """A deadline of the harness has passed."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Ended(NamedTuple):
    """A command that has run to its end."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port that is free on loopback, with the two that are counted from it; below the range the kernel hands out."""
    for _ in range(1_000):
        port = _random.randrange(12_000, 30_000)
        if all(_is_free(port + offset) for offset in _PORT_OFFSETS):
            return port
    raise TimedOut("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def until(condition: Callable[[], T], *, deadline_s: float = HTTP_S, what: str = "") -> T:
    """Call ``condition`` until it gives something true, and return that. A file that is not there is not true.

    What is dear to ask is asked less often, so that the asking is not what keeps the nodes busy.
    """
    began_s = time.monotonic()
    end_s = began_s + deadline_s * PATIENCE
    while True:
        with contextlib.suppress(FileNotFoundError):
            if result := condition():
                return result
        now_s = time.monotonic()
        if now_s > end_s:
            raise TimedOut(f"not within {deadline_s * PATIENCE:g} s: {what or condition}")
        time.sleep(min(max(ASKED_EVERY_S, 3 * (now_s - began_s)), ASKED_EVERY_S_MAX))
        began_s = time.monotonic()


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without our variables, with the project importable from anywhere."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.match(name)}
    if "FAKETIME_TIMESTAMP_FILE" in extra:
        kept.pop("FAKETIME", None)  # of make test-ahead; it would win over the file
    path = str(PROJECT)
    if any("faketime" in environment.get("LD_PRELOAD", "") for environment in (kept, extra)):
        kept["TESTS_AHEAD"] = str(AHEAD)
        path += os.pathsep + str(AHEAD)
    return kept | {"PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"} | extra


def group_members(group: int) -> list[int]:
    """Living processes of a process group, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                _, _, rest = (entry / "stat").read_text().rpartition(")")
                state, _, its_group, *_ = rest.split()
                if int(its_group) == group and state != "Z":
                    members.append(int(entry.name))
    return sorted(members)


class NodeHttp:
    """A node as its clients see it."""

    tls: ssl.SSLContext | None = None
    """For HTTPS."""

    def __init__(self, http_port: int) -> None:
        self.http_port = http_port
        self.token = ""
        """Shown with each request, where one is given."""

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
        deadline_s: float = HTTP_S,
    ) -> Answer:
        """``body`` that is not bytes is sent as JSON. :raises OSError: nobody listens, or the connection broke."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        there = port or self.http_port
        connection = (
            http.client.HTTPConnection("127.0.0.1", there, timeout=deadline_s)
            if self.tls is None
            else http.client.HTTPSConnection("127.0.0.1", there, timeout=deadline_s, context=self.tls)
        )
        try:
            shown = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request(method, path, sent, shown | dict(headers or {}))
            response = connection.getresponse()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)

    def submit(self, task_type: str = "email", payload: object = "user@example.com", **fields: object) -> str:
        answer = self.post("/tasks/submit", {"type": task_type, "payload": payload, **fields})
        assert answer.status in (200, 201), answer
        task_id = answer.json["task_id"]
        assert isinstance(task_id, str)
        return task_id

    def status(self, task_id: str, *, wait_s: float = 0) -> Any:
        answer = self.get(f"/tasks/status?id={task_id}&wait={wait_s:g}", deadline_s=wait_s + HTTP_S)
        assert answer.status == 200, answer
        return answer.json

    @property
    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/ready", deadline_s=2.0).status == 200
        return False


class NodeProcess(NodeHttp):
    """One node, in the foreground, as a process group of its own."""

    def __init__(
        self, arguments: list[str], *, http_port: int, cwd: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        super().__init__(http_port)
        self.log_path = log
        self.command = [TWISTD, "-n", "taskqueue", *arguments]
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"node {self.pid} at {self.http_port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self, deadline_s: float = READY_S) -> NodeProcess:
        until(self._ready_now, deadline_s=deadline_s, what=f"{self} ready")
        return self

    def _ready_now(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"{self} ended with code {self.process.returncode}:\n{self.log_tail()}")
        return self.is_ready

    # --- what can happen to a process ---
    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill9(self) -> None:
        """SIGKILL to the node alone, as ``kill -9`` does; its children are left to notice by themselves."""
        self.signal(signal.SIGKILL)
        self.process.wait(EXIT_S)

    def terminate(self, deadline_s: float = EXIT_S) -> int:
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(deadline_s)

    def wait(self, deadline_s: float = EXIT_S) -> int:
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{self} still runs after {deadline_s:g} s:\n{self.log_tail()}") from None

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def cont(self) -> None:
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill whatever is left of the node and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(EXIT_S)

    # --- the log ---
    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    def assert_log_is_clean(self, allow: str = r"the reactor was blocked for") -> None:
        """No traceback, warning or error in the log but lines that match ``allow``.

        How late the reactor runs says more about the machine that the tests share than about the node.
        """
        bad = [line for line in self.log.splitlines() if _TROUBLE.search(line) and not re.search(allow, line)]
        assert not bad, "\n".join([*bad, "--- log ---", self.log_tail(200)])


class Nodes:
    """Starts nodes below one directory and remembers them. ``directory`` is the working directory unless said otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[NodeProcess] = []
        self._logs = (directory / f"node-{number}.log" for number in itertools.count(1))

    def start(
        self,
        *arguments: str,
        http_port: int | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        say_http: bool = True,
        wait: bool = True,
    ) -> NodeProcess:
        """Start a node on a free port, ready on return unless ``wait`` is off.

        ``say_http=False`` leaves ``--http`` away: the environment or the file says it, and ``http_port`` says which it is.
        """
        port = http_port if http_port is not None else free_port()
        said = ["--http", str(port)] if say_http else []
        node = NodeProcess(
            [*said, *arguments],
            http_port=port,
            cwd=cwd or self.directory,
            log=next(self._logs),
            environment=clean_environment(**(environment or {})),
        )
        self.started.append(node)
        return node.wait_ready() if wait else node

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        daemon: bool = False,
        deadline_s: float = EXIT_S,
    ) -> Ended:
        """A command line that is expected to end by itself."""
        with self._killed_in_time(deadline_s):
            done = subprocess.run(
                [TWISTD, *([] if daemon else ["-n"]), "taskqueue", *arguments],
                cwd=cwd or self.directory,
                env=clean_environment(**(environment or {})),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=deadline_s,
                check=False,
            )
        return Ended(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def _killed_in_time(self, deadline_s: float) -> Iterator[None]:
        try:
            yield
        except subprocess.TimeoutExpired as why:
            raise TimedOut(f"still runs after {deadline_s:g} s: {why.cmd}\n{why.stdout!r}\n{why.stderr!r}") from None

    def holds(self) -> list[str]:
        """Where nodes say that their reactor was held."""
        return [
            f"{node}: {line[0]}"
            for node in self.started
            if node.log_path.exists()
            for line in HELD.finditer(node.log)
            if float(line[1]) >= stretched(limits.LOOP_HELD_MS / 1000)
        ]

    def close(self) -> None:
        for node in self.started:
            node.close()
