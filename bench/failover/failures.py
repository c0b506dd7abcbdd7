"""What is done to a cluster in one round, and how it becomes whole again."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import NamedTuple

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import NAMES, led_by, wait_settled
from tests.support.harness import until

GONE_S = 30.0


class Hurt(NamedTuple):
    """:param victims: the nodes on whose partitions writes stop."""

    victims: tuple[str, ...]
    leader: str


Draw = Callable[[Cluster, random.Random], Hurt]


class Failure(NamedTuple):
    """:param hurt: does it, and takes no time. :param heal: undoes it, and waits until the cluster is as it was.

    :param heals_under_load: the writers go on through ``heal``, and what they see then counts too.
    :param links: peers talk over links that can be cut. :param goal_s: of p50 and p99; None: there is none.
    """

    name: str
    title: str
    draw: Draw
    hurt: Callable[[Cluster, Hurt], None]
    heal: Callable[[Cluster, Hurt], None]
    goal_s: tuple[float | None, float | None] = (None, None)
    heals_under_load: bool = False
    links: bool = False


# --- whom it hits ---
def a_follower(cluster: Cluster, rolls: random.Random) -> Hurt:
    leader = cluster.leader()
    return Hurt((rolls.choice([name for name in NAMES if name != leader]),), leader)


def the_leader(cluster: Cluster, rolls: random.Random) -> Hurt:
    leader = cluster.leader()
    return Hurt((leader,), leader)


def both_followers(cluster: Cluster, rolls: random.Random) -> Hurt:
    leader = cluster.leader()
    return Hurt(tuple(name for name in NAMES if name != leader), leader)


def the_leader_and_a_follower(cluster: Cluster, rolls: random.Random) -> Hurt:
    leader = cluster.leader()
    return Hurt((leader, rolls.choice([name for name in NAMES if name != leader])), leader)


def anybody(cluster: Cluster, rolls: random.Random) -> Hurt:
    return Hurt((rolls.choice(NAMES),), cluster.leader())


# --- kill -9 ---
def kill(cluster: Cluster, hurt: Hurt) -> None:
    os.kill(cluster[hurt.victims[0]].pid, signal.SIGKILL)


def start_again(cluster: Cluster, hurt: Hurt) -> None:
    (victim,) = hurt.victims
    cluster[victim].kill9()  # it is dead; this collects it
    _start(cluster, victim)


def _start(cluster: Cluster, name: str) -> None:
    cluster.start(name)
    cluster[name].wait_ready()
    cluster.wait_whole()
    wait_settled(cluster)


# --- SIGSTOP ---
def stop(cluster: Cluster, hurt: Hurt) -> None:
    cluster[hurt.victims[0]].stop()


def go_on(cluster: Cluster, hurt: Hurt) -> None:
    cluster.wait_gone(hurt.victims[0])
    cluster[hurt.victims[0]].cont()
    cluster.wait_whole()
    wait_settled(cluster)


# --- a link is cut, both ways; nobody is told (no reset, no refused port) ---
def cut(cluster: Cluster, hurt: Hurt) -> None:
    one, other = hurt.victims
    assert cluster.links is not None
    cluster.links.cut(one, other)
    cluster.links.cut(other, one)


def mend(cluster: Cluster, hurt: Hurt) -> None:
    assert cluster.links is not None
    cluster.links.heal()
    cluster.wait_whole()
    wait_settled(cluster)


def mend_and_forget(cluster: Cluster, hurt: Hurt) -> None:
    """A copy that left its set for lag comes back the later, the more often it did. One end starts anew: forgotten."""
    assert cluster.links is not None
    cluster.links.heal()
    cluster.wait_whole()
    assert cluster[hurt.victims[0]].terminate() == 0
    _start(cluster, hurt.victims[0])


# --- in order ---
def drain(cluster: Cluster, hurt: Hurt) -> None:
    (victim,) = hurt.victims
    asked = next(name for name in NAMES if name != victim)
    answer = cluster[asked].post(f"/cluster/drain?node={victim}")
    assert answer.status < 300, answer


def stay(cluster: Cluster, hurt: Hurt) -> None:
    """Once it has given up everything that it led, it gets its share back."""
    (victim,) = hurt.victims
    other = next(name for name in NAMES if name != victim)
    until(lambda: not led_by(cluster, victim, other), deadline_s=GONE_S, what=f"{victim} leads nothing")
    answer = cluster[other].post(f"/cluster/undrain?node={victim}")
    assert answer.status < 300, answer
    cluster.wait_whole()
    wait_settled(cluster)


def terminate(cluster: Cluster, hurt: Hurt) -> None:
    cluster[hurt.victims[0]].signal(signal.SIGTERM)


def restart(cluster: Cluster, hurt: Hurt) -> None:
    (victim,) = hurt.victims
    assert cluster[victim].wait() == 0, cluster[victim].log_tail()
    _start(cluster, victim)


DEATH_S = (0.25, 0.6)
SILENCE_S = (2.5, None)
IN_ORDER_S = (0.2, 0.2)
FAILURES = (
    Failure("kill9", "kill -9 of a primary's node", a_follower, kill, start_again, DEATH_S),
    Failure("kill9-leader", "kill -9 of the Raft leader's node", the_leader, kill, start_again, DEATH_S),
    Failure("sigstop", "SIGSTOP of a primary's node", a_follower, stop, go_on, SILENCE_S),
    Failure("sigstop-leader", "SIGSTOP of the Raft leader's node", the_leader, stop, go_on),
    Failure("cut", "link between two nodes cut", both_followers, cut, mend_and_forget, links=True),
    Failure("cut-leader", "link between a node and the Raft leader cut", the_leader_and_a_follower, cut, mend, links=True),
    Failure("drain", "drain of a node", anybody, drain, stay, IN_ORDER_S),
    Failure("rolling", "rolling restart (SIGTERM, start, share taken back)", anybody, terminate, restart, IN_ORDER_S, True),
)  # fmt: skip
