"""Schedules too narrow for a swarm: each is made by hand, and raises where the rule it is about does not hold."""

from __future__ import annotations

from msgspec.structs import replace

from tests.simulation.families import need
from tests.simulation.raft.faults import Faults
from tests.simulation.raft.world import RaftWorld
from tests.support.world import MS_US, SECOND_US
from tq_node.raft.core import RaftCore, founding
from tq_node.raft.messages import Append, Entry, EntryKind, Persisted, SnapshotChunk
from tq_node.types import NodeId

ME, OLD, NEW = NodeId("n1"), NodeId("n2"), NodeId("n3")


def entry(term: int, log_index: int) -> Entry:
    return Entry(term, log_index, EntryKind.DATA, b"%d" % term)


def follower(*terms: int) -> RaftCore:
    """One of three voters, with entries of these terms behind the founding one, on disk."""
    hard_state, snapshot = founding([ME, OLD, NEW])
    entries = tuple(entry(term, index) for index, term in enumerate(terms, 2))
    return RaftCore(ME, Persisted(replace(hard_state, term=max((1, *terms))), snapshot, entries), seed=1)


def run_cut_write(_seed: int = 0) -> None:
    """A write is on its way, and the log is cut: the disk's answer does not make the new entries durable."""
    core = follower(2)
    core.step(Append(OLD, ME, 2, 2, 2, 1, (entry(2, 3),)), 0)
    first = core.ready()
    core.step(Append(NEW, ME, 3, 2, 2, 3, (entry(3, 3),)), 0)
    second = core.ready()
    core.persisted(first.number)
    need(core.log.durable_index == 2, "a write counts only for what is still in the log")
    need(not core.ready().committed or core.log.applied_index < 3, "nothing is applied that is not durable")
    core.persisted(second.number)
    need(core.log.durable_index == 3, "and the second write makes its entries durable")


def run_leftovers(_seed: int = 0) -> None:
    """Behind what an append has proven to be the leader's there may be leftovers of another term."""
    core = follower(2, 3, 3, 3)
    core.step(Append(NEW, ME, 4, 2, 2, 5, (entry(3, 3),)), 0)
    need(core.commit_index == 3, "only what an append has proven is committed by it:", core.commit_index)


def run_old_snapshot(_seed: int = 0) -> None:
    """F6: a snapshot that was under way for long comes after newer entries were committed and the log below them dropped."""
    core = follower(2, 2)
    core.step(Append(OLD, ME, 2, 3, 2, 4, (entry(2, 4),)), 0)
    core.persisted(core.ready().number)
    core.ready()
    snapshot = core.snapshot_at(4, b"")
    assert snapshot is not None
    core.compact(snapshot, 5)
    core.step(SnapshotChunk(OLD, ME, 2, 2, 2, core.configuration, 1, 0, 0, b""), 0)
    need(core.ready().snapshot is None, "a snapshot older than the commit index is not installed")
    need(core.commit_index == 4, "a commit index never decreases")


def snapshot_crash(rule_breaks: frozenset[str], seed: int) -> None:
    """F6: a follower gets a snapshot, and dies before it is on its disk: what it has said to have is still there."""
    faults = Faults(evidence=False, compact=(5, 0), work_every_us=40_000, read_share=0.0)
    world = RaftWorld(seed, voters=3, faults=faults, rule_breaks=rule_breaks)
    world.run(5 * SECOND_US)
    leader = world.the_leader()
    victim = next(
        node for node in world.nodes.values() if node.me in leader.core.configuration.voters and node is not leader
    )
    for name in world.names:
        world.network.cut[leader.me, name if name == victim.me else victim.me] = True
    world.run(3 * SECOND_US)
    world.network.heal()
    victim.disk.delay_us = (100 * MS_US, 200 * MS_US)
    for _ in range(3_000):
        world.run(MS_US)
        if victim.core.log.snapshot.log_index > victim.durable.snapshot.log_index + 5:
            break
    else:
        need(False, "the follower gets a snapshot")
    victim.disk._waiting.clear()  # nothing of it has reached the disk
    victim.crash()
    world.checkers.crashed(victim)
    world.restart(victim)
    world.heal()
    world.settle()


def run_snapshot_crash(seed: int = 0) -> None:
    snapshot_crash(frozenset(), seed)
