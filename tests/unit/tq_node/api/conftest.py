from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tq_node.api.talk import World


@pytest.fixture(params=[False, True], ids=["klein", "direct"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The same tests over both ways in to the hot routes."""
    world = World(hot_routes_direct=request.param)
    yield world
    world.close()
