"""``make run``: three nodes here, fifteen tasks, forty-five copies, one node killed and back.

Then up to play with, until Ctrl-C or SIGTERM stops the nodes and ends it with code 0. Needs
nothing but the standard library and an installed taskqueue."""

from __future__ import annotations

import argparse
import contextlib
import errno
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

T = TypeVar("T")
Task = tuple[str, str]
"""Type and payload."""

HOST = "127.0.0.1"
NODES = 3
PEER_OFFSET = 1_000
TASKS: Sequence[Task] = (
    ("email", "user1@example.com"),
    ("image", "photo1.jpg"),
    ("report", "sales"),
    ("email", "user2@example.com"),
    ("backup", "database"),
    ("image", "photo2.jpg"),
    ("email", "user3@example.com"),
    ("report", "inventory"),
    ("cleanup", "old files"),
    ("email", "user4@example.com"),
    ("image", "photo3.jpg"),
    ("email", "user5@example.com"),
    ("backup", "settings"),
    ("report", "visitors"),
    ("email", "user6@example.com"),
)
WHOLE_S = 60.0
"""Bound of the time until three nodes have all copies, at the start and after a return."""
COPIES_S = 10.0
TASKS_S = 30.0
TAKE_OVER_S = 20.0
STOP_S = 30.0
BACK_AFTER_S = 3.0
"""Pause before a killed node is started again, while the nodes stay up."""
LOOK_S = 0.02
WATCH_S = 0.2
LOG_LINES_SHOWN = 30


class Stopped(Exception):
    """The user asked to stop, by Ctrl-C or SIGTERM."""


class Failed(Exception):
    """The demonstration failed; the message is for a person."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration. 0 after Ctrl-C or SIGTERM; 1, with a line on stderr, for failures."""
    parser = argparse.ArgumentParser(prog="python -m tq_node.demo", description=__doc__)
    parser.add_argument(
        "--http", type=int, default=8080, metavar="PORT",
        help="HTTP port of the first node; the others have the next two, peers talk on these + 1000 [default: 8080]",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="stop at the end of the demonstration")
    parser.add_argument(
        "--tls", action="store_true", help="by HTTPS, and TLS between peers, with certificates made for this run"
    )
    said = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with own_foreground(), scratch_directory() as directory:
            folder = make_certificates(directory / "certificates") if said.tls else None
            present(said.http, directory, folder, is_once=said.once)
    except Stopped:
        say("\nStopped.")
    except (Failed, OSError, http.client.HTTPException) as why:
        print(f"taskqueue: {why}", file=sys.stderr)
        return 1
    return 0


def present(first_port: int, directory: Path, folder: Path | None, *, is_once: bool) -> None:
    with running(first_port, directory, folder) as nodes:
        demonstrate(nodes)
        if not is_once:
            say(what_to_try(nodes))
            stay_up(nodes)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # stopping has begun, and has a deadline of its own
    raise Stopped


# --- surroundings ---
@contextlib.contextmanager
def own_foreground() -> Iterator[None]:
    """Make Ctrl-C reach this process alone: ``make`` would end with its own error otherwise."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        before = os.tcgetpgrp(terminal)
    except OSError:
        yield
        return
    if before != os.getpgrp() or before == os.getpid():
        os.close(terminal)
        yield
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or tcsetpgrp would stop this process
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z would stop it alone, and leave the shell waiting
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the terminal may have gone
            os.tcsetpgrp(terminal, before)
        os.close(terminal)


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory below ``./data``, removed at the end."""
    parent = Path.cwd() / "data"
    try:
        parent.mkdir(exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="demo-", dir=parent))
    except OSError as why:
        raise Failed(f"can't make a scratch directory in {parent}: {why.strerror}") from None
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()  # only if nothing else is in it


def make_certificates(folder: Path) -> Path:
    """Make an authority, and a certificate of each node, as an operator would."""
    script = Path(__file__).parents[1] / "deploy" / "make-cluster-ca"
    if not script.exists():
        raise Failed("--tls needs deploy/make-cluster-ca, which comes with the source: run it from a checkout")
    nodes = [f"node-{number + 1}=localhost,{HOST}" for number in range(NODES)]
    say(f"deploy/make-cluster-ca {os.path.relpath(folder)} {' '.join(nodes)}")
    made = subprocess.run(
        [sys.executable, str(script), str(folder), *nodes], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise Failed(made.stderr.strip())
    return folder


# --- nodes ---
class Node:
    """One ``twistd`` on loopback, with the command that a person would type in ``directory``.

    :param folder: of certificates; None: plain HTTP."""

    def __init__(self, number: int, port: int, first_port: int, directory: Path, folder: Path | None) -> None:
        self.name = f"node-{number}"
        self.port = port
        scheme, self._tls, certificates = "http", None, list[str]()
        if folder is not None:
            scheme, self._tls = "https", ssl.create_default_context(cafile=folder / "ca.crt")
            files = {kind: f"{os.path.relpath(folder, directory)}/{self.name}.{kind}" for kind in ("crt", "key")}
            authority = f"{os.path.relpath(folder, directory)}/ca.crt"
            for side in ("http", "peer"):
                certificates += [f"--{side}-cert", files["crt"], f"--{side}-key", files["key"]]
            certificates += ["--peer-ca", authority, "--ca", authority]
        self.authority = None if folder is None else folder / "ca.crt"
        self.url = f"{scheme}://{HOST}:{port}"
        self.log = directory / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        first = f"localhost:{first_port}" if folder is None else f"https://localhost:{first_port}"
        joins = [] if port == first_port else ["--join", first]
        self.arguments = ["-n", "taskqueue", "--node-id", self.name, "--http", str(port), *joins, *certificates]

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
        for name in ("NODE_ID", "HTTP_ADDR", "JOIN_ADDR"):
            environment.pop(name, None)
        twistd = Path(sys.executable).with_name("twistd")
        with self.log.open("ab") as sink:
            try:
                self.process = subprocess.Popen(
                    [str(twistd), *self.arguments], cwd=self._directory, env=environment, stdin=subprocess.DEVNULL,
                    stdout=sink, stderr=sink, start_new_session=True,
                )  # fmt: skip
            except OSError as why:
                raise Failed(f"can't start {twistd}: {why.strerror}") from None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, negative where a signal ended it."""
        return self.process.poll() if self.process is not None else None

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Stop the process in order; by force, with its worker processes, if that takes long."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES_SHOWN:])

    def ask(self, method: str, path: str, body: object = None, *, deadline_s: float = 10.0) -> tuple[int, Any]:
        """Send a request; its status and JSON; raises ``OSError`` if there is no answer."""
        connection = (
            http.client.HTTPConnection(HOST, self.port, timeout=deadline_s)
            if self._tls is None
            else http.client.HTTPSConnection(HOST, self.port, timeout=deadline_s, context=self._tls)
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode())
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except json.JSONDecodeError:
            raise OSError("the answer is not JSON") from None
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a 200; None for any other answer, or none."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, answer = self.ask("GET", path)
            return answer if status == 200 else None
        return None


@contextlib.contextmanager
def running(first_port: int, directory: Path, folder: Path | None) -> Iterator[list[Node]]:
    """Start three nodes, wait until each has all copies, and stop them in order at the end."""
    nodes = [Node(number + 1, first_port + number, first_port, directory, folder) for number in range(NODES)]
    for node in nodes:
        refuse_taken(node.port, first_port)
    for node in nodes:
        refuse_taken(node.port + PEER_OFFSET, first_port)
    say(f"Starting three nodes in {os.path.relpath(directory)}:")
    try:
        for node in nodes:
            say(f"  twistd {' '.join(node.arguments)}")
            node.start()
        begun = time.monotonic()
        eventually(lambda: is_whole(nodes), nodes, WHOLE_S, "three nodes with copies of every partition")
        say(f"  one cluster, every partition on all three, after {time.monotonic() - begun:.1f} s")
        yield nodes
    finally:
        for node in reversed(nodes):
            node.stop()


def refuse_taken(port: int, first_port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as why:
            taken = isinstance(why, OSError) and why.errno == errno.EADDRINUSE
            reason = "is in use" if taken else f"can't be used ({why})"
            other = 8090 if first_port != 8090 else 8070
            raise Failed(f"port {port} {reason}; choose others with: make run HTTP={other}") from None


def is_whole(nodes: Sequence[Node]) -> bool:
    """Whether each node shows all active and ready, all partitions in sync, leads evenly shared."""
    for node in nodes:
        shown, held = node.get("/cluster"), node.get("/cluster/partitions")
        if node.get("/ready") is None or shown is None or held is None:
            return False
        statuses = [one["status"] for one in shown["cluster"]["nodes"] if one["voter"]]
        if statuses != ["active"] * len(nodes):
            return False
        partitions = held["partitions"]
        if any(len(one["in_sync"]) < len(nodes) for one in partitions):
            return False
        led = Counter(one["primary"] for one in partitions)
        if led[None] or max(led.values()) > -(-len(partitions) // len(nodes)):
            return False
    return True


def eventually(look: Callable[[], T], nodes: Sequence[Node], within_s: float, what: str) -> T:
    """The first true result of ``look``; raises ``Failed``: none in time, or a node has ended."""
    end = time.monotonic() + within_s
    while True:
        if found := look():
            return found
        for node in nodes:
            if node.exit_code is not None:
                raise Failed(f"{node.name} ended with code {node.exit_code}; it said:\n{node.log_tail()}")
        if time.monotonic() > end:
            logs = "\n".join(f"--- {node.name}\n{node.log_tail()}" for node in nodes)
            raise Failed(f"not within {within_s:g} s: {what}; the nodes said:\n{logs}")
        time.sleep(LOOK_S)


# --- the demonstration ---
def demonstrate(nodes: list[Node]) -> None:
    ids = submit_all(nodes)
    show_copies(nodes, len(ids))
    wait_for_all(nodes, ids)

    victim = leader(nodes)
    others = [node for node in nodes if node is not victim]
    say(f"\nkill -9 {victim.pid}   # {victim.name}, the leader, without a warning")
    victim.kill()
    begun = time.monotonic()
    helper = others[0]
    say("\nA new task, to a survivor:")
    task = {"id": "sent-while-one-is-down", "type": "email", "payload": "on-call@example.com"}
    answer = eventually(partial(accepted, helper, task), others, TAKE_OVER_S, "a new task accepted")
    say(f"  {task['id']}  accepted by {helper.name} {time.monotonic() - begun:.2f} s after the kill")
    assert isinstance(answer["task_id"], str)
    say(f"The {len(ids)} from before, at {helper.name}:")
    for task_id in ids:
        eventually(partial(is_completed, helper, task_id), others, TAKE_OVER_S, f"{task_id} readable")
    say(f"  all {len(ids)} there and completed, {time.monotonic() - begun:.2f} s after the kill")
    ids.append(answer["task_id"])
    show_copies(others, len(ids))

    say(f"\n{victim.name} comes back, with the same command:")
    say(f"  twistd {' '.join(victim.arguments)}")
    victim.start()
    begun = time.monotonic()
    eventually(lambda: is_whole(nodes), nodes, WHOLE_S, f"{victim.name} back, with all copies in sync")
    say(f"  in sync again after {time.monotonic() - begun:.1f} s")
    show_copies(nodes, len(ids))


def submit_all(nodes: list[Node]) -> list[str]:
    """Submit the tasks, to each node in turn; returns their ids."""
    say(f"\nSubmitting {len(TASKS)} tasks, each node in turn:")
    ids = []
    for number, (type_, payload) in enumerate(TASKS):
        node = nodes[number % len(nodes)]
        task = {"type": type_, "payload": payload}
        answer = eventually(partial(accepted, node, task), nodes, TAKE_OVER_S, f"task {number + 1} accepted")
        ids.append(answer["task_id"])
        say(f"  {answer['task_id']}  {type_:<8} {payload:<18} to {node.name}, primary {answer['node']}")
    return ids


def show_copies(nodes: Sequence[Node], tasks: int) -> None:
    """Show each node's counts: every task, in the same states, on replicas a moment later."""
    wanted = tasks * len(nodes)

    def counted() -> list[dict[str, Any]] | None:
        answers = [node.get("/tasks/stats") for node in nodes]
        if not all(answers) or sum(one["stats"]["total"] for one in answers) != wanted:
            return None
        return answers if all(one["stats"] == answers[0]["stats"] for one in answers) else None

    say("\nCopies:")
    for answer in eventually(counted, nodes, COPIES_S, f"{wanted} copies of {tasks} tasks") or ():
        counts = {name: count for name, count in answer["stats"].items() if count}
        states = "  ".join(f"{name} {count}" for name, count in counts.items() if name != "total")
        roles = f"{answer['primary']['total']} as primary, {answer['replica']['total']} as replica"
        say(f"  {answer['node']}: {counts['total']} ({roles})  {states}")
    say(f"  {tasks} tasks on {len(nodes)} nodes: {wanted} copies")


def wait_for_all(nodes: Sequence[Node], ids: Sequence[str]) -> None:
    say("\nWaiting for them:")
    begun = time.monotonic()
    for number, task_id in enumerate(ids):
        left = max(1, round(begun + TASKS_S - time.monotonic()))
        node = nodes[number % len(nodes)]
        code, task = node.ask("GET", f"/tasks/status?id={quote(task_id)}&wait={left}", deadline_s=left + 10)
        if code != 200 or task["status"] != "completed":
            raise Failed(f"task {task_id} is not completed: {task}")
        say(f"  {task_id}  {task['result']:<34} by {task['worker']}")
    say(f"  all {len(ids)} completed after {time.monotonic() - begun:.1f} s")


def leader(nodes: Sequence[Node]) -> Node:
    shown = nodes[0].get("/cluster")
    name = shown["cluster"]["leader"] if shown is not None else None
    return next((node for node in nodes if node.name == name), nodes[0])


def accepted(node: Node, task: dict[str, str]) -> Any:
    """Submit a task. None: refused for now; it did nothing or has an id, so may be sent again."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        code, answer = node.ask("POST", "/tasks/submit", task)
        if code in (200, 201):
            return answer
        if code not in (429, 503):
            raise Failed(f"submit answered {code}: {answer}")
    return None


def is_completed(node: Node, task_id: str) -> bool:
    """Whether the task is completed, by a confirmed read; False: no node answers for it yet."""
    code, task = node.ask("GET", f"/tasks/status?id={quote(task_id)}")
    if code not in (200, 503):
        raise Failed(f"{task_id} was completed, and now {node.name} answers {code}: {task}")
    return bool(code == 200 and task["status"] == "completed")


# --- up ---
def what_to_try(nodes: Sequence[Node]) -> str:
    first, last = nodes[0], nodes[-1]
    pages = "\n".join(f"  {node.name}  {node.url}  pid {node.pid:<8} {os.path.relpath(node.log)}" for node in nodes)
    curl = "curl" if first.authority is None else f"curl --cacert {os.path.relpath(first.authority)}"
    return f"""
The nodes stay up. Their pages, processes and logs:

{pages}

In another terminal, at any of them:

  {curl} -d '{{"type":"report","payload":"Q3","priority":9}}' {last.url}/tasks/submit
  {curl} '{first.url}/tasks/status?id=ID&wait=10'
  {curl} '{first.url}/tasks/list?scope=cluster&limit=5'
  {curl} {first.url}/tasks/stats
  {curl} {first.url}/cluster
  {curl} -N '{first.url}/tasks/events?scope=cluster'
  {curl} {first.url}/metrics
  kill -9 {last.pid}

One that is killed is started again after {BACK_AFTER_S:g} s. Ctrl-C stops them all."""


def stay_up(nodes: Sequence[Node]) -> NoReturn:
    """Watch the nodes until a signal: a killed one is started again, any other end is a failure."""
    back_at: dict[str, float] = {}
    while True:
        now = time.monotonic()
        for node in nodes:
            code = node.exit_code
            if code is None:
                continue
            if code >= 0:
                raise Failed(f"{node.name} ended by itself with code {code}; it said:\n{node.log_tail()}")
            if node.name not in back_at:
                back_at[node.name] = now + BACK_AFTER_S
                say(f"{node.name} was ended by signal {-code}; it is started again in {BACK_AFTER_S:g} s")
            elif now >= back_at[node.name]:
                del back_at[node.name]
                node.start()
                say(f"{node.name} is started again: pid {node.pid}")
        time.sleep(WATCH_S)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
