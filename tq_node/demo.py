"""``make run``: start a node with the simulated handlers, send ten e-mails through it, then leave it up to play with.

Needs nothing but the standard library and an installed taskqueue. Ctrl-C or SIGTERM stops the node and ends with code 0.
"""

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import quote

HOST = "127.0.0.1"
TASKS = 10
START_S = 30.0
TASKS_S = 30.0
STOP_S = 30.0
LOG_LINES_SHOWN = 30


class Stopped(Exception):
    """Ctrl-C or SIGTERM."""


class Failed(Exception):
    """What went wrong, for a person."""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 after Ctrl-C or SIGTERM, 1 with one line on stderr for everything else."""
    parser = argparse.ArgumentParser(prog="python -m tq_node.demo", description=__doc__)
    parser.add_argument("--http", type=int, default=8080, metavar="PORT", help="HTTP port of the node [default: 8080]")
    parser.add_argument("--once", action="store_true", help="stop when the ten tasks are done")
    said = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with own_foreground(), scratch_directory() as directory, node(said.http, directory) as process:
            ten_emails(said.http)
            if not said.once:
                say(what_to_try(said.http, directory))
                raise Failed(f"the node ended by itself with code {process.wait()}")
    except Stopped:
        say("\nStopped.")
    except (Failed, OSError, http.client.HTTPException) as why:
        print(f"taskqueue: {why}", file=sys.stderr)
        return 1
    return 0


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)  # stopping has begun, and has a deadline of its own
    raise Stopped


@contextlib.contextmanager
def own_foreground() -> Iterator[None]:
    """On a terminal, let Ctrl-C reach this process alone: ``make`` would end with an error of its own otherwise."""
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
    """A new directory below ``./data``, gone at the end."""
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


@contextlib.contextmanager
def node(port: int, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node on loopback, ready for tasks; stopped in order at the end."""
    refuse_taken(port)
    log = directory / "node.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
    for name in ("NODE_ID", "HTTP_ADDR", "JOIN_ADDR"):
        environment.pop(name, None)
    twistd = Path(sys.executable).with_name("twistd")
    command = [str(twistd), "-n", "taskqueue", "--http", str(port), "--data-dir", str(directory / "node-1")]
    say(f"Starting a node at http://{HOST}:{port} …")
    with log.open("wb") as sink:
        try:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        except OSError as why:
            raise Failed(f"can't start {twistd}: {why.strerror}") from None
    try:
        wait_ready(port, process, log)
        yield process
    finally:
        stop(process)


def refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as why:
            taken = isinstance(why, OSError) and why.errno == errno.EADDRINUSE
            reason = "is in use" if taken else f"can't be used ({why})"
            raise Failed(f"port {port} {reason}; choose another with: make run HTTP=8090") from None


def wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(port, "GET", "/ready")[0] == 200:
                return
        time.sleep(0.05)
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_LINES_SHOWN:])
    ended = process.poll()
    what = f"ended with code {ended}" if ended is not None else f"was not ready within {START_S:g} s"
    raise Failed(f"the node {what}; it said:\n{tail}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ten_emails(port: int) -> None:
    """Submit, look at the numbers, wait, look again, show one result."""
    say(f"\nSubmitting {TASKS} tasks of type email:")
    ids = []
    for number in range(TASKS):
        body = {"type": "email", "payload": f"user{number}@example.com"}
        status, answer = ask(port, "POST", "/tasks/submit", body)
        if status != 201:
            raise Failed(f"submit answered {status}: {answer}")
        ids.append(answer["task_id"])
        say(f"  {answer['task_id']}  {answer['status']:<10}  {body['payload']}")
    show_stats(port)
    say("\nWaiting for them:")
    begun = time.monotonic()
    for task_id in ids:
        left = max(1, round(begun + TASKS_S - time.monotonic()))
        status, task = ask(port, "GET", f"/tasks/status?id={quote(task_id)}&wait={left}", deadline_s=left + 10)
        if status != 200 or task["status"] != "completed":
            raise Failed(f"task {task_id} is not completed: {task}")
        say(f"  {task_id}  {task['status']:<10}  {task['result']}")
    say(f"  all {len(ids)} completed after {time.monotonic() - begun:.1f} s")
    show_stats(port)


def show_stats(port: int) -> None:
    _, answer = ask(port, "GET", "/tasks/stats")
    counts = answer["stats"]
    say("\nStats: " + "  ".join(f"{name} {count}" for name, count in counts.items() if count or name == "total"))


def ask(port: int, method: str, path: str, body: object = None, *, deadline_s: float = 10.0) -> tuple[int, Any]:
    """(status, JSON). :raises OSError: nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=deadline_s)
    try:
        connection.request(method, path, None if body is None else json.dumps(body).encode())
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    except json.JSONDecodeError:
        raise OSError("the answer is not JSON") from None
    finally:
        connection.close()


def say(line: str) -> None:
    print(line, flush=True)


def what_to_try(port: int, directory: Path) -> str:
    base = f"http://{HOST}:{port}"
    return f"""
The node stays up. In another terminal, try:

  curl -d '{{"type":"report","payload":"Q3","priority":9}}' {base}/tasks/submit
  curl '{base}/tasks/list?limit=5'
  curl '{base}/tasks/status?id=ID&wait=10'
  curl {base}/tasks/stats
  curl -N {base}/tasks/events
  curl {base}/metrics

Its log: {os.path.relpath(directory / "node.log")}
Ctrl-C stops it."""


if __name__ == "__main__":
    sys.exit(main())
