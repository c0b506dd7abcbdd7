from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tq_node.api.talk import World


@pytest.fixture(params=[False, True], ids=["klein", "direct"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The same tests over both ways in to the hot routes."""
    world = World(fast_path=request.param)
    yield world
    world.close()


@pytest.fixture
def three() -> Iterator[World]:
    """Three nodes, of which ``node-1`` is asked."""
    world = World(nodes=("node-1", "node-2", "node-3"))
    yield world
    world.close()
