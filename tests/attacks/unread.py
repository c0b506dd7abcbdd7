"""A4 and A11: answers and streams that nobody reads."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable

from tests.attacks.harness import Stage, attack

SMALL = 4_096
"""A receive buffer that is full soon."""


def hold_open(stage: Stage, seconds: float) -> None:
    """Nothing is read meanwhile. ``/health`` is asked all the time, by the probe."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert stage.node.is_running
        time.sleep(0.1)  # polls that the node lives


def big_task(stage: Stage) -> str:
    return stage.node.submit(payload="x" * 1_000_000, delay=86_400)


def unread(stage: Stage, connections: int, request: Callable[[], bytes], count: int, seconds: float = 3.0) -> None:
    for _ in range(connections):
        connection = stage.connect(receive_buffer=SMALL)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            connection.send(request() * count)
    hold_open(stage, seconds)


def get(path: str, *, plain: bool) -> bytes:
    """``plain``: as the hot way takes it; else with a header that it does not know."""
    more = "" if plain else "X-Other: 1\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


@attack("A4 300 pipelined reads of a 1 MB task, unread, hot way", is_long=True)
def pipelined_hot(stage: Stage) -> None:
    path = f"/tasks/status?id={big_task(stage)}"
    unread(stage, 1, lambda: get(path, plain=True), 300)


@attack("A4 300 pipelined reads of a 1 MB task, unread, long way", is_long=True)
def pipelined(stage: Stage) -> None:
    path = f"/tasks/status?id={big_task(stage)}"
    unread(stage, 1, lambda: get(path, plain=False), 300)


@attack("A4 200 connections with 40 reads each, unread, both ways")
def many_connections(stage: Stage) -> None:
    path = f"/tasks/status?id={big_task(stage)}"
    unread(stage, 100, lambda: get(path, plain=True), 40)
    unread(stage, 100, lambda: get(path, plain=False), 40)


def events_fill(stage: Stage) -> None:
    task = {"type": "t" * 100, "queue": "q" * 100, "delay": 86_400}
    for _ in range(2):
        answer = stage.node.post("/tasks/batch", {"tasks": [task] * 5_000}, deadline_s=120)
        assert answer.json["accepted"] == 5_000


@attack("A11 50 stalled streams that replay 10,000 events", prepare=events_fill)
def stalled_streams(stage: Stage) -> None:
    connection = stage.connect()
    connection.sendall(get("/tasks/events", plain=True))
    task = {"type": "email", "delay": 86_400}
    stage.node.post("/tasks/submit", task)
    received = b""
    while b"\nid: " not in received:
        received += connection.recv(65_536)
    last = int(received.partition(b"\nid: ")[2].partition(b"\n")[0])
    connection.close()
    request = b"GET /tasks/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: %d\r\n\r\n" % (last - 9_900)
    unread(stage, 50, lambda: request, 1)
    for _ in range(20):
        stage.node.post("/tasks/submit", task)
    answer = stage.node.get("/tasks/stats")
    assert answer.status == 200
