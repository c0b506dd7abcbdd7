"""Schedules of their own, where a swarm would rarely get: idle replicas, recovery outside the rules, a lost proposal."""

from __future__ import annotations

from tests.simulation.families import need
from tests.simulation.replication.faults import Faults
from tests.simulation.replication.node import DataNode
from tests.simulation.replication.world import PARTITIONS, ReplicationWorld
from tests.support.world import MS_US, SECOND_US
from tq_node.cluster.commands import DrainNode, UnsafeRecover
from tq_node.types import NodeId, PartitionId


def quiet(seed: int, nodes: int, **pace: int) -> ReplicationWorld:
    """Nothing breaks by itself."""
    world = ReplicationWorld(seed, faults=Faults(nodes=nodes, pace=pace))
    world.run(8 * SECOND_US)
    for partition in range(PARTITIONS):
        need(len(world.table.map.partitions[partition].isr) == 3, "a newborn cluster has all its copies soon")
    return world


def cut_pair(world: ReplicationWorld, a: NodeId, b: NodeId) -> None:
    """Between these two nothing passes; both still talk to the rest, the controller among them, so nobody is declared dead."""
    world.table.leader = next(node for node in world.nodes if node not in (a, b))
    world.network.cut[a, b] = world.network.cut[b, a] = True


def run_idle(seed: int) -> None:
    """F45: with no writes a replica falls silent; the set shrinks all the same, and grows again."""
    world = quiet(seed, 3)
    world._work_on = False
    world.run(3 * SECOND_US)
    entry = world.table.map.partitions[0]
    assert entry.primary is not None
    other = next(node for node in entry.isr if node != entry.primary)
    cut_pair(world, entry.primary, other)
    world.run(6 * SECOND_US)
    now = world.table.map.partitions[0]
    need(other not in now.isr, "idleness hides no failure (F45):", now)
    world.heal()
    world.settle()


def run_recovery(seed: int) -> None:
    """A copy that lags is made the partition; those that have another history start from nothing, and do not halt."""
    world = quiet(seed, 5)
    entry = world.table.map.partitions[0]
    assert entry.primary is not None
    for spare in world.nodes:
        if spare not in entry.copies:
            world.table.commit(DrainNode(spare))  # it counts for the table's majority, and takes no lost copy's place
    lagging = next(node for node in entry.isr if node != entry.primary)
    cut_pair(world, entry.primary, lagging)
    world.run(6 * SECOND_US)
    entry = world.table.map.partitions[0]
    need(lagging not in entry.isr, "who lags leaves the set:", entry)
    lost = [world.nodes[node] for node in entry.isr]
    for node in lost:
        world.crash(node)
    world.network.heal()
    world.run(5 * SECOND_US)  # a leader of the table may be among the dead, and its successor declares them dead
    entry = world.table.map.partitions[0]
    need(entry.primary is None, "a partition without its set has no primary:", entry)
    stored = world.nodes[lagging].store.partition(0)
    history = world.checkers.histories[0]
    kept = min(stored.last_sequence, history.length)
    while kept and stored.epoch_at(kept) != history.epoch(kept):
        kept -= 1
    world.checkers.recovered(0, kept, (stored.last_sequence, entry.epoch + 1))
    world.table.commit(UnsafeRecover(PartitionId(0), entry.epoch, entry.partition_version, lagging))
    recoveries = world.table.map.partitions[0].unsafe_recovered
    need([recovery.epoch for recovery in recoveries] == [entry.epoch + 1], "the recovery is recorded:", recoveries)
    world.run(4 * SECOND_US)
    for node in lost:
        need(history.has_abandoned(node.store.partition(0)), "the world brings back another history:", node.me)
        world.restart(node)
        world.run(2 * SECOND_US)  # it learns of the recovery; two that have not could go on with the lost history
    world.run(11 * SECOND_US)
    copies = world.table.map.partitions[0].copies
    need({node.me for node in lost} <= {*copies}, "the world makes copies of another history copies again:", copies)
    for copy in copies:
        abandoned = history.has_abandoned(world.nodes[copy].store.partition(0))
        need(not abandoned, "a copy of another history starts from nothing:", copy)
    world.heal()
    world.settle()


def run_lost_proposal(seed: int) -> None:
    """R9: a larger set is proposed and the word of it is lost; the newcomer dies. It counts until a new epoch settles it."""
    world = quiet(seed, 3)  # nobody could take its place
    entry = world.table.map.partitions[0]
    assert entry.primary is not None
    primary = world.nodes[entry.primary]
    other = next(node for node in entry.isr if node != entry.primary)
    world.crash(world.nodes[other])
    world.run(3 * SECOND_US)
    tell, lost = primary._tell, []

    def lose(node: DataNode, steps: list[object]) -> None:
        lost.extend(steps)

    primary._tell = lose  # type: ignore[assignment]
    world.restart(world.nodes[other])
    for _ in range(100):
        world.run(50 * MS_US)
        if lost:
            break
    world.crash(world.nodes[other])
    primary._tell = tell
    world.run(12 * SECOND_US)
    now = world.primary_of(0)
    committed = now.cores[0].committed
    world.run(SECOND_US)
    need(now.cores[0].committed > committed, "a lost proposal does not block for ever (R9)")
    world.heal()
    world.settle()


SCHEDULES = (run_idle, run_recovery, run_lost_proposal)
