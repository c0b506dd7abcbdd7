"""Moves end whoever dies meanwhile: kill -9 of the Raft leader at each step (replication.md, section 6; F27), under load."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cluster.clusters import Cluster, copies_of
from tests.cluster.replicated import MakeCluster, every_task, seed_of, wait_copies
from tests.support.at_rest import copies_at_rest
from tests.support.falling import STEPS, VARIABLE, Fell, Order
from tests.support.harness import NodeProcess, until
from tq_node.cluster.placement import partition_of
from tq_node.store.sqlite.open_database import DATABASE_NAME

pytestmark = pytest.mark.cluster

FOUR = ("node-1", "node-2", "node-3", "node-4")
FACTOR = 2
"""So that of four nodes one has no part in a move: who leaves, who stays, who comes, and the leader."""
MOVED_S = 60.0
TASKS = 300
KILLED = -9
KEPT = {"lock", "workers.lock", DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"}
"""In the data directory of a node that has stopped."""


class Writer(threading.Thread):
    """Submits one task after another to nodes that stay, and remembers those that were acknowledged."""

    def __init__(self, cluster: Cluster, names: tuple[str, ...]) -> None:
        super().__init__(name="writer", daemon=True)
        self.accepted: dict[str, int] = {}
        self._cluster, self._names = cluster, names
        self._over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._over.wait(0.005):
            number += 1
            self._submit(self._names[number % len(self._names)], f"while-it-moves-{number}", number)

    def _submit(self, name: str, task_id: str, number: int) -> None:
        fields = {"type": "noop", "id": task_id, "payload": number, "delay": 3600}
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self._cluster[name].post("/tasks/submit", fields, deadline_s=5.0).status == 201:
                self.accepted[task_id] = number

    def end(self) -> dict[str, int]:
        self._over.set()
        self.join(15)
        return self.accepted


@contextlib.contextmanager
def writing(cluster: Cluster, *names: str) -> Iterator[Writer]:
    writer = Writer(cluster, names)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()


def four(make_cluster: MakeCluster, tmp_path: Path, *more: str) -> Cluster:
    """Whole, with tasks everywhere, each node leading its share."""
    cluster = make_cluster(
        FOUR,
        options=("--handlers", "tests.support.falling", "--replication-factor", str(FACTOR), *more),
        environment={VARIABLE: str(tmp_path / "fall")},
    )
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_copies(cluster, FACTOR)
    wait_even(cluster)
    return cluster


def wait_even(cluster: Cluster) -> None:
    share = -(-64 // len(cluster.running))

    def even() -> bool:
        led = cluster.primaries()
        return set(led) == set(cluster.running) and max(led.values()) <= share

    until(even, deadline_s=MOVED_S, what=f"at most {share} primaries on each of {cluster.running}")


def batch(node: NodeProcess, payloads: dict[str, str]) -> dict[str, str]:
    """Submit these until all are acknowledged: a partition that is just handed over refuses for now."""
    left = [{"type": "noop", "id": one, "payload": payload, "delay": 3600} for one, payload in payloads.items()]

    def all_acknowledged() -> bool:
        results = node.post("/tasks/batch", {"tasks": left}, deadline_s=60).json["results"]
        left[:] = [task for task, result in zip(left, results, strict=True) if "error" in result]
        return not left

    until(all_acknowledged, deadline_s=30, what="every task is acknowledged")
    return payloads


def filled(cluster: Cluster, *, size: int = 10, count: int = TASKS) -> dict[str, str]:
    return batch(cluster["node-1"], {f"before-{number}": f"{number}" + "x" * size for number in range(count)})


def order(cluster: Cluster, via: str, what: str, node: str = "", *, may_be: int = 202) -> None:
    answer = cluster[via].post(f"/cluster/{what}" + (f"?node={node}" if node else ""))
    assert answer.status in (202, may_be), answer


def is_off(
    cluster: Cluster, via: str, leaving: str, which: Callable[[dict[str, Any]], bool] = lambda one: True
) -> bool:
    """Has all that moves ended, and is nothing of it left on the node?"""
    shown = [one for one in cluster.partitions(via) if which(one)]
    return all(
        not one["adding"]
        and not one["removing"]
        and leaving not in copies_of(one)
        and len(one["in_sync"]) == FACTOR == len(copies_of(one))
        for one in shown
    )


def assert_nothing_lost(cluster: Cluster, expected: dict[str, Any]) -> None:
    """Each acknowledged task is there once, as it was sent; each partition's copies are byte-equal when all have stopped."""
    tasks = every_task(cluster)
    missing = expected.keys() - tasks.keys()
    assert not missing, f"{len(missing)} of {len(expected)} acknowledged tasks are lost: {sorted(missing)[:5]}"
    unknown = [task_id for task_id in tasks if not task_id.startswith(("before-", "while-it-moves-"))]
    assert not unknown
    assert all(tasks[task_id]["payload"] == payload for task_id, payload in expected.items())
    assert {task["status"] for task in tasks.values()} == {"scheduled"}
    # A submit that was not acknowledged may have been done: it is in all copies or in none.
    holders = {one["partition"]: copies_of(one) for one in cluster.partitions()}
    names = list(cluster.running)
    cluster.stop()
    for name in names:
        left = {path.name for path in cluster.data(name).iterdir()} - KEPT
        assert not left, f"moves leave no files behind: {left}"
    stores = {name: copies_at_rest(cluster.data(name)) for name in names}
    for partition, copies in holders.items():
        held = {name: stores[name][partition] for name in copies}
        assert len({copy.digest for copy in held.values()}) == 1, f"partition {partition} differs: {held}"
    assert sum(stores[min(copies)][partition].rows for partition, copies in holders.items()) == len(tasks)


def arm(tmp_path: Path, step: str, moment: str, role: str) -> None:
    prepared = tmp_path / "prepared"
    prepared.write_bytes(msgspec.json.encode(Order(step, moment, role)))
    prepared.rename(tmp_path / "fall")


def drained_until_it_falls(cluster: Cluster, leader: str, role: str, tmp_path: Path) -> tuple[str, Fell]:
    """Drain one node after another until the leader has met the step in that role. Who left, and what it was at.

    Where the copies are is chance: a drain may need no move in which the leader has the role. It is taken back then.
    """

    def shared(name: str) -> int:
        """Partitions that the node has together with the leader."""
        return sum({name, leader} <= copies_of(one) for one in cluster.partitions(leader))

    for leaving in sorted(cluster.others(leader), key=shared, reverse=role == "staying"):
        via = cluster.others(leader, leaving)[0]
        # The leader may die before it answers: then nobody can tell whether the drain was decided.
        order(cluster, via, "drain", leaving, may_be=504)
        until(
            lambda: not cluster[leader].is_running or is_off(cluster, via, leaving),  # noqa: B023
            deadline_s=MOVED_S,
            what=f"{leader} dies, or {leaving} is empty",
        )
        if not cluster[leader].is_running:
            assert cluster[leader].wait() == KILLED
            return leaving, msgspec.json.decode((tmp_path / "fall.fell").read_bytes(), type=Fell)
        order(cluster, via, "undrain", leaving)
        wait_even(cluster)
    raise AssertionError(f"in no drain {leader} was {role}")


SHORT = ("new_primary",)
"""The leader's death at this step is in make test."""
CASES = [
    *(
        pytest.param(
            step, "decided", "outside", id=f"{step}-decided-outside", marks=[] if step in SHORT else [pytest.mark.long]
        )
        for step in STEPS
    ),
    pytest.param("in_sync", "lost", "newcomer", id="in_sync-lost-newcomer", marks=pytest.mark.long),
    pytest.param("finish", "lost", "newcomer", id="finish-lost-newcomer", marks=pytest.mark.long),
    *(
        pytest.param(step, moment, role, id=f"{step}-{moment}-{role}", marks=pytest.mark.long)
        for step in STEPS
        for moment, role in (("lost", "outside"), ("decided", "newcomer"), ("lost", "staying"), ("decided", "staying"))
    ),
]


@pytest.mark.parametrize(("step", "moment", "role"), CASES)
def test_the_leader_dies_at_a_step(
    make_cluster: MakeCluster, tmp_path: Path, step: str, moment: str, role: str
) -> None:
    """A drain; the leader is no part of the move (``outside``), or the one that comes, or the one that stays."""
    cluster = four(make_cluster, tmp_path)
    expected: dict[str, Any] = dict(filled(cluster))
    leader = cluster.leader()
    with writing(cluster, *cluster.others(leader)) as writer:
        arm(tmp_path, step, moment, role)
        leaving, fell = drained_until_it_falls(cluster, leader, role, tmp_path)
        assert (fell.step, fell.node) == (step, leader)
        stay = cluster.others(leaving)
        until(lambda: (view := cluster.agreed(stay)) and view.leader in cluster.running, deadline_s=30, what="a leader")
        if role == "outside":
            # The move at which it died needs nothing of it.
            until(
                lambda: is_off(cluster, stay[0], leaving, lambda one: one["partition"] == fell.partition),
                deadline_s=MOVED_S,
                what=f"the move of partition {fell.partition} ends under the next leader",
            )
        cluster.start(leader)
        until(lambda: is_off(cluster, stay[0], leaving), deadline_s=MOVED_S, what=f"all moves off {leaving} end")
        expected |= writer.end()
    cluster.wait(lambda view: set(view.statuses) == set(FOUR), what="all four are members")
    cluster.wait_ready()
    wait_copies(cluster, FACTOR)
    led = cluster.primaries(leader)
    assert leaving not in led
    assert led[leader], "the killed node is whole again"
    print(
        f"\n{step} of partition {fell.partition}, {moment}, {leader} {role}: {len(expected)} tasks kept, led {dict(led)}"
    )
    assert_nothing_lost(cluster, expected)


# --- slowly ---
RATE = 64 * 1024
BIG, BIGS, WRITTEN = 20_000, 200, 150
AT_ONCE = 512 * 1024
"""What may be on its way when it is looked: a burst, and a chunk or an entry for each copy that is made at once."""
COPIED = "taskqueue_copied_bytes_total"


def half_way(cluster: Cluster) -> dict[str, Any] | None:
    for name in cluster.running:
        for one in cluster.partitions(name):
            move = one.get("move", {})
            if one["primary"] == name and move.get("percent") and move["bytes_left"]:
                return one
    return None


def metric(node: NodeProcess, name: str) -> float:
    """The sum over its labels."""
    lines = node.get("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def at_home(cluster: Cluster, without: str, count: int) -> dict[str, str]:
    """Big tasks of partitions of which this node has no copy: their copies stay where they are when it is drained."""
    seed = seed_of(cluster)
    stays = {one["partition"] for one in cluster.partitions() if without not in copies_of(one)}
    numbers = (
        number
        for number in itertools.count()
        if partition_of(f"while-it-moves-{number}", seed=seed, partition_count=64) in stays
    )
    return {f"while-it-moves-{number}": f"{number}" + "y" * BIG for number in itertools.islice(numbers, count)}


@pytest.mark.long
def test_a_move_is_slow_and_what_is_written_is_not(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """``--copy-rate``: what moves keeps to it, and tells how far it is; what in-sync copies get does not wait for it.

    In the middle of it, with data half copied, the leader is killed: the move ends under the next one.
    """
    cluster = four(make_cluster, tmp_path, "--copy-rate", str(RATE))
    expected: dict[str, Any] = dict(filled(cluster, size=BIG, count=BIGS))
    leader = cluster.leader()
    leaving, *stay = cluster.others(leader)
    written = at_home(cluster, leaving, WRITTEN)
    before = {name: metric(cluster[name], COPIED) for name in cluster.running}
    began_s = time.monotonic()
    order(cluster, stay[0], "drain", leaving)
    shown = until(lambda: half_way(cluster), deadline_s=MOVED_S, what="a partition is being copied")
    assert shown is not None
    assert shown["move"]["stage"] == "copying"
    assert 0 < shown["move"]["percent"] < 100
    batch_s = time.monotonic()
    expected |= batch(cluster[stay[0]], written)
    wrote_s = time.monotonic() - batch_s
    moves, left = (
        sum(metric(cluster[name], one) for name in cluster.running)
        for one in ("taskqueue_moves", "taskqueue_copy_bytes_left")
    )
    assert not is_off(cluster, stay[0], leaving), "it is still under way"
    assert moves > 0
    assert left > 0
    assert wrote_s < WRITTEN * BIG / len(stay) / RATE, "at that rate these writes would have taken longer"
    cluster[leader].kill9()
    until(lambda: (view := cluster.agreed(stay)) and view.leader in cluster.running, deadline_s=30, what="a leader")
    cluster.start(leader)
    until(lambda: is_off(cluster, stay[0], leaving), deadline_s=3 * MOVED_S, what=f"all moves off {leaving} end")
    copied = max(metric(cluster[name], COPIED) - before[name] for name in (leaving, *stay))
    took_s = time.monotonic() - began_s
    print(
        f"\nat {RATE} bytes a second: all off {leaving} after {took_s:.1f} s, {copied:.0f} bytes copied by one node; "
        f"{WRITTEN * BIG} bytes written meanwhile in {wrote_s:.1f} s"
    )
    assert copied <= RATE * took_s + AT_ONCE, "no node sends faster than it may"
    cluster.wait_ready()
    wait_copies(cluster, FACTOR)
    assert_nothing_lost(cluster, expected)


# --- by themselves ---
def test_one_copy_each_is_spread_over_the_nodes(make_cluster: MakeCluster) -> None:
    """``--replication-factor 1``: the founder's partitions go to whoever joins, with their tasks."""
    cluster = make_cluster(options=("--replication-factor", "1"))
    cluster.start("node-1")
    cluster["node-1"].wait_ready()
    expected = dict(filled(cluster))
    cluster.start("node-2", "node-3")
    cluster.wait_whole()
    until(
        lambda: max(Counter(name for one in cluster.partitions() for name in copies_of(one)).values()) <= -(-64 // 3),
        deadline_s=MOVED_S,
        what="64 single copies on three nodes",
    )
    wait_copies(cluster, 1)
    wait_even(cluster)
    assert every_task(cluster).keys() == expected.keys()
    assert all(cluster[name].get("/tasks/stats").json["stats"]["total"] > 0 for name in cluster.running)


@pytest.mark.long
def test_a_drain_is_taken_back_and_an_order_makes_it_even(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """``undrain``: the node takes its share again by itself. ``rebalance``: no node has more than one copy over another."""
    cluster = four(make_cluster, tmp_path)
    expected = dict(filled(cluster))
    order(cluster, "node-1", "drain", "node-4")
    until(lambda: is_off(cluster, "node-1", "node-4"), deadline_s=MOVED_S, what="node-4 is empty")
    order(cluster, "node-2", "undrain", "node-4")
    cluster.wait(lambda view: set(view.statuses.values()) == {"active"}, what="node-4 stays")
    wait_even(cluster)
    order(cluster, "node-3", "rebalance")

    def held() -> Counter[str]:
        return Counter(name for one in cluster.partitions() for name in copies_of(one))

    until(
        lambda: set(held().values()) == {64 * FACTOR // 4} and set(cluster.primaries().values()) == {64 // 4},
        deadline_s=MOVED_S,
        what="32 copies and 16 primaries on each",
    )
    wait_copies(cluster, FACTOR)
    assert_nothing_lost(cluster, expected)
