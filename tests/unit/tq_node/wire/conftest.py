"""Connections in memory, on a clock in hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted

from tests.support.wire_kinds import MemoryWire
from tests.support.wires import WireNode, clean

async_fixture: Callable[..., Callable[[Any], Any]] = pytest_twisted.async_yield_fixture


@pytest.fixture
def wire() -> MemoryWire:
    return MemoryWire()


class House:
    """Makes nodes, and sees to it that nothing of them is left after the test."""

    def __init__(self, wire: MemoryWire) -> None:
        self.wire = wire
        self.nodes: list[WireNode] = []

    async def node(self, name: str, **identity: Any) -> WireNode:
        made = await WireNode(self.wire, name, **identity).listen()
        self.nodes.append(made)
        return made


@async_fixture()
async def house(wire: MemoryWire) -> AsyncIterator[House]:
    made = House(wire)
    yield made
    for node in made.nodes:
        await node.stop()
    for pump in wire.network.pumps:
        pump.clientIO.loseConnection()
    wire.network.settle()
    assert not list(clean(wire, made.nodes))
