"""F14 in the log of consensus: a voter whose disk was set back behind what it had acknowledged, and a leader that lies.

Each schedule takes a seed, which varies the timing, and raises ``Violation`` where the rule it is about does not hold.
"""

from __future__ import annotations

import copy

from tests.simulation.families import need
from tests.simulation.raft.node import Durable, RaftNode
from tests.simulation.raft.partitions import settled
from tests.simulation.raft.world import RaftWorld
from tests.support.world import MS_US, SECOND_US
from tq_node.raft.messages import Heartbeat
from tq_node.types import NodeId

FAR = 2**31


def _cut_off(world: RaftWorld, name: NodeId, *, from_: list[NodeId]) -> None:
    for other in from_:
        if other != name:
            world.network.cut[name, other] = world.network.cut[other, name] = True


def _set_back(world: RaftWorld, node: RaftNode, older: Durable) -> None:
    node.crash()
    world.checkers.crashed(node)
    node.durable.hard_state, node.durable.snapshot = older.hard_state, older.snapshot
    node.durable.entries = older.entries
    world.checkers._kept.pop(node.me, None)
    world.restart(node)


def _committed_without(seed: int) -> tuple[RaftWorld, RaftNode, RaftNode, RaftNode]:
    """Leader and victim have committed what the third voter, which is cut off, lacks; then the victim's disk is set back."""
    world, leader = settled(seed)
    victim, third = (world.nodes[name] for name in leader.core.configuration.voters if name != leader.me)
    _cut_off(world, third.me, from_=world.names)
    older = copy.deepcopy(victim.durable)
    for _ in range(5):
        leader.event(world._propose, leader, 10)
    world.run(SECOND_US // 2)
    need(victim.core.commit_index > older.last_index, "the victim has acknowledged what its older disk lacks")
    world.network.cut[victim.me, leader.me] = True  # it hears the leader, and is not sent what it lacks
    _set_back(world, victim, older)
    for _ in range(2_000):
        if victim.core.claim is not None:
            break
        world.run(MS_US)
    need(victim.core.claim is not None, "the leader's heartbeat tells it that it had acknowledged more")
    return world, leader, victim, third


def run_set_back(seed: int) -> None:
    """The leader is cut off. The other two are a majority, and lack what is committed: they must not elect each other."""
    world, leader, victim, third = _committed_without(seed)
    committed = world.checkers.commit_index
    _cut_off(world, leader.me, from_=world.names)
    for one, other in ((victim, third), (third, victim)):
        world.network.cut.pop((one.me, other.me), None)
    world.run(30 * SECOND_US)
    need(not victim.core.is_leader, "F14: who lost what it had acknowledged does not lead")
    need(not third.core.is_leader, "F14: nor does it help one to lead who never had it")
    world.heal()
    world.settle()
    need(world.checkers.commit_index >= committed, "nothing that was committed is lost")
    need(victim.core.claim is None, "once an entry agrees the claim is settled")


def run_refilled(seed: int) -> None:
    """Nothing else is wrong: the leader sends again what is missing, in its own term, and the victim counts again."""
    world, leader, victim, _ = _committed_without(seed)
    term = leader.core.term
    world.network.cut.pop((victim.me, leader.me), None)
    world.run(SECOND_US)
    need(leader.core.is_leader and leader.core.term == term, "the leader stays")
    need(victim.core.claim is None, "the claim is settled")
    need(victim.machine.index == leader.core.commit_index, "the victim has everything again")
    index = leader.core.commit_index
    leader.event(world._propose, leader, 10)
    world.run(SECOND_US)
    need(leader.core.commit_index > index, "and with it the leader commits, while the third is away")
    world.heal()
    world.settle()


def _lie_to(world: RaftWorld, liar: NodeId, victim: RaftNode) -> None:
    core = victim.core
    victim.receive(Heartbeat(liar, victim.me, core.term + 1, core.log.last_index + FAR, 1))
    need(core.claim is not None, "what a leader says is heeded, or shown at least")


def run_lie(seed: int) -> None:
    """Two of three voters are told, as if by the third, that they had acknowledged what nobody ever wrote. They know better."""
    world, leader = settled(seed)
    voters = leader.core.configuration.voters
    liar = voters[seed % 3]
    world.nodes[liar].crash()
    world.checkers.crashed(world.nodes[liar])
    for name in voters:
        if name != liar:
            _lie_to(world, liar, world.nodes[name])
    world.run(10 * SECOND_US)
    leader = world.the_leader()
    need(leader.core.commit_index == leader.core.log.last_index, "it commits")
    world.heal()
    world.settle()
    world.check_works()


def run_lie_at_start(seed: int) -> None:
    """The same to two that have just started and heard nobody: for all they know it is true. But nobody has the entry."""
    world, leader = settled(seed)
    voters = leader.core.configuration.voters
    nodes = [world.nodes[name] for name in voters]
    for node in nodes:
        node.crash()
        world.checkers.crashed(node)
    liar = voters[seed % 3]
    for node in nodes:
        world.restart(node)
    for node in nodes:
        if node.me != liar:
            _lie_to(world, liar, node)
            need(not node.core._lost_log.may_campaign(), "a claim that may be true binds")
    world.run(60 * SECOND_US)
    for node in nodes:
        need(node.core.claim is None, "a claim that nobody's log bears out is settled:", node.me)
    world.heal()
    world.settle()
    world.check_works()


SCHEDULES = (run_set_back, run_refilled, run_lie, run_lie_at_start)
