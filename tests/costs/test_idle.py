"""What a node with nothing to do does all the same: commands, calls and wake-ups a second. The
bounds are what was measured; of calls and wake-ups, and a tenth.

``python -m bench.idle`` measures the CPU time of real nodes.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
from collections import Counter
from unittest import mock

from tests.costs.three_nodes import AS_WIRED
from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.node import SimulatedNode, composition
from tests.simulation.cluster.time import NodeReactor
from tests.simulation.cluster.world import ClusterWorld
from tests.support.world import SECOND_US
from tq_node.wire.amp import BoundedAMP

CALM_S, SECONDS, NODES = 5, 10, 3


def test_an_idle_node() -> None:
    world = ClusterWorld(1, faults=Faults(nodes=NODES))
    world.nodes = [SimulatedNode(world, index, 64, 3) for index in range(NODES)]
    timers: set[tuple[int, int]] = set()
    fire = NodeReactor._fire

    def fired(reactor: NodeReactor, *arguments: object) -> None:
        timers.add((id(reactor), world.time.now_us))
        fire(reactor, *arguments)  # type: ignore[arg-type]

    commands: Counter[bytes] = Counter()
    receive = BoundedAMP._command_received

    def received(connection: BoundedAMP, name: bytes, *arguments: object) -> None:
        commands[name] += 1
        receive(connection, name, *arguments)  # type: ignore[arg-type]

    gc.disable()
    try:
        with (
            composition(world, AS_WIRED),
            mock.patch.object(NodeReactor, "_fire", fired),
            mock.patch.object(BoundedAMP, "_command_received", received),
        ):
            world.be_born()
            world._until(world._is_whole, 60 * SECOND_US, "the copies are there")
            world.checkers.look_at = lambda node: None  # type: ignore[method-assign]
            world.time.run_until(world.time.now_us + CALM_S * SECOND_US)
            timers.clear()
            commands.clear()
            profile = cProfile.Profile(builtins=False)
            profile.enable()
            world.time.run_until(world.time.now_us + SECONDS * SECOND_US)
            profile.disable()
    finally:
        for node in world.nodes:
            node.graveyard.clear()
        gc.enable()
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # public, and not in typeshed
    calls = sum(row[1] for place, row in found.items() if "/tests/" not in place[0]) / SECONDS / NODES
    wakes = len(timers) / SECONDS / NODES
    told = {name.decode(): count / SECONDS / NODES for name, count in commands.items()}
    print(f"\nidle: {calls:.0f} calls and {wakes:.1f} timers that wake a node, a second; received: {told}")
    assert told.keys() == {"Heartbeat", "Confirm", "Raft", "Ping"}
    assert told["Heartbeat"] < 5.5, "a follower: each 0.25 s to the leader, each 0.5 s to others"
    assert told["Confirm"] < 8.1, "a ping and an answer each 0.5 s, with two peers"
    assert told["Raft"] < 6.8, "a heartbeat and an answer each 0.2 s, by one leader"
    assert told["Ping"] < 1.1, "of bulk lanes alone"
    assert calls < 4_600
    assert wakes < 14.6
