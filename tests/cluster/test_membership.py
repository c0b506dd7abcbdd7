"""Nodes come and go: the partition map is right at each step, and hardly more moves than must."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from tests.cluster.clusters import Cluster, Sample, watching
from tests.support.harness import until

pytestmark = pytest.mark.cluster

PARTITIONS = 64
ENDS = r"refused a connection|closed the connection|was removed from its cluster"
"""What the logs may say where nodes are removed."""
MOVES_OVER_FEWEST = 1.1
MakeCluster = Callable[..., Cluster]


def is_right(held: Counter[str | None], names: Iterable[str]) -> bool:
    """Each partition one primary, of these nodes, and nobody above its share."""
    names = set(names)
    return (
        held.total() == PARTITIONS and set(held) == names and max(held.values()) <= math.ceil(PARTITIONS / len(names))
    )


def wait_right(cluster: Cluster, names: Iterable[str]) -> Counter[str | None]:
    """On each of them, and with nothing under way."""
    wanted = set(names)

    def are_right() -> bool:
        every = [cluster.partitions(name) for name in sorted(wanted)]
        return all(
            is_right(Counter(one["primary"] for one in partitions), wanted)
            and not any(one["adding"] or one["removing"] for one in partitions)
            for partitions in every
        )

    until(are_right, deadline_s=30, what=f"64 partitions shared by {sorted(wanted)}")
    for name in wanted:
        cluster[name].wait_ready()
    for one in cluster.partitions(min(wanted)):
        assert one["in_sync"] == [one["primary"]]
        assert one["replicas"] == []
    return cluster.primaries(min(wanted))


def moves(samples: list[Sample]) -> int:
    """Changes of a partition's primary from one node to another, as seen; a time without one is no change."""
    count = 0
    last: list[str | None] = []
    for sample in samples:
        assert sample.primaries is not None
        if not last:
            last = list(sample.primaries)
        for partition, primary in enumerate(sample.primaries):
            if primary is not None and primary != last[partition]:
                count += last[partition] is not None
                last[partition] = primary
    return count


def fewest(before: Counter[str | None], names: Iterable[str]) -> int:
    """To reach the bounds: what is on nodes that go, and what is above the share on those that stay."""
    names = set(names)
    share = math.ceil(PARTITIONS / len(names))
    return sum(held - (min(held, share) if name in names else 0) for name, held in before.items())


def change(cluster: Cluster, what: str, action: Callable[[], object], names: Iterable[str]) -> None:
    """Do it, wait for the map to be right for these nodes, and count the moves."""
    names = set(names)
    before = cluster.primaries()
    witness = next(name for name in cluster.running if name in names)
    with watching(cluster, witness, partitions=True, every_s=0.01) as watches:
        until(lambda: watches[0].samples, what="the watch looks")
        began_s = time.monotonic()
        action()
        after = wait_right(cluster, names)
        seconds = time.monotonic() - began_s
        time.sleep(0.3)
    done, least = moves(watches[0].samples), fewest(before, names)
    print(f"  {what}: {dict(sorted(after.items()))} after {seconds:.1f} s, {done} moves, {least} at the fewest")
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


def grown_to_five(cluster: Cluster) -> None:
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_right(cluster, cluster.ports)
    print()
    for name in ("node-4", "node-5"):
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


def test_three_grow_to_five_shrink_and_a_disk_is_replaced(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    grown_to_five(cluster)
    drained_and_removed(cluster, "node-2", "node-5")
    stays = set(cluster.running) - {"node-4"}
    change(cluster, "node-4 is removed", lambda: order(cluster, "node-1", "remove", "node-4"), stays)
    wait_ended(cluster, "node-4")
    view = cluster.wait(lambda view: view.statuses == dict.fromkeys(stays, "active"), what="three are left")
    disk_replaced(cluster, next(name for name in sorted(stays) if name not in view.voters))
    cluster.stop()
    cluster.assert_logs_are_clean(ENDS)


@pytest.mark.slow
def test_the_leader_is_removed_and_a_voter_s_disk_replaced(make_cluster: MakeCluster) -> None:
    """Slow for the half minute of health that whoever replaces a voter has to show, each time."""
    cluster = make_cluster()
    grown_to_five(cluster)
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


def test_a_node_that_holds_tasks_stays(make_cluster: MakeCluster) -> None:
    """There is no replication yet: drain and remove refuse, and partitions with tasks say why they don't move."""
    cluster = make_cluster(["node-1", "node-2"])
    cluster.start("node-1")
    cluster["node-1"].wait_ready()
    ids = [cluster["node-1"].submit("noop", number, delay=3600) for number in range(40)]
    full = {cluster["node-1"].status(task_id)["partition"] for task_id in ids}
    assert len(full) > PARTITIONS / 3, "more than what is left to move"
    time.sleep(0.6)  # two heartbeats: the leader knows what it holds
    cluster.start("node-2")
    cluster.wait_whole(voters=1)
    free = PARTITIONS - len(full)
    until(lambda: cluster.primaries()["node-2"] == min(PARTITIONS // 2, free), what="what is empty moves")
    partitions = cluster.partitions("node-1")
    assert all(one["primary"] == "node-1" for one in partitions if one["partition"] in full)
    if free < PARTITIONS // 2:
        waiting = {one["partition"] for one in partitions if one.get("waiting") == "waiting_for_replication"}
        assert waiting == full
    for what in ("drain", "remove"):
        refused = cluster["node-2"].post(f"/cluster/{what}?node=node-1")
        assert refused.status == 409, refused
        assert "holds tasks" in refused.json["detail"]
    unknown = cluster["node-2"].post("/cluster/drain?node=node-7")
    assert unknown.status == 404
    assert cluster.wait_whole(voters=1).statuses["node-1"] == "active", "nothing has begun"

    # Tasks that come while it is drained are a matter of the others: the empty one goes.
    order(cluster, "node-1", "remove", "node-2")
    wait_ended(cluster, "node-2")
    until(lambda: set(cluster.primaries()) == {"node-1"}, what="node-1 has everything")
    assert all(cluster["node-1"].status(task_id)["status"] == "scheduled" for task_id in ids)
    last = cluster["node-1"].post("/cluster/drain?node=node-1")
    assert last.status == 409
    cluster.stop("node-1")
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
    assert len(accepted) > 10 * refused.total()
    for name in cluster.running:
        assert cluster[name].get("/tasks/stats?scope=cluster").json["stats"]["total"] == len(accepted)
    assert all(cluster["node-3"].status(task_id)["status"] == "scheduled" for task_id in accepted)
    cluster.stop()
    cluster.assert_logs_are_clean()


def test_a_member_that_moves_to_other_ports(cluster: Cluster) -> None:
    """It registers its new addresses, wherever the others still look for it."""
    wait_right(cluster, cluster.ports)
    for name in ("node-2", cluster.leader()):
        cluster.stop(name)
        del cluster.ports[name]
        cluster.port(name)
        cluster.start(name)
        cluster.wait_whole()
        cluster.wait_ready()
        wait_right(cluster, cluster.ports)
