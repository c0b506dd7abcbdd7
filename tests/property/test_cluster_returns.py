"""A node is killed and comes back: what it led is led within everybody's share again, without an operator, and then all is quiet.

First with the table alone and every order in which copies may come back; then in the simulator of the data plane, where copies
catch up, drain and hand over in their own time.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from tests.simulation.families import need
from tests.simulation.replication import world as data_world
from tests.simulation.replication.faults import Faults
from tests.simulation.replication.world import ReplicationWorld
from tests.support.world import SECOND_US
from tests.unit.tq_node.cluster.settling import Settling
from tests.unit.tq_node.cluster.tables import Table
from tq_node.cluster import commands as c
from tq_node.cluster.map import Applied, ClusterMap
from tq_node.cluster.placement import share_max
from tq_node.types import NodeId

FACTOR = 3
BURIED_US = 4 * SECOND_US
"""A new leader is found, and its grace is over; before its copies would be made elsewhere."""


def led(table: ClusterMap) -> Counter[NodeId]:
    return Counter(entry.primary for entry in table.partitions if entry.primary is not None)


def fewest_changes(table: ClusterMap, holders: int) -> int:
    """Of primaries, to bring every node down to its share."""
    cap = share_max(len(table.partitions), holders)
    return sum(max(0, count - cap) for count in led(table).values())


class Counting(Table):
    """How often each partition was given another primary, or promised one."""

    def __init__(self, nodes: int, partitions: int) -> None:
        self.changed: Counter[int] = Counter()
        self.planned: Counter[int] = Counter()
        super().__init__(nodes, partitions=partitions, factor=FACTOR)

    def do(self, command: c.AnyCommand) -> Applied:
        before = self.map.partitions
        applied = super().do(command)
        self.changed.update(p for p, entry in enumerate(before) if entry.primary != self.entry(p).primary)
        if isinstance(command, c.PlanPrimary):
            self.planned.update(step.partition for step in command.steps)
        return applied


def kill_and_return(seed: int) -> None:
    rng = random.Random(seed)
    nodes, partitions = rng.choice([3, 3, 4, 5]), rng.choice([7, 16, 64])
    table = Counting(nodes, partitions)
    settling = Settling(table, rng=rng, voters=tuple(sorted(table.map.nodes)[:3]))
    settling.run()
    copies = [set(entry.copies) for entry in table.map.partitions]
    for _ in range(3):
        node = rng.choice([n for n in table.map.nodes if n != settling.me])
        table.down(int(node, 16))
        settling.run(quiet_ms=rng.choice([100, 5_000, 30_000]))
        table.changed.clear()
        table.planned.clear()
        table.register(int(node, 16), table.map.nodes[node].incarnation + 1)
        fewest = fewest_changes(table.map, nodes)
        # Those are still on their way to what was an even share without it; once there, they may have to go on.
        late = sum(1 for entry in table.map.partitions if entry.successor is not None)
        settling.run()
        settling.check_rest()
        settling.check_bounds()
        need([set(entry.copies) for entry in table.map.partitions] == copies, "no copy is made for a short absence")
        need(max(table.changed.values(), default=0) <= 1 + bool(late), "no primary goes to and fro", table.changed)
        need(max(table.planned.values(), default=0) <= 1, "nor is it planned to and fro", table.planned)
        need(
            table.changed.total() <= fewest + bool(fewest) + 2 * late, "as few as shares ask for", table.changed, fewest
        )


@pytest.mark.slow
@pytest.mark.parametrize("base", [0, *(pytest.param(base, marks=pytest.mark.long) for base in range(10, 60, 10))])
def test_primaries_return_with_their_node_and_stay(base: int) -> None:
    for seed in range(base, base + 10):
        kill_and_return(seed)


def test_of_three_nodes_and_64_partitions_nobody_leads_more_than_22() -> None:
    table = Counting(3, 64)
    settling = Settling(table)
    settling.run()
    table.down(3)
    settling.run(quiet_ms=30_000)
    assert sorted(led(table.map).values()) == [32, 32]
    table.changed.clear()
    table.register(3, 2)
    settling.run()
    assert sorted(led(table.map).values()) == [20, 22, 22]
    assert table.changed.total() == 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_in_the_simulator_of_the_data_plane(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node in turn is killed and returns, the controller's too, with clients at work."""
    partitions, nodes = 12, 3 + seed % 2
    monkeypatch.setattr(data_world, "PARTITIONS", partitions)
    world = ReplicationWorld(seed, faults=Faults(nodes=nodes, evidence=bool(seed % 3)))
    cap = share_max(partitions, nodes)
    world.run(12 * SECOND_US)
    assert max(led(world.table.map).values()) <= cap
    for node in list(world.nodes.values()):
        world.crash(node)
        world.run(BURIED_US)
        assert led(world.table.map)[node.me] == 0
        world.restart(node)
        index = len(world.table.maps) - 1
        world.run(12 * SECOND_US)
        assert max(led(world.table.map).values()) <= cap, "within their shares again"
        for p in range(partitions):
            primaries = [table.partitions[p].primary for table in world.table.maps[index:]]
            changes = sum(1 for one, other in itertools.pairwise(primaries) if one != other)
            assert changes <= 1, ("no primary goes to and fro", p, primaries)
        table = world.table.map
        world.run(10 * SECOND_US)
        assert world.table.map is table, "and then the table is quiet"
    world.heal()
    world.settle()
