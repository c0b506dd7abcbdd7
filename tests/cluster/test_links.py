"""Cut links (F4, F5): each of the six directed links of three nodes alone, and in pairs.

Peers talk through one proxy for each ordered pair of nodes. A cut link is silent: what was sent arrives when it is healed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.cluster.clusters import Cluster, View, watching
from tests.support.harness import Nodes, TimedOut, until
from tests.support.proxy import Direction, Links

pytestmark = pytest.mark.cluster

NAMES = ("node-1", "node-2", "node-3")
LINKS = tuple(itertools.permutations(NAMES, 2))
"""From, to."""
LEADER_S = 10.0
STEADY_S = 4.0
"""A leader is one that is still there after this: by then pings have gone unanswered, and sessions have run out."""
Link = tuple[str, str]
HARM = r"closed the connection of|refused a connection from"
"""What a node says of peers that it does not hear."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    nodes = Nodes(tmp_path_factory.mktemp("links"))
    cluster = Cluster(nodes, NAMES, links=True)
    try:
        cluster.start()
        cluster.wait_whole()
        cluster.wait_ready()
        yield cluster
        cluster.stop()
        cluster.assert_logs_are_clean(HARM)
    finally:
        cluster.close()
        nodes.close()


def links_of(cluster: Cluster) -> Links:
    assert cluster.links is not None
    return cluster.links


def majority(cut: Iterable[Link]) -> set[str] | None:
    """Nodes that can talk both ways with another one: some two of them are a majority of three. None: there is none."""
    broken = {frozenset(link) for link in cut}
    whole = [pair for pair in itertools.combinations(NAMES, 2) if frozenset(pair) not in broken]
    return {name for pair in whole for name in pair} or None


def has_leader(cluster: Cluster, able: set[str]) -> str | None:
    """One of the able leads, and somebody else of them knows it, in the same term."""
    views = cluster.views(NAMES)
    for name in able:
        view = views[name]
        if view is not None and view.leader == name:
            followers = [other for other in able - {name} if _follows(views[other], view)]
            if followers:
                return name
    return None


def _follows(view: View | None, leader: View) -> bool:
    return view is not None and (view.leader, view.term) == (leader.leader, leader.term)


def wait_steady(cluster: Cluster, able: set[str], deadline_s: float) -> float:
    """Seconds until a leader that stays."""
    began_s = time.monotonic()
    since_s, leader = began_s, ""
    while (now_s := time.monotonic()) < began_s + deadline_s + STEADY_S:
        found = has_leader(cluster, able) or ""
        if found != leader:
            since_s, leader = now_s, found
        if leader and now_s - since_s >= STEADY_S:  # the old one, too, if it stays
            return since_s - began_s
        time.sleep(0.1)
    raise TimedOut(f"no steady leader within {deadline_s:g} s: {cluster.views(NAMES)}")


def cut_and_healed(
    cluster: Cluster, cut: tuple[Link, ...], how: Callable[[Direction], object] = Direction.blackhole
) -> str:
    links = links_of(cluster)
    before = cluster.wait_whole()
    able = majority(cut)
    with watching(cluster, every_s=0.05) as watches:
        for source, sink in cut:
            links.cut(source, sink, how)
        try:
            if able is None:
                time.sleep(STEADY_S)
                told = "no majority"
            else:
                seconds = wait_steady(cluster, able, LEADER_S)
                leader = has_leader(cluster, able)
                told = f"{leader} leads {seconds:.1f} s after the cut"
                if leader is not None:
                    works(cluster, leader)
        finally:
            links.heal()
        healed_s = time.monotonic()
        cluster.wait_whole()
        until(lambda: all(one["primary"] for one in cluster.partitions()), what="every partition has its primary")
        told += f", whole {time.monotonic() - healed_s:.1f} s after healing"
    for watch in watches:
        if (before.leader, watch.node) in cut:
            seen = {sample.view.leader for sample in watch.samples}
            assert seen != {before.leader}, "the cut is one: this node does not hear the leader any more"
    shown = " and ".join(f"{source[-1]}→{sink[-1]}" for source, sink in cut)
    print(f"\n  {before.leader} led, {shown} cut: {told}", end="")
    return told


def works(cluster: Cluster, leader: str) -> None:
    """What it decides is committed: a majority answers it."""
    queue = f"q{time.monotonic_ns()}"
    for what in ("pause", "resume"):
        answer = cluster[leader].post(f"/tasks/{what}?queue={queue}")
        assert answer.status == 200, answer


# --- in the push run: every kind, seen from the leader L and its followers A and B ---
KINDS = ("L→A", "A→L", "L→A L→B", "A→L B→L", "A→B", "L→A A→B", "L→A A→L")
"""One each; a leader that is not heard, one that is deaf; in make long a link of followers; a chain; a link as a whole."""


@pytest.mark.parametrize("kind", [*KINDS[:-3], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[-3:])])
def test_each_kind_of_cut(cluster: Cluster, kind: str) -> None:
    leader = cluster.leader()
    roles = dict(zip("LAB", [leader, *(name for name in NAMES if name != leader)], strict=True))
    told = cut_and_healed(cluster, tuple((roles[link[0]], roles[link[2]]) for link in kind.split()))
    if kind in ("A→B", "A→L"):
        assert told.startswith(f"{leader} leads"), "nobody disturbs it"
    if kind in ("L→A L→B", "A→L B→L"):
        assert not told.startswith(f"{leader} leads"), "it cannot lead (check-quorum)"


# --- by name: all of them ---
@pytest.mark.long
@pytest.mark.parametrize("link", LINKS, ids="→".join)
def test_one_link_is_cut(cluster: Cluster, link: Link) -> None:
    cut_and_healed(cluster, (link,))


@pytest.mark.long
@pytest.mark.parametrize(
    "pair", list(itertools.combinations(LINKS, 2)), ids=lambda pair: " and ".join("→".join(link) for link in pair)
)
def test_two_links_are_cut(cluster: Cluster, pair: tuple[Link, Link]) -> None:
    cut_and_healed(cluster, pair)


def test_the_leader_is_cut_off(cluster: Cluster) -> None:
    """Four links: what it still believes is over before the others have chosen, and it comes back without disturbing them."""
    leader = cluster.leader()
    cut = [(leader, other) for other in NAMES if other != leader]
    cut_and_healed(cluster, (*cut, *((sink, source) for source, sink in cut)))
    assert cluster.leader() != leader


@pytest.mark.long
def test_a_follower_that_was_cut_off_disturbs_nobody(cluster: Cluster) -> None:
    """F4: it asks for votes all the time, in vain, and comes back to the same leader and term."""
    before = cluster.wait_whole()
    follower = next(name for name in NAMES if name != before.leader)
    links_of(cluster).isolate(follower, [name for name in NAMES if name != follower])
    cluster.wait(lambda view: view.statuses[follower] == "down", names=set(NAMES) - {follower}, what="down")
    time.sleep(15.0)
    links_of(cluster).heal()
    after = cluster.wait_whole()
    assert (after.leader, after.term) == (before.leader, before.term)


@pytest.mark.long
@pytest.mark.parametrize("link", LINKS, ids="→".join)
def test_one_link_loses_everything(cluster: Cluster, link: Link) -> None:
    """As one that is cut, and what was on its way never arrives: the connections break when it is healed."""
    cut_and_healed(cluster, (link,), Direction.drop)
