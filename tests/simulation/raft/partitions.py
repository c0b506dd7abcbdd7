"""Schedules of their own: a node that was away (F4), links that work one way only (F5), a pause in mid-round, an old snapshot.

Each takes a seed, which varies the timing, and raises ``Violation`` where the rule it is about does not hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from tests.simulation.families import need
from tests.simulation.raft.faults import Faults
from tests.simulation.raft.node import RaftNode
from tests.simulation.raft.world import RaftWorld
from tests.support.world import MS_US, SECOND_US
from tq_node.raft.messages import Change, ChangeKind

DIRECTED_LINKS = tuple(itertools.permutations(("n1", "n2", "n3"), 2))
CUTS = (*((link,) for link in DIRECTED_LINKS), *itertools.combinations(DIRECTED_LINKS, 2))
"""Every one of the 6 directed links of 3 nodes, alone and in pairs: 21."""
Schedule = Callable[[int], None]
QUIET = Faults(actions=(), evidence=False)


def settled(seed: int, voters: int = 3) -> tuple[RaftWorld, RaftNode]:
    world = RaftWorld(seed, voters=voters, faults=QUIET)
    world.run(5 * SECOND_US)
    return world, world.the_leader()


def run_isolated(seed: int) -> None:
    """F4: a follower is cut off for 60 s and comes back. The leader stays, and so does its term."""
    world, leader = settled(seed)
    term = leader.core.term
    away = next(name for name in leader.core.configuration.voters if name != leader.me)
    for name in world.names:
        if name != away:
            world.network.cut[away, name] = world.network.cut[name, away] = True
    world.run(60 * SECOND_US)
    world.heal()
    world.settle()
    need(world.the_leader() is leader, "F4: who was away deposes nobody")
    need(leader.core.term == term, "F4: who was away brings no higher term")


def run_removed(seed: int) -> None:
    """F4: a removed node that does not know it disturbs nobody."""
    world, leader = settled(seed, voters=4)
    term = leader.core.term
    removed = next(name for name in leader.core.configuration.voters if name != leader.me)
    world.gone.append(removed)
    leader.event(leader.core.propose_change, Change(ChangeKind.REMOVE, removed))
    world.run(60 * SECOND_US)
    need(world.the_leader() is leader, "F4: a removed node deposes nobody")
    need(leader.core.term == term, "F4: a removed node brings no higher term")


def run_unheard_leader(seed: int) -> None:
    """F5: one follower no longer hears its leader, but all hear the follower. Nobody writes, so its log is as good as any."""
    world, leader = settled(seed)
    world._work_on = False
    world.run(SECOND_US)
    term = leader.core.term
    victim = next(name for name in leader.core.configuration.voters if name != leader.me)
    world.network.cut[leader.me, victim] = True
    world.run(20 * SECOND_US)
    need(world.the_leader() is leader, "F5: who does not hear the leader deposes nobody")
    need(leader.core.term == term, "F5: who does not hear the leader brings no higher term")


def run_links(seed: int) -> None:
    """F5: links that work one way only. Somebody leads and commits, and leaders do not shuffle."""
    cut = CUTS[seed % len(CUTS)]
    world, _ = settled(seed)
    for source, target in cut:
        world.network.cut[source, target] = True
    world.run(10 * SECOND_US)
    before, terms = world.checkers.commit_index, world.checkers.term_max
    world.run(30 * SECOND_US)
    need(world.checkers.commit_index > before + 5, "F5: a majority that can talk commits:", cut)
    need(world.checkers.term_max <= terms + 2, "F5: leaders do not shuffle:", cut, world.checkers.term_max - terms)
    world.heal()
    world.settle()
    world.check_works()


def run_deaf_leader(seed: int) -> None:
    """F5: a leader that is heard and hears nothing steps down within two election timeouts."""
    world, leader = settled(seed)
    for name in world.names:
        if name != leader.me:
            world.network.cut[name, leader.me] = True
    world.run(3 * SECOND_US)
    need(not leader.core.is_leader, "check-quorum: a leader that hears no majority steps down")
    world.run(5 * SECOND_US)
    need(world.leaders(), "check-quorum: another leads")


def run_stuck_candidate(seed: int) -> None:
    """A node whose term is higher than its leader's is told, and tells; it does not stay apart for ever."""
    world, leader = settled(seed)
    victim = world.nodes[next(name for name in leader.core.configuration.voters if name != leader.me)]
    for name in world.names:
        if name != victim.me:
            world.network.cut[victim.me, name] = world.network.cut[name, victim.me] = True
    world.run(100 * MS_US)
    victim.event(victim.core._election.campaign_for_real)
    world.run(2 * SECOND_US)
    world.heal()
    world.settle()
    world.check_works()


def run_paused_reads(seed: int) -> None:
    """A leader sends a round, is stopped, and wakes with the answers in its sockets, while another leads and has committed."""
    world, leader = settled(seed)
    leader.event(leader.core._reads.begin_round)
    world.run(seed % 5 * MS_US + 400)
    leader.pause(8 * SECOND_US)
    world.run(8 * SECOND_US - 1)
    node = leader
    node.event(lambda: None)
    floor = world.checkers.commit_index
    # It wakes with a client's request first in line, before the answers to the old round.
    node._inbox.appendleft((node.read, (floor,)))
    world.run(3 * SECOND_US)
    world.heal()
    world.settle()


def run_evidence(seed: int) -> None:
    """R5a: with evidence of the leader's death another leads within 0.75 s; silence alone takes at least 0.8 s."""
    world = RaftWorld(seed, voters=3, faults=Faults(evidence=True))
    world.run(5 * SECOND_US)
    leader = world.the_leader()
    world.run(seed % 200 * MS_US)
    leader.crash()
    world.checkers.crashed(leader)
    for other in world.nodes.values():
        if other is not leader:
            world.time.after(world.nemesis.randint(50, 100) * MS_US, world._tell_death, other, leader)
    world.run(750 * MS_US)
    need(world.leaders(), "with evidence of death another leads soon")


def run_promotion(seed: int) -> None:
    """A learner is promoted only when it is caught up: a vote given to one without the log would stop commits."""
    world, leader = settled(seed)
    fresh = world.names[3]
    leader.event(leader.core.propose_change, Change(ChangeKind.ADD_LEARNER, fresh))
    world.run(50 * MS_US)
    world.network.cut[leader.me, fresh] = True
    world.run(3 * SECOND_US)
    leader.event(world._try, leader, lambda: leader.core.propose_change(Change(ChangeKind.PROMOTE, fresh)))
    need(fresh not in leader.core.configuration.voters, "only a learner that is caught up is promoted")
