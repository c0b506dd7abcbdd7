"""F24, F30: a primary that is cut off from its peers and keeps its own clients; a node that is away for longer than its lease."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import (
    NAMES,
    PROCESS_HANDLERS,
    MakeCluster,
    compare_at_rest,
    every_task,
    ids_in,
    kill_all,
    led_by,
    seed_of,
    started,
    wait_ended,
    wait_quiet,
    wait_settled,
)
from tests.support.harness import until
from tests.support.history import Call, History, assert_sound
from tests.support.load import Client

pytestmark = pytest.mark.cluster

LEASE_S = 15.0
LOST_CALL_S = 15.0
"""Of a client that waits for whatever the node has to say: it gives a write up after 10 s itself."""
FAILOVER_S = 15.0


class OwnClients:
    """They know only the one node, and go on asking it: strong reads, local reads, new tasks; each in a thread of its own."""

    def __init__(self, cluster: Cluster, name: str, history: History, tasks: list[str], ids: Iterator[str]) -> None:
        self.over = threading.Event()
        self.heard: list[tuple[float, Call]] = []
        """With the time when the call was over, whatever came of it."""
        self._ids = ids
        self._pool = ThreadPoolExecutor(6)
        self._name, self._tasks, self._cluster, self._history = name, tasks, cluster, history
        self._running = [
            self._pool.submit(self._ask, kind, f"own-{kind}-{n}")
            for kind, count in (("status", 2), ("local", 1), ("submit", 2))
            for n in range(count)
        ]

    def _ask(self, kind: str, who: str) -> None:
        client = Client(who, self._cluster.ports, self._history, LOST_CALL_S)
        turn = 0
        while not self.over.is_set():
            turn += 1
            if kind == "submit":
                call = client.submit(self._name, next(self._ids), type="noop", delay=3600)
            elif kind == "status":
                call = client.status(self._name, self._tasks[turn % len(self._tasks)])
            else:
                call = client.local(self._name, self._tasks[turn % len(self._tasks)])
            self.heard.append((time.monotonic(), call))
            self.over.wait(0.05)
        client.close()

    def end(self) -> None:
        self.over.set()
        self._pool.shutdown()
        for one in self._running:
            one.result(0)


class Locked:
    """An iterator for several threads."""

    def __init__(self, ids: Iterator[str]) -> None:
        self._ids, self._lock = ids, threading.Lock()

    def __iter__(self) -> Locked:
        return self

    def __next__(self) -> str:
        with self._lock:
            return next(self._ids)


@pytest.mark.parametrize("of_leader", [False, pytest.param(True, marks=pytest.mark.long)], ids=["primary", "leader"])
def test_a_primary_cut_off_with_its_clients(
    make_cluster: MakeCluster, request: pytest.FixtureRequest, of_leader: bool
) -> None:
    """``of_leader``: it is the Raft leader too."""
    cluster = started(make_cluster, links=True)
    assert cluster.links is not None
    leader = cluster.leader()
    cut = leader if of_leader else next(name for name in NAMES if name != leader)
    others = [name for name in NAMES if name != cut]
    partition = led_by(cluster, cut)[0]
    seed = seed_of(cluster)
    history = History()
    client = Client("outside", cluster.ports, history, LOST_CALL_S)
    request.addfinalizer(client.close)
    ids = Locked(ids_in(seed, partition, "cut"))
    tasks = [next(ids) for _ in range(12)]
    for task_id in tasks:
        assert client.submit(cut, task_id, type="noop", delay=3600).http == 201
    own = OwnClients(cluster, cut, history, tasks, ids)
    request.addfinalizer(own.end)
    time.sleep(0.5)  # its own clients ask for a while before the cut
    began_s = time.monotonic()
    cluster.links.isolate(cut, others)
    cut_s = time.monotonic()

    def led_elsewhere() -> bool:
        shown = cluster.partitions(others[0])[partition]
        return shown["primary"] in others

    until(led_elsewhere, deadline_s=FAILOVER_S, what="another primary")
    # Overwritten on the other side: the old value, wherever it is still read as a strong one, would be a lie.
    changed: dict[str, float] = {}
    for task_id in tasks:
        until(lambda task_id=task_id: client.cancel(others[0], task_id).http in (200, 409), what="cancelled")  # type: ignore[misc]
        changed[task_id] = time.monotonic()
    seconds = time.monotonic() - began_s
    fresh = [next(ids) for _ in range(10)]
    for task_id in fresh:
        until(
            lambda task_id=task_id: client.submit(others[1], task_id, type="noop", delay=3600).outcome == "ok",  # type: ignore[misc]
            what="a submit on the other side",
        )
    until(
        lambda: any(call.kind == "submit" and call.http and at_s > cut_s + 1 for at_s, call in list(own.heard)),
        what="an answer to a submit, now that it is alone",
    )
    age = cluster[cut].get(f"/tasks/status?id={tasks[0]}&consistency=local").json["age"]
    alone_s = time.monotonic() - changed[tasks[0]]
    own.end()
    submits = [call for at_s, call in own.heard if call.kind == "submit" and at_s > cut_s + 1]
    assert submits
    assert all(call.http in (503, 504) for call in submits), {(call.http, call.code) for call in submits}
    alone = [call for _, call in own.heard if call.began_s > cut_s]
    strong = [call for call in alone if call.kind == "status"]
    assert strong
    assert {call.http for call in strong} == {503}, {(call.http, call.code, call.status) for call in strong}
    assert {call.code for call in strong} <= {"not_confirmed", "not_primary", "not_active"}
    local = [call for call in alone if call.kind == "local"]
    assert {(call.http, call.status) for call in local} == {(200, "scheduled")}, "the old value, and it says so"
    print(
        f"\n{cut} cut off{' (leader)' if of_leader else ''}: changed on the other side {seconds:.1f} s later; alone it answered "
        f"{len(strong)} strong reads, {len(local)} local ones (age {age:.1f} s), {len(submits)} submits: "
        f"{sorted({(call.kind, call.http, call.code) for call in alone + submits})}"
    )

    cluster.links.heal()
    cluster.wait_whole()
    wait_settled(cluster)
    for task_id in tasks:
        for name in NAMES:
            assert client.status(name, task_id).status == "cancelled"
    # Everything that nobody needs to wait for any more is cancelled, so that all of it ends.
    for task in every_task(cluster).values():
        if task["status"] == "scheduled":
            assert client.cancel(cut, task["id"]).http == 200
    wait_quiet(cluster)
    shown = every_task(cluster)
    assert set(fresh) <= set(shown)
    assert_sound(history, shown)
    kill_all(cluster)
    compare_at_rest(cluster)  # the tail of the node that was cut off is gone
    assert age >= alone_s, "how old may it be? At least as old as the change that it does not show"
    cluster.assert_logs_are_clean(r".")


def ledger_of(path: Path, task_id: str) -> list[tuple[str, str, str, int]]:
    """(attempt, token, word, process) of a task."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(line[1], line[2], line[3], int(line[4])) for line in lines if line[0] == task_id]


def shown_attempts(task: dict[str, Any]) -> str:
    return "\n".join(str(attempt) for attempt in task["attempts"])


@pytest.mark.long
@pytest.mark.parametrize("how", ["asleep", "cut off"])
def test_a_zombie_worker(make_cluster: MakeCluster, tmp_path: Path, how: str) -> None:
    """A node that runs tasks is away for longer than its lease; the others run them again; then it comes back.

    ``asleep``: SIGSTOP, SIGCONT. ``cut off``: by its links; it gets to the end of its attempts meanwhile, and says so later.
    """
    ledger = tmp_path / "ledger"
    cluster = started(
        make_cluster,
        handlers=PROCESS_HANDLERS,
        links=how == "cut off",
        environment={"TEST_LEDGER": str(ledger)},
    )
    seed = seed_of(cluster)
    zombie = next(name for name in NAMES if name != cluster.leader())
    others = [name for name in NAMES if name != zombie]
    partitions = led_by(cluster, zombie)
    # In the reactor: nothing but tokens can stop its completion. In a worker process: the kernel ends it first.
    inside = [next(ids_in(seed, partition, "inside")) for partition in partitions[:4]]
    processes = [next(ids_in(seed, partition, "process")) for partition in partitions[4:6]]
    for task_id in inside:
        cluster[zombie].submit("slow-async", 3.0, id=task_id)
    for task_id in processes:
        cluster[zombie].submit("tick", 30.0, id=task_id)
    until(
        lambda: all(cluster[zombie].status(task_id)["status"] == "processing" for task_id in inside + processes),
        what="they run",
    )
    until(lambda: all(ledger_of(ledger, task_id) for task_id in inside + processes), what="they have begun")
    zombie_pid = cluster[zombie].pid
    if cluster.links is None:
        cluster[zombie].stop()
    else:
        cluster.links.isolate(zombie, others)
    stopped_s = time.monotonic()

    def completed_elsewhere() -> bool:
        with contextlib.suppress(OSError):  # asked before the failover, the question went to the node that sleeps
            found = [cluster[others[0]].get(f"/tasks/status?id={task_id}", deadline_s=2) for task_id in inside]
            return all(answer.status == 200 and answer.json["status"] == "completed" for answer in found)
        return False

    until(completed_elsewhere, deadline_s=LEASE_S + 15, what="run again by the others")
    again_s = time.monotonic() - stopped_s
    assert again_s > LEASE_S - 1, "not before the lease is over"
    before: dict[str, Any] = {task_id: cluster[others[0]].status(task_id) for task_id in inside}
    if cluster.links is None:
        cluster[zombie].cont()
    else:
        ended = [ledger_of(ledger, task_id) for task_id in inside]
        assert all(any(w == "ended" and pid == zombie_pid for _, _, w, pid in lines) for lines in ended), (
            "it got to the end"
        )
        cluster.links.heal()
    cluster.wait_whole()
    wait_settled(cluster)
    time.sleep(2.0)  # a zombie would have said by now what must not be believed
    for task_id in inside:
        for name in NAMES:
            found = cluster[name].status(task_id)
            assert found["status"] == "completed"
            assert [attempt["outcome"] for attempt in found["attempts"]] == ["lost", "completed"], shown_attempts(found)
            assert found["attempts"][0]["node"] == zombie
            assert found["result"] != zombie_pid, "the zombie's result was refused"
            assert found["version"] == before[task_id]["version"], "and changed nothing"
    # The worker processes of the zombie were killed by the kernel at their deadline, and ran on for no tick after waking up.
    for task_id in processes:
        until(
            lambda task_id=task_id: cluster[others[0]].status(task_id)["attempts"],  # type: ignore[misc]
            what="the attempt in a process is lost",
        )
        found = cluster[others[0]].status(task_id)
        assert found["attempts"][0]["outcome"] == "lost"
        cluster[others[0]].post(f"/tasks/cancel?id={task_id}")
    wait_ended(cluster)
    print(f"\n{len(inside)} attempts of a node that was {how} were run again {again_s:.1f} s later; none counted twice")
    cluster.stop()
