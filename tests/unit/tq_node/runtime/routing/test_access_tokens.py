"""The table of tokens as a request sees it: whose tokens, whether they count, and what costs nothing while nothing changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock as VirtualClock

from tests.unit.tq_node.cluster.tables import Table
from tq_node import limits
from tq_node.cluster import commands as c
from tq_node.cluster.map import EMPTY
from tq_node.cluster.records import ACCESS_LEVEL
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane
from tq_node.runtime.routing.access_tokens import AccessTokens, FileTokens
from tq_node.tokens import Role, TokenEntry


def token(name: str) -> TokenEntry:
    return TokenEntry(name, name.encode().ljust(32, b"-"), (Role.VIEW,))


class Plane:
    """A control plane of which the test is the leader."""

    def __init__(self) -> None:
        self.table = Table(level=ACCESS_LEVEL)
        self.machine = SimpleNamespace(map=EMPTY)
        self.consensus = self
        self.remembered = False
        self.reads = 0

    def read_index(self) -> Deferred[int]:
        self.reads += 1
        return succeed(1)

    @property
    def tokens_seen(self) -> bool:
        return self.remembered or bool(self.machine.map.tokens_seen)

    def put(self, name: str) -> None:
        self.table.do(c.PutToken(token(name)))
        self.machine.map = self.table.map

    def do(self, command: c.AnyCommand) -> None:
        self.table.do(command)
        self.machine.map = self.table.map


class World:
    def __init__(self, of_file: FileTokens | None = None) -> None:
        self.clock = VirtualClock()
        self.plane = Plane()
        self.tokens = AccessTokens(cast("ControlPlane", self.plane), Clock(self.clock), of_file or FileTokens())

    def map_changed(self) -> None:
        self.tokens.follow()

    def names(self) -> list[str]:
        return [entry.name for entry in self.tokens.table().tokens]


@pytest.fixture
def world() -> Any:
    world = World()
    yield world
    world.tokens.stop()
    assert world.clock.getDelayedCalls() == []


def test_where_there_never_was_a_token_nobody_is_checked_and_nothing_is_asked(world: World) -> None:
    world.map_changed()
    world.clock.advance(10)
    table = world.tokens.table()
    assert (table.tokens, table.is_checked, world.plane.reads) == ((), False, 0)


def test_the_first_token_is_checked_and_confirmed(world: World) -> None:
    world.plane.put("a")
    world.map_changed()
    table = world.tokens.table()
    assert (world.names(), table.is_checked, table.is_fresh) == (["a"], True, True)


def test_a_change_is_seen_with_the_map_that_has_it(world: World) -> None:
    world.plane.put("a")
    versions = [world.tokens.table().version]
    for command in (c.PutToken(token("b")), c.RevokeToken("a"), c.RevokeToken("b")):
        world.plane.do(command)
        versions.append(world.tokens.table().version)
    assert versions == sorted(set(versions))
    assert (world.names(), world.tokens.table().is_checked) == ([], True)


def test_what_is_not_about_tokens_changes_no_version(world: World) -> None:
    world.plane.put("a")
    before = world.tokens.table()
    world.plane.do(c.PauseQueue("q"))
    assert world.tokens.table() is before


def test_it_is_stale_once_no_majority_confirms_it(world: World) -> None:
    world.plane.put("a")
    world.map_changed()
    fresh = world.tokens.table()
    world.plane.read_index = Deferred  # type: ignore[method-assign]
    for _ in range(40):
        world.clock.advance(limits.TOKENS_FRESH_MS / 40_000 - 0.001)
        assert world.tokens.table() is fresh
    world.clock.advance(0.1)
    stale = world.tokens.table()
    assert (stale.is_fresh, stale.tokens, stale.version) == (False, fresh.tokens, fresh.version)
    assert world.tokens.table() is stale


def test_who_knows_of_tokens_from_an_earlier_run_checks_before_it_has_the_map(world: World) -> None:
    world.plane.remembered = True
    table = world.tokens.table()
    assert (table.is_checked, table.is_fresh, table.tokens) == (True, False, ())


@pytest.mark.parametrize("of_file", [FileTokens(True), FileTokens(True, (token("glass"),))])
def test_a_node_that_is_told_to_checks_from_the_first_moment_on(of_file: FileTokens) -> None:
    world = World(of_file)
    table = world.tokens.table()
    assert (table.is_checked, table.of_file, table.is_fresh) == (True, of_file.tokens, False)
    world.map_changed()
    assert world.tokens.table().is_fresh
    world.tokens.stop()


def test_a_changed_file_counts_at_once(world: World) -> None:
    before = world.tokens.table()
    world.tokens.tell_file(FileTokens(True, (token("glass"),)))
    table = world.tokens.table()
    assert (table.of_file, table.is_checked) == ((token("glass"),), True)
    assert table.version > before.version
    world.tokens.tell_file(FileTokens(True, (token("glass"),)))
    assert world.tokens.table() is table
