"""What a cluster goes through so that its peers say all that they can say to one another: the same story for each release."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path

from tests.cluster.replicated import NAMES, wait_copies, wait_ended
from tests.support.harness import until
from tests.upgrade.versions import VersionedCluster

OPTIONS = ("--partitions", "8", "--stop-timeout", "1")
BIG = 16
"""Payloads of 300 KB: with so many on eight partitions the log is trimmed, and a copy that is new gets a snapshot."""


def live(cluster: VersionedCluster) -> None:
    """Made with ``OPTIONS``. Nothing runs before; at the end nothing runs any more.

    A founder with tasks, so that who joins gets snapshots, and attempts that go on at a node that no longer leads their
    partition; calls of every kind from every node; orders; a death and a return; an end in order.
    """
    assert cluster.taps is not None
    cluster.start("node-1")
    first = cluster["node-1"].wait_ready()
    for number in range(BIG):
        first.submit("quick", "x" * 300_000, id=f"before-{number}")
    wait_ended(cluster)
    time.sleep(1.0)  # rows are written behind the log, which is trimmed after that
    for number in range(8):
        first.submit("brief", 12, id=f"brief-{number}", max_attempts=1)
        first.submit("brief", -12, id=f"broken-{number}", max_attempts=1)
    stopped = [first.submit("held", number, id=f"stopped-{number}") for number in range(8)]
    cluster.start("node-2", "node-3")
    whole(cluster)
    until(lambda: len(shares(cluster)) == 3, deadline_s=30, what="primaries on each node")
    for task in stopped:  # they run at node-1, whoever leads them by now
        _done(cluster, "node-2", f"/tasks/cancel?id={task}")
    for name in NAMES:
        _ask_for_everything(cluster, name)
    leader = cluster.leader()
    victim, other = (name for name in NAMES if name != leader)
    _done(cluster, other, "/cluster/rebalance", 202)
    whole(cluster)
    # A death and what comes of it: evidence, new epochs, catching up.
    cluster[victim].stop()
    cluster.taps.refuse(victim)
    cluster[victim].kill9()
    cluster.wait_gone(victim)
    for number in range(20):
        _done(cluster, other, "/tasks/submit", 201, {"id": f"without-{number}", "type": "quick"})
    cluster.taps.listen(victim)
    cluster.start(victim)
    whole(cluster)
    wait_ended(cluster)
    # Attempts that are released; an order that travels; then the leader's own hand-over.
    for number in range(8):
        _done(cluster, other, "/tasks/submit", 201, {"id": f"released-{number}", "type": "held"})
    _replace_secret(cluster)
    leader = cluster.leader()
    other, third = (name for name in NAMES if name != leader)
    _done(cluster, other, f"/cluster/shutdown?node={third}", 202)
    assert cluster[third].wait() == 0
    cluster.stop(leader, other)


def _replace_secret(cluster: VersionedCluster) -> None:
    """Open connections are proven anew; the last thing before the end, so that no other is proven by the new secret."""
    if "--secret-file" not in cluster._options:
        return
    file = Path(cluster._options[cluster._options.index("--secret-file") + 1])
    old, new = file.read_text(), "what they prove that they know from now on, the last of it\n"
    for content in (old + new, new + old):
        file.write_text(content)
        time.sleep(2)  # each node looks every half a second; nothing outside shows that it has


def whole(cluster: VersionedCluster) -> None:
    """All members are active, all copies in sync."""
    cluster.wait_whole()
    cluster.wait_ready()
    wait_copies(cluster, partition_count=8)


def shares(cluster: VersionedCluster) -> Counter[str | None]:
    return Counter(shown["primary"] for shown in cluster.partitions() if shown["primary"] is not None)


def _done(cluster: VersionedCluster, name: str, path: str, status: int = 200, body: object = None) -> None:
    """Again while partitions change hands or a leader is chosen: all that is asked here may be repeated."""
    until(
        lambda: cluster[name].post(path, body).status in (status, 200, 409),
        deadline_s=30,
        what=f"{path} at {name}: {body or ''}",
    )


def _ask_for_everything(cluster: VersionedCluster, name: str) -> None:
    """Ids fall on all partitions, so that each kind of call goes to the other two nodes as well."""
    node = cluster[name]
    numbers = range(8)
    _done(cluster, name, f"/tasks/pause?queue=halted-{name}")
    batch: list[dict[str, object]] = [
        {"id": f"{name}-{kind}-{n}", "type": kind, "payload": n}
        for kind in ("quick", "talks", "flaky", "fails", "apart")
        for n in numbers
    ]
    batch += [{"id": f"{name}-big-{n}", "type": "quick", "payload": "x" * 3_000, "tags": {"n": "1"}} for n in numbers]
    batch += [{"id": f"{name}-later-{n}", "type": "quick", "delay": 3600} for n in numbers]
    answer = node.post("/tasks/batch", {"tasks": batch}, deadline_s=60)
    assert answer.json["accepted"] == len(batch), answer
    running = [node.submit("held", n, id=f"{name}-held-{n}") for n in numbers]
    for task in running:
        until(lambda task=task: node.status(task)["status"] == "processing", deadline_s=30, what=f"{task} runs")  # type: ignore[misc]
    time.sleep(1.5)  # notes are sent once a second
    for task in [*running, *(f"{name}-later-{n}" for n in numbers)]:
        _done(cluster, name, f"/tasks/cancel?id={task}")
        assert node.post(f"/tasks/cancel?id={task}").status == 409
    for n in numbers:
        assert node.status(f"{name}-fails-{n}", wait_s=30)["status"] == "failed"
        _done(cluster, name, f"/tasks/retry?id={name}-fails-{n}")
        assert node.get(f"/tasks/status?id={name}-nobody-{n}").status == 404
    assert node.get("/tasks/list?scope=cluster&limit=5&sort=-created_at").status == 200
    assert node.get("/tasks/stats?scope=cluster").status == 200
    _done(cluster, name, f"/tasks/resume?queue=halted-{name}")
    _hear_events(node.http_port)


def _hear_events(http_port: int) -> None:
    """Of the whole cluster, for a moment."""
    with socket.create_connection(("127.0.0.1", http_port), 10) as stream:
        stream.sendall(b"GET /tasks/events?scope=cluster HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stream.recv(1_000)
        time.sleep(1.0)
