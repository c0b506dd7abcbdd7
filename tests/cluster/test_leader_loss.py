"""The leader dies, or a node sleeps: who leads, who is taken for dead, and how soon. Figures are printed.

Asserted are the figures themselves where the test is alone on the machine (marked long), and ten times as much in the push run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.cluster.clusters import Cluster, Watch, watching, whole_cluster
from tests.cluster.replicated import wait_copies, wait_settled
from tests.support.harness import until
from tq_node.cluster.settings import DEFAULT_SETTINGS
from tq_node.runtime.control.membership import HEARTBEAT_S

pytestmark = pytest.mark.cluster

LEADER_S_MEDIAN = 0.3
LEADER_S_MAX = 0.8
PRIMARIES_S_MAX = 0.5
SESSION_S = DEFAULT_SETTINGS.session_ms / 1000
SHARED = 10
"""How much slower it may be where other tests share two cores."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Each test leaves it whole; those that leave words of a sleeper in the logs come last."""
    with whole_cluster(tmp_path_factory.mktemp("losses")) as cluster:
        yield cluster


class Times(NamedTuple):
    leader: float
    """From the kill until a survivor shows another leader."""
    down: float
    """Until all survivors show the dead node as down."""
    primaries: float
    """Until all survivors show that it is no partition's primary."""


def loss(cluster: Cluster, name: str, every_s: float = 0.02) -> Times:
    """kill -9 of the node and what the others show after it."""
    survivors = cluster.others(name)
    with watching(cluster, *survivors, partitions=True, every_s=every_s) as watches:
        until(lambda: all(watch.samples for watch in watches), what="the watches look")
        killed_s = time.monotonic()
        cluster[name].kill9()
        cluster.wait_gone(name)

        def seen() -> list[Times] | None:
            times = [told(watch, name, killed_s) for watch in watches]
            return None if None in times else [time for time in times if time is not None]

        times = until(seen, what=f"{name} is leader and primary of nothing")
    assert times is not None
    return Times(min(one.leader for one in times), max(one.down for one in times), max(one.primaries for one in times))


def told(watch: Watch, dead: str, since_s: float) -> Times | None:
    leader = watch.first(lambda sample: sample.view.leader not in (None, dead), since_s)
    down = watch.first(lambda sample: sample.view.statuses[dead] == "down", since_s)
    primaries = watch.first(lambda sample: dead not in (sample.primaries or ()), since_s)
    return None if leader is None or down is None or primaries is None else Times(leader, down, primaries)


def shown(name: str, seconds: list[float]) -> str:
    return f"{name} {statistics.median(seconds):.3f} s in the median, {max(seconds):.3f} s at worst"


def rounds(cluster: Cluster, count: int, every_s: float = 0.02) -> list[Times]:
    times = []
    for _ in range(count):
        leader = cluster.leader()
        times.append(loss(cluster, leader, every_s))
        term = cluster.wait(lambda view: True, what="one leader").term
        cluster.start(leader)
        view = cluster.wait_whole()
        cluster.wait_ready()
        assert view.leader != leader, "the old one comes back as a follower"
        assert view.term == term, "and disturbs nobody"
    kinds = ("another leader", "shown as down", "primary of nothing")
    print(
        f"\n{count} times kill -9 of the leader:", *map(shown, kinds, map(list, zip(*times, strict=True))), sep="\n  "
    )
    cluster.assert_logs_are_clean()
    return times


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.long)])
def test_leaders_die(cluster: Cluster, count: int) -> None:
    times = rounds(cluster, count)
    assert statistics.median(one.leader for one in times) < LEADER_S_MEDIAN * SHARED
    assert max(one.leader for one in times) < LEADER_S_MAX * SHARED
    assert max(one.primaries for one in times) < PRIMARIES_S_MAX * SHARED


@pytest.mark.long
@pytest.mark.timed
def test_twenty_leaders_die(cluster: Cluster) -> None:
    times = rounds(cluster, 20, every_s=0.005)
    assert statistics.median(one.leader for one in times) < LEADER_S_MEDIAN
    assert max(one.leader for one in times) < LEADER_S_MAX
    assert max(one.primaries for one in times) < PRIMARIES_S_MAX


# --- silence is not death, death is ---
def pause_and_kill(cluster: Cluster, name: str) -> float:
    """SIGSTOP for a second less than ``T_session`` changes no primary; kill -9 takes all of that node's away, and how soon."""
    other = cluster.others(name)[0]
    before = cluster.partitions(other)
    mine = {one["partition"] for one in before if one["primary"] == name}
    assert 20 <= len(mine) <= 22
    with watching(cluster, *cluster.others(name), partitions=True, every_s=0.05) as watches:
        cluster[name].stop()
        time.sleep(SESSION_S - 1.0)
        cluster[name].cont()
        time.sleep(1.0)
    for watch in watches:
        assert {sample.view.statuses[name] for sample in watch.samples} <= {"active", "suspect"}
        assert {sample.primaries for sample in watch.samples} == {tuple(one["primary"] for one in before)}
    cluster.wait_whole()
    assert [(one["primary"], one["epoch"]) for one in cluster.partitions(other)] == [
        (one["primary"], one["epoch"]) for one in before
    ]
    times = loss(cluster, name)
    after = cluster.partitions(other)
    assert set(cluster.running) == {one["primary"] for one in after if one["partition"] in mine}, "shared by the others"
    assert not any(name in one["in_sync"] for one in after), "it left the sets in the same entry (R3)"
    assert [(one["primary"], one["epoch"]) for one in after if one["partition"] not in mine] == [
        (one["primary"], one["epoch"]) for one in before if one["partition"] not in mine
    ], "what it did not lead goes on as it was"
    assert all(after[p]["epoch"] == before[p]["epoch"] + 1 for p in mine), "one choice each (R2)"
    wait_copies(cluster)
    cluster.start(name)
    cluster.wait_whole()
    wait_settled(cluster)
    return times.primaries


@pytest.mark.parametrize("who", [pytest.param("follower", marks=pytest.mark.long), "leader"])
def test_a_pause_changes_no_primary_and_a_death_changes_all(cluster: Cluster, who: str) -> None:
    wait_settled(cluster)
    leader = cluster.leader()
    seconds = pause_and_kill(cluster, leader if who == "leader" else cluster.others(leader)[0])
    print(f"\nkill -9 of the {who}: primary of nothing after {seconds:.3f} s")
    assert seconds < PRIMARIES_S_MAX * SHARED
    cluster.assert_logs_are_clean()


def test_all_at_once(cluster: Cluster) -> None:
    """F26: kill -9 of all three, back in some other order: the same cluster, nothing lost."""
    wait_settled(cluster)
    ids = [cluster["node-1"].submit("noop", number, delay=3600) for number in range(30)]
    view = cluster.wait_whole()
    for name in list(cluster.running):
        cluster[name].kill9()
    cluster.start("node-2", "node-3", "node-1")
    again = cluster.wait_whole()
    wait_settled(cluster)  # a strong read can't be proven fresh while its partition changes hands
    cluster.wait_ready()
    assert again.cluster_id == view.cluster_id
    assert again.term > view.term
    assert all(cluster["node-3"].status(task_id)["status"] == "scheduled" for task_id in ids)
    cluster.assert_logs_are_clean()


# --- a sleeper wakes ---
def test_a_leader_that_wakes_finds_another(cluster: Cluster) -> None:
    """F40: it does not act on what it believed when it fell asleep."""
    before = cluster.wait_whole()
    sleeper = before.leader
    assert sleeper is not None
    with watching(cluster, every_s=0.05):
        cluster[sleeper].stop()
        view = cluster.wait_gone(sleeper)
        assert view.leader != sleeper
        time.sleep(0.5)
        cluster[sleeper].cont()
        after = cluster.wait_whole()
        assert (after.leader, after.term) == (view.leader, view.term), "the sleeper follows"
        wait_settled(cluster)
    cluster.assert_logs_are_clean()


@pytest.mark.parametrize("sleep_s", [4.0, pytest.param(40.0, marks=pytest.mark.long)])
def test_a_follower_that_wakes_disturbs_nobody(cluster: Cluster, sleep_s: float) -> None:
    before = cluster.wait_whole()
    wait_settled(cluster)
    held = cluster.partitions()
    sleeper = next(name for name in cluster.running if name != before.leader)
    mine = {one["partition"] for one in held if one["primary"] == sleeper}
    others = cluster.others(sleeper)
    with watching(cluster, *others, every_s=0.05) as watches:
        stopped_s = time.monotonic()
        cluster[sleeper].stop()
        cluster.wait_gone(sleeper)
        down_s = time.monotonic() - stopped_s
        without = cluster.partitions(others[0])
        time.sleep(max(0.0, stopped_s + sleep_s - time.monotonic()))
        cluster[sleeper].cont()
        woken_s = time.monotonic()
        cluster.wait_whole()
        wait_settled(cluster)
        print(f"\ndown {down_s:.1f} s after SIGSTOP, back {time.monotonic() - woken_s:.2f} s after SIGCONT")
        time.sleep(1.0)
    for watch in watches:
        assert {(sample.view.leader, sample.view.term) for sample in watch.samples} == {(before.leader, before.term)}
    assert SESSION_S - 2 * HEARTBEAT_S < down_s < SESSION_S + PRIMARIES_S_MAX * SHARED
    for one, then in zip(without, held, strict=True):
        assert (one["primary"], one["epoch"]) != (then["primary"], then["epoch"]) or one["partition"] not in mine
        assert one["primary"] in others
        assert one["partition"] in mine or one["epoch"] == then["epoch"], "what it did not lead goes on as it was"
    done = cluster[sleeper].status(cluster[others[0]].submit("email"), wait_s=10)
    assert done["status"] == "completed"
    cluster.assert_logs_are_clean(r"nothing heard for \d+ s")
