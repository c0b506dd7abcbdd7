"""Nodes come and go: the partition map is right at each step, and hardly more moves than must."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.cluster.clusters import Cluster, Sample, copies_of, watching
from tests.support.harness import until

pytestmark = pytest.mark.cluster

PARTITIONS = 64
FACTOR = 3
FIVE = ("node-4", "node-5")
"""Who makes five of three."""
ENDS = r"refused a connection|closed the connection|was removed from its cluster"
"""What the logs may say where nodes are removed."""
MOVES_OVER_FEWEST = 1.1
MakeCluster = Callable[..., Cluster]


def is_right(partitions: list[dict[str, Any]], names: Iterable[str]) -> bool:
    """Each partition has its copies on these nodes, all in sync, and no node leads or holds more than its share."""
    names = set(names)
    copies = min(FACTOR, len(names))
    led = Counter(one["primary"] for one in partitions)
    held = Counter(name for one in partitions for name in copies_of(one))
    return (
        all(len(copies_of(one)) == len(one["in_sync"]) == copies for one in partitions)
        and not any(one["adding"] or one["removing"] for one in partitions)
        and set(led) == set(held) == names
        and max(led.values()) <= math.ceil(PARTITIONS / len(names))
        and max(held.values()) <= math.ceil(PARTITIONS * copies / len(names))
    )


def wait_right(cluster: Cluster, names: Iterable[str], deadline_s: float = 30) -> Counter[str]:
    """On each of them, and with nothing under way. How many copies each holds."""
    wanted = set(names)
    until(
        lambda: all(is_right(cluster.partitions(name), wanted) for name in sorted(wanted)),
        deadline_s=deadline_s,
        what=f"64 partitions and their copies shared by {sorted(wanted)}",
    )
    for name in wanted:
        cluster[name].wait_ready()
    return held_by(cluster, min(wanted))


def held_by(cluster: Cluster, name: str) -> Counter[str]:
    return Counter(holder for one in cluster.partitions(name) for holder in copies_of(one))


def moves(samples: list[Sample]) -> int:
    """Copies that were begun, as seen."""
    seen = [sample.copies for sample in samples if sample.copies is not None]
    return sum(len(now[p] - before[p]) for before, now in itertools.pairwise(seen) for p in range(PARTITIONS))


def fewest(before: Counter[str], names: Iterable[str]) -> int:
    """To reach the bounds: all copies there are to be, but for those that may stay where they are."""
    names = set(names)
    total = PARTITIONS * min(FACTOR, len(names))
    share = math.ceil(total / len(names))
    return total - sum(min(held, share) for name, held in before.items() if name in names)


def change(cluster: Cluster, what: str, action: Callable[[], object], names: Iterable[str]) -> None:
    """Do it, wait for the map to be right for these nodes, and count the moves."""
    names = set(names)
    witness = next(name for name in cluster.running if name in names)
    before = held_by(cluster, witness)
    with watching(cluster, witness, partitions=True, every_s=0.03) as watches:
        until(lambda: watches[0].samples, what="the watch looks")
        began_s = time.monotonic()
        action()
        after = wait_right(cluster, names)
        seconds = time.monotonic() - began_s
        time.sleep(0.3)
    done, least = moves(watches[0].samples), fewest(before, names)
    voters = {len(sample.view.voters) for sample in watches[0].samples}
    print(f"  {what}: {dict(sorted(after.items()))} after {seconds:.1f} s, {done} copies made, {least} at the fewest")
    assert not voters & {1, 2}, "three never become one while others could vote"
    assert least <= done <= least * MOVES_OVER_FEWEST


def order(cluster: Cluster, via: str, what: str, node: str) -> None:
    answer = cluster[via].post(f"/cluster/{what}?node={node}")
    assert answer.status == 202, answer
    assert answer.json == {"success": True, "node": node}


def wait_ended(cluster: Cluster, name: str) -> None:
    """A node that was removed says so and ends."""
    assert cluster[name].wait() == 1
    assert f"taskqueue: node {name} was removed from its cluster" in cluster.log(name)


def grow(cluster: Cluster, *names: str) -> None:
    cluster.start(*names)
    cluster.wait_whole(members=cluster.ports)


def grown(cluster: Cluster, *more: str) -> None:
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_right(cluster, cluster.ports)
    print()
    for name in more:
        cluster.port(name)
        change(cluster, f"{name} joins", lambda name=name: grow(cluster, name), cluster.ports)  # type: ignore[misc]
    assert len(cluster.wait_whole().voters) == 3


def drained_and_removed(cluster: Cluster, name: str, via: str) -> None:
    """In two orders: nothing is left on it, and it serves on; then it ends."""
    change(cluster, f"{name} is drained", lambda: order(cluster, via, "drain", name), set(cluster.running) - {name})
    cluster.wait(lambda view: view.statuses[name] == "draining", what=f"{name} draining")
    cluster.wait_ready()
    order(cluster, via, "remove", name)
    wait_ended(cluster, name)
    cluster.wait_gone(name, None)


def disk_replaced(cluster: Cluster, name: str) -> None:
    """What starts in place of a lost disk has its name, and waits until the dead one is removed."""
    stays = set(cluster.running)
    cluster[name].kill9()
    cluster.wait_gone(name)
    shutil.rmtree(cluster.data(name))
    via = cluster.others(name)[0]
    cluster.start(name, extra=["--join", f"localhost:{cluster.ports[via]}"])
    until(lambda: f"POST /cluster/remove?node={name}" in cluster.log(name), what="it says what it waits for")
    time.sleep(1.0)
    assert cluster[name].is_running
    assert not cluster[name].is_ready
    assert cluster.view(name) is None, "it is in no cluster"
    order(cluster, via, "remove", name)
    cluster.wait(
        lambda view: view.statuses == dict.fromkeys(stays, "active"), names=stays, what=f"the new {name} is let in"
    )
    print(f"  the new {name} is in: {dict(sorted(wait_right(cluster, stays).items()))}")
    cluster.wait_ready()
    cluster[name].submit("noop", delay=3600)


def test_three_grow_to_four_shrink_and_a_disk_is_replaced(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    grown(cluster, "node-4")
    drained_and_removed(cluster, "node-2", "node-4")
    stays = set(cluster.running)
    view = cluster.wait_whole(members=stays)
    disk_replaced(cluster, next(name for name in sorted(stays) if name != view.leader))
    cluster.stop()
    cluster.assert_logs_are_clean(ENDS)


@pytest.mark.long
def test_three_grow_to_five_shrink_and_a_disk_is_replaced(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    grown(cluster, *FIVE)
    drained_and_removed(cluster, "node-2", "node-5")
    stays = set(cluster.running) - {"node-4"}
    change(cluster, "node-4 is removed", lambda: order(cluster, "node-1", "remove", "node-4"), stays)
    wait_ended(cluster, "node-4")
    view = cluster.wait_whole(members=stays)
    disk_replaced(cluster, next(name for name in sorted(stays) if name != view.leader))
    cluster.stop()
    cluster.assert_logs_are_clean(ENDS)


@pytest.mark.long
def test_the_leader_is_removed_and_a_voter_s_disk_replaced(make_cluster: MakeCluster) -> None:
    """Slow for the half minute of health that whoever replaces a voter has to show, each time."""
    cluster = make_cluster()
    grown(cluster, *FIVE)
    for name in (cluster.leader(), ""):
        leaving = name or cluster.leader()
        stays = set(cluster.running) - {leaving}
        via = min(stays)
        change(cluster, f"{leaving}, the leader, is removed", lambda: order(cluster, via, "remove", leaving), stays)  # noqa: B023
        assert cluster[leaving].wait(60) == 1
        cluster.wait(
            lambda view: view.statuses == dict.fromkeys(stays, "active") and len(view.voters) == 3,  # noqa: B023
            deadline_s=90,
            what="three voters again",
        )
    leader = cluster.leader()
    disk_replaced(cluster, next(name for name in cluster.running if name != leader))
    cluster.wait(lambda view: len(view.voters) == 3, deadline_s=90, what="three voters again")
    cluster.stop()
    cluster.assert_logs_are_clean(ENDS)


def test_a_node_with_tasks_leaves(make_cluster: MakeCluster) -> None:
    """Its tasks are copied to the others first; what can't be done is refused, and nothing has begun then."""
    cluster = make_cluster(["node-1", "node-2"])
    cluster.start("node-1")
    cluster["node-1"].wait_ready()
    last = cluster["node-1"].post("/cluster/drain?node=node-1")
    assert last.status == 409, "there is nobody to take over"
    ids = [cluster["node-1"].submit("noop", number, delay=3600) for number in range(200)]
    full = {cluster["node-1"].status(task_id)["partition"] for task_id in ids}
    assert len(full) > PARTITIONS * 0.9
    cluster.start("node-2")
    cluster.wait_whole(voters=1)
    held = wait_right(cluster, ["node-1", "node-2"])
    assert held == {"node-1": PARTITIONS, "node-2": PARTITIONS}, "a copy of everything on both"
    unknown = cluster["node-2"].post("/cluster/drain?node=node-7")
    assert unknown.status == 404
    assert cluster.wait_whole(voters=1).statuses["node-1"] == "active"

    order(cluster, "node-2", "drain", "node-1")
    until(lambda: set(cluster.primaries("node-2")) == {"node-2"}, deadline_s=30, what="node-2 leads everything")
    cluster.wait_ready()
    for name in ("node-1", "node-2"):
        assert {cluster[name].status(task_id)["node"] for task_id in ids} == {"node-2"}
    last = cluster["node-1"].post("/cluster/drain?node=node-2")
    assert last.status == 409, "the other one goes already"
    order(cluster, "node-2", "remove", "node-1")
    wait_ended(cluster, "node-1")
    cluster.wait_gone("node-1", None)
    wait_right(cluster, ["node-2"])
    shown = [cluster["node-2"].status(task_id) for task_id in ids]
    assert {(task["status"], task["node"]) for task in shown} == {("scheduled", "node-2")}
    assert [task["payload"] for task in shown] == list(range(200))
    cluster.stop("node-2")
    cluster.assert_logs_are_clean(ENDS)


def test_joins_and_tasks_at_once(make_cluster: MakeCluster) -> None:
    """Submits go on while partitions move: each is answered 201, or refused as safe to send again, and none is lost."""
    cluster = make_cluster()
    cluster.start("node-1")
    cluster["node-1"].wait_ready()
    cluster.start("node-2", "node-3")
    accepted: list[str] = []
    refused: Counter[str] = Counter()
    end_s = time.monotonic() + 2.0
    while time.monotonic() < end_s:
        answer = cluster["node-1"].post("/tasks/submit", {"type": "noop", "delay": 3600})
        if answer.status == 201:
            accepted.append(answer.json["task_id"])
        else:
            assert answer.status == 503, answer
            assert answer.headers["retry-after"]
            refused[answer.json["code"]] += 1
    cluster.wait_whole()
    cluster.wait_ready()
    print(f"\n{len(accepted)} accepted while two nodes joined, refused: {dict(refused)}")
    wait_right(cluster, cluster.ports)
    assert len(accepted) > 10 * refused.total()
    for name in cluster.running:
        assert cluster[name].get("/tasks/stats?scope=cluster").json["stats"]["total"] == len(accepted)
    assert all(cluster["node-3"].status(task_id)["status"] == "scheduled" for task_id in accepted)
    cluster.stop()
    cluster.assert_logs_are_clean()


@pytest.mark.parametrize("who", [pytest.param("follower", marks=pytest.mark.long), "leader"])
def test_a_member_that_moves_to_other_ports(cluster: Cluster, who: str) -> None:
    """It registers its new addresses, wherever the others still look for it."""
    wait_right(cluster, cluster.ports)
    leader = cluster.leader()
    name = leader if who == "leader" else next(name for name in cluster.others(leader) if name != cluster.founder)
    cluster.stop(name)
    del cluster.ports[name]
    cluster.port(name)
    cluster.start(name)
    cluster.wait_whole()
    cluster.wait_ready()
    wait_right(cluster, cluster.ports)
