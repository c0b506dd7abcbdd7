"""The real driver over real SQLite files, with a network that is a function call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from tq_node.raft.messages import Change, ChangeKind, Configuration, Message, SoftState
from tq_node.raft.settings import NotLeader
from tq_node.runtime.clock import Clock
from tq_node.runtime.control import raft_driver
from tq_node.runtime.control.raft_driver import RaftDriver, RaftOutputs, StateMachine, founding_values
from tq_node.store.api import Batch
from tq_node.store.sqlite.store import SqliteStore, open_store
from tq_node.types import NodeId

Test = Callable[..., Coroutine[Deferred[Any], Any, None]]
deferred: Callable[[Test], Test] = pytest_twisted.ensureDeferred
clock_of: Any = reactor


def is_caught_up(leader: RaftDriver, name: str) -> bool:
    return leader.followers()[NodeId(name)].is_caught_up


class Machine(StateMachine):
    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.configurations: list[Configuration] = []

    def apply(self, log_index: int, data: bytes) -> None:
        self.said.append(data)

    def configuration_changed(self, log_index: int, configuration: Configuration) -> None:
        self.configurations.append(configuration)

    def restore(self, log_index: int, data: bytes) -> None:
        self.said = data.split(b",") if data else []

    def snapshot(self) -> bytes:
        return b",".join(self.said)


class Group:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.drivers: dict[NodeId, RaftDriver] = {}
        self.stores: dict[NodeId, SqliteStore] = {}
        self.machines: dict[NodeId, Machine] = {}
        self.broken: list[BaseException] = []

    async def start(self, name: str, *, founds: bool = False) -> RaftDriver:
        node = NodeId(name)
        store = open_store(self.directory / name, reactor=clock_of, on_broken=self.broken.append)
        if founds:
            await store.commit(Batch(meta=founding_values(node, b"born")))
        machine = Machine()
        driver = RaftDriver(
            node,
            store,
            Clock(clock_of),
            machine,
            RaftOutputs(self.send, self.soft_state, self.broken.append),
            seed=len(self.drivers),
        )
        self.drivers[node], self.stores[node], self.machines[node] = driver, store, machine
        await driver.start()
        return driver

    def soft_state(self, state: SoftState) -> None: ...

    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            clock_of.callLater(0, self._deliver, message)

    def _deliver(self, message: Message) -> None:
        target = self.drivers.get(message.target)
        if target is not None:
            target.receive([message])

    async def stop(self, name: str) -> None:
        node = NodeId(name)
        await self.drivers.pop(node).stop()
        await self.stores.pop(node).close()

    async def stop_all(self) -> None:
        for name in list(self.drivers):
            await self.stop(name)

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(600):
            if condition():
                return
            await deferLater(clock_of, 0.01)
        pytest.fail("not within 6 s")


@deferred
async def test_a_sole_voter_leads_at_once_and_remembers(tmp_path: Path) -> None:
    group = Group(tmp_path)
    driver = await group.start("a", founds=True)
    await group.until(lambda: driver.core.is_leader)
    assert await driver.propose(b"one") == driver.applied_index
    await group.stop("a")
    driver = await group.start("a")
    await group.until(lambda: group.machines[NodeId("a")].said == [b"born", b"one"])
    assert await driver.read_index() == driver.applied_index
    await group.stop_all()
    assert not group.broken


@deferred
async def test_learners_catch_up_are_promoted_and_take_over(tmp_path: Path) -> None:
    group = Group(tmp_path)
    leader = await group.start("a", founds=True)
    await group.until(lambda: leader.core.is_leader)
    await leader.propose(b"before")
    for name in "bc":
        await group.start(name)
        await leader.propose_change(Change(ChangeKind.ADD_LEARNER, NodeId(name)))
        await group.until(functools.partial(is_caught_up, leader, name))
        await leader.propose_change(Change(ChangeKind.PROMOTE, NodeId(name)))
    await leader.propose(b"after")
    await group.until(lambda: all(m.said == [b"born", b"before", b"after"] for m in group.machines.values()))
    with pytest.raises(NotLeader):
        await group.drivers[NodeId("b")].propose(b"no")
    await group.stop("a")
    for driver in group.drivers.values():
        driver.leader_died(NodeId("a"))
    await group.until(lambda: any(driver.core.is_leader for driver in group.drivers.values()))
    new = next(driver for driver in group.drivers.values() if driver.core.is_leader)
    await new.propose(b"gone on")
    back = await group.start("a")
    await group.until(lambda: group.machines[NodeId("a")].said[-1] == b"gone on")
    assert not back.core.is_leader
    await group.stop_all()
    assert not group.broken


@deferred
async def test_snapshots_cut_the_log_and_bring_in_who_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_driver, "SNAPSHOT_EVERY", 50)
    monkeypatch.setattr(raft_driver, "KEPT_BEHIND", 5)
    group = Group(tmp_path)
    leader = await group.start("a", founds=True)
    await group.until(lambda: leader.core.is_leader)
    for number in range(120):
        await leader.propose(b"%d" % number)
    await group.start("b")
    await leader.propose_change(Change(ChangeKind.ADD_LEARNER, NodeId("b")))
    expected = [b"born", *(b"%d" % number for number in range(120))]
    await group.until(lambda: group.machines[NodeId("b")].said == expected)
    assert len(await group.stores[NodeId("a")].consensus_log()) < 60
    for name in "ab":
        await group.stop(name)
    await group.start("b")
    again = await group.start("a")
    await group.until(lambda: again.core.is_leader)
    await again.propose(b"end")
    await group.until(lambda: all(m.said == [*expected, b"end"] for m in group.machines.values()))
    await group.stop_all()
    assert not group.broken


@deferred
async def test_a_read_that_was_given_up_is_kept_nowhere(tmp_path: Path) -> None:
    """Question and answer may be lost, and then nobody but who asked can end it."""
    group = Group(tmp_path)
    leader = await group.start("a", founds=True)
    await group.until(lambda: leader.core.is_leader)
    follower = await group.start("b")
    await leader.propose_change(Change(ChangeKind.ADD_LEARNER, NodeId("b")))
    await group.until(lambda: follower.core.leader == NodeId("a"))
    assert await follower.read_index() == follower.applied_index
    del group.drivers[NodeId("a")]
    asked = [follower.read_index() for _ in range(3)]
    assert len(follower._reads) == 3
    for one in asked:
        one.cancel()
        one.addErrback(lambda why: why.trap(CancelledError) and None)
    assert follower._reads == {}
    group.drivers[NodeId("a")] = leader
    assert await follower.read_index() == follower.applied_index
    await group.stop_all()
    assert not group.broken
