"""Whole nodes in a broken world: twenty seeds a push, thousands by ``python -m tests.simulation.run cluster``."""

from __future__ import annotations

from types import ModuleType

import pytest
from twisted.python.failure import Failure

import tq_node.node.build
import tq_node.node.member
from tests.simulation import run
from tests.simulation.cluster import faults
from tests.simulation.cluster import node as whole_node
from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.world import ClusterWorld, simulate
from tests.simulation.families import Violation, need, replay_hint
from tests.support.world import SECOND_US
from tq_node.errors import NotReady
from tq_node.runtime.control import control_plane

SEEDS = 20
pytestmark = pytest.mark.slow
CALM = Faults(nodes=3)
BUSY = Faults(nodes=3, work_every_us=20_000, run_us=(200_000, 1_500_000))
STOPS = Faults(actions=("restart", "restart", "step_down", "crash"))


@pytest.mark.parametrize("base", [0, *(pytest.param(base, marks=pytest.mark.long) for base in range(5, SEEDS, 5))])
def test_what_a_cluster_promises_holds_in_a_broken_world(base: int) -> None:
    for seed in range(base, base + 5):
        simulate(seed)


def test_seeds_that_once_found_something() -> None:
    """7159: a primary that slept hears of a claim when others have claimed the task since, and does not start it."""
    simulate(7159)


def test_nodes_that_stop_in_order_leave_nobody_waiting() -> None:
    simulate(4, faults=STOPS)


def test_nothing_is_refused_or_unknown_where_nothing_goes_wrong() -> None:
    counts = simulate(1, faults=CALM).clients.counts
    outcomes = {count.rpartition(" ")[2] for count in counts}
    assert outcomes <= {"ok", "NoSuchTask", "IdConflict", "AlreadyFinal", "NotRetryable", "StaleAttempt"}
    assert counts["submit ok"] > 20


def test_nodes_with_free_slots_help_the_others() -> None:
    assert simulate(1, faults=BUSY).checkers.helped > 10


def test_a_node_that_joins_refuses_a_task_without_an_id() -> None:
    world = ClusterWorld(0, faults=CALM)
    with whole_node.composition(world, world.small):
        joiner = world.nodes[1]
        joiner.boot()
        refused: list[Failure] = []
        joiner.queue.submit(world.clients._submission()).addErrback(refused.append)
        assert refused[0].check(NotReady)


def test_the_classes_are_those_that_the_composition_root_wires() -> None:
    """``member.py`` itself puts the control plane together; of what ``build.py`` names, this world names the same."""
    for name in (
        "Member",
        "Clock",
        "ClusterQueue",
        "ClusterQueueSettings",
        "Node",
        "NodeHooks",
        "open_local_queue",
        "QueueHooks",
        "ClusterAdmin",
        "QueueSettings",
        "Metrics",
    ):
        assert getattr(whole_node, name) is getattr(tq_node.node.build, name)
    world = ClusterWorld(0, faults=CALM)
    with whole_node.composition(world, world.small):
        world.be_born()
    node = world.nodes[1]
    plane, local = node.member.plane, node.local
    parts: list[tuple[object, ModuleType, str]] = [
        (node.queue, tq_node.node.build, "ClusterQueue"),
        (node.node, tq_node.node.build, "Node"),
        (node.member, tq_node.node.build, "Member"),
        (local, tq_node.node.build, "LocalQueue"),
        (plane, tq_node.node.member, "ControlPlane"),
        (plane.pool, tq_node.node.member, "PeerPool"),
        (plane.pool._connector, tq_node.node.member, "Connector"),
        (plane.machine, control_plane, "ClusterMachine"),
        (plane.consensus, control_plane, "RaftDriver"),
        (plane.core, control_plane, "RaftCore"),
        (plane.membership, control_plane, "Membership"),
        (plane.listener, tq_node.node.member, "PeerListener"),
    ]
    for part, module, name in parts:
        assert type(part) is getattr(module, name)
    replaced = {
        kind for kind in vars(whole_node).values() if isinstance(kind, type) and kind.__module__.startswith("tests.")
    }
    assert {kind.__name__ for kind in replaced} == {
        "SimulatedNode", "VirtualInviter", "NodeReactor", "DiskStore", "Disk", "SimWorker", "ClientEndpoint", "ServerEndpoint",
    }  # fmt: skip


def test_a_failing_seed_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def settle(world: ClusterWorld) -> None:
        need(False, "a promise", "made to be broken")

    monkeypatch.setattr(faults, "SAFETY_US", SECOND_US)
    monkeypatch.setattr(ClusterWorld, "settle", settle)
    with pytest.raises(Violation) as broken:
        simulate(7)
    assert replay_hint("cluster", 7) in broken.value.__notes__[0]
    assert run.main(["cluster", "--seeds", "1", "--first", "7"]) == 1
    assert replay_hint("cluster", 7) in capsys.readouterr().out
    assert run.main(["cluster", "--replay", "7"]) == 1
    shown = capsys.readouterr()
    assert "a promise made to be broken" in shown.err
    assert " boot n0 1" in shown.out
    assert run.main(["cluster", "--seeds", "2", "--seconds-max", "-1"]) == 0
