"""Three whole nodes in virtual time that take tasks in, and what that costs: calls, boxes, bytes, commits."""

from __future__ import annotations

import cProfile
import gc
import itertools
import pstats
from collections.abc import Callable
from unittest import mock

import msgspec
from twisted.internet.defer import Deferred

from tests.simulation.cluster.faults import Faults
from tests.simulation.cluster.node import SimulatedNode, composition
from tests.simulation.cluster.world import ClusterWorld
from tq_node import limits
from tq_node.facade import Accepted, Submission
from tq_node.partition.settings import ReplicationSettings
from tq_node.runtime.control import raft_driver
from tq_node.wire.amp import BoundedAMP

PARTITIONS = 64
AN_HOUR_US = 3_600_000_000
LOOK_US = 1_000
WHOLE_US_MAX = LOAD_US_MAX = 60_000_000


class Costs(msgspec.Struct):
    """For each task, over all three nodes; ``calls`` of Python functions of ours and of Twisted's, without HTTP."""

    calls: float
    boxes: float
    wire_bytes: float
    commits: float


def submission(task_id: str | None) -> Submission:
    return Submission("email", b'{"to":"user@example.com"}', delay_us=AN_HOUR_US, content_hash=bytes(16), id=task_id)


AS_WIRED = {
    "pace": ReplicationSettings(),
    "snapshot_every": raft_driver.SNAPSHOT_EVERY,
    "kept_behind": raft_driver.KEPT_BEHIND,
    "lease_ms": limits.LEASE_MS,
    "margin_ms": limits.LEASE_MARGIN_MS,
}
"""What a node is put together with, in place of the simulation's small bounds."""


def costs(*, in_flight: int, tasks: int, batch: int = 0, own_ids: bool = False) -> Costs:
    """``in_flight`` clients, spread over the nodes, each with one call after another. ``batch``: tasks a call; 0: a submit.

    ``own_ids``: the callers', as those of the Python client, so that most tasks live at another node.
    """
    world = ClusterWorld(1, faults=Faults(nodes=3))
    world.nodes = [SimulatedNode(world, index, PARTITIONS, 3) for index in range(3)]
    gc.disable()
    try:
        with composition(world, AS_WIRED):
            world.be_born()
            world._until(world._is_whole, WHOLE_US_MAX, "the copies are there")
            return _Load(world, tasks, batch, own_ids).run(in_flight)
    finally:
        for node in world.nodes:
            node.graveyard.clear()
        gc.enable()


class _Load:
    def __init__(self, world: ClusterWorld, tasks: int, batch: int, own_ids: bool) -> None:
        self._world = world
        self._numbers = itertools.count()
        self._own_ids = own_ids
        self._left = tasks
        self._batch = batch
        self._done = self._commits = self._boxes = 0

    def run(self, in_flight: int) -> Costs:
        world = self._world
        world.checkers.look_at = lambda node: None  # type: ignore[method-assign]  # it would be most of the cost
        for node in world.nodes:
            node.store.sync = self._counting(node.store.sync)  # type: ignore[method-assign, assignment]
        bytes_before = world.net.bytes
        tasks = self._left
        profile = cProfile.Profile(builtins=False)
        with mock.patch.object(BoundedAMP, "ampBoxReceived", self._counting_boxes(BoundedAMP.ampBoxReceived)):
            profile.enable()
            for client in range(in_flight):
                world.time.after(0, self._next, client)
            end_us = world.time.now_us + LOAD_US_MAX
            while self._done < tasks:
                assert world.time.now_us < end_us, f"only {self._done} of {tasks} tasks were accepted"
                world.time.run_until(world.time.now_us + LOOK_US)
            profile.disable()
        found = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # public, and not in typeshed
        calls = sum(row[1] for place, row in found.items() if "/tests/" not in place[0])
        sent = world.net.bytes - bytes_before
        return Costs(calls / tasks, self._boxes / tasks, sent / tasks, self._commits / tasks)

    def _next(self, client: int) -> None:
        if self._left <= 0:
            return
        queue = self._world.nodes[client % 3].queue
        done: Deferred[Accepted] | Deferred[list[Accepted]]
        if self._batch:
            self._left -= self._batch
            done = queue.submit_many([self._submission() for _ in range(self._batch)])  # type: ignore[assignment]
        else:
            self._left -= 1
            done = queue.submit(self._submission())
        done.addCallback(self._heard, client)

    def _submission(self) -> Submission:
        return submission(f"order-{next(self._numbers)}" if self._own_ids else None)

    def _heard(self, accepted: Accepted | list[Accepted], client: int) -> None:
        if isinstance(accepted, list):
            assert all(isinstance(one, Accepted) for one in accepted), accepted
        self._done += self._batch or 1
        self._next(client)

    def _counting(self, sync: Callable[[int | None], int]) -> Callable[[int | None], int]:
        def counted(count: int | None = None) -> int:
            self._commits += 1
            return sync(count)

        return counted

    def _counting_boxes(self, received: Callable[..., None]) -> Callable[..., None]:
        def counted(amp: BoundedAMP, *box: object) -> None:
            self._boxes += 1
            received(amp, *box)

        return counted
