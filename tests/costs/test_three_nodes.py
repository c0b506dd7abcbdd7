"""Over three nodes, everything but HTTP and SQL. The bounds are what was measured and a tenth.

Who makes one of these dearer on purpose says so here; who makes one cheaper takes the bound along.
"""

from __future__ import annotations

import pytest

from tests.costs.three_nodes import Costs, costs


def show(what: str, found: Costs) -> None:
    print(
        f"\n{what}: {found.calls:.0f} calls, {found.boxes:.2f} boxes, {found.wire_bytes:.0f} bytes on the wire, "
        f"{found.commits * 1000:.0f} commits per 1,000 tasks"
    )


@pytest.mark.parametrize(
    ("in_flight", "tasks", "calls", "boxes", "wire_bytes", "commits"),
    [(1, 150, 603, 4.8, 700, 3.38), (32, 1_500, 97, 0.41, 491, 0.186), (128, 3_000, 65, 0.1, 476, 0.051)],
)
def test_submits(in_flight: int, tasks: int, calls: float, boxes: float, wire_bytes: float, commits: float) -> None:
    found = costs(in_flight=in_flight, tasks=tasks)
    show(f"{in_flight} in flight", found)
    assert found.calls < calls
    assert found.boxes < boxes
    assert found.wire_bytes < wire_bytes
    assert found.commits < commits


@pytest.mark.parametrize(
    ("batch", "calls", "boxes", "wire_bytes", "commits"),
    [(100, 47, 0.056, 475, 0.025), (1_000, 36, 0.0044, 472, 0.0025)],
)
def test_batches(batch: int, calls: float, boxes: float, wire_bytes: float, commits: float) -> None:
    found = costs(in_flight=3, tasks=9_000, batch=batch)
    show(f"batches of {batch}", found)
    assert found.calls < calls
    assert found.boxes < boxes
    assert found.wire_bytes < wire_bytes
    assert found.commits < commits


@pytest.mark.parametrize(
    ("in_flight", "tasks", "batch", "calls", "boxes", "wire_bytes", "commits"),
    [(32, 1_500, 0, 388, 1.95, 530, 0.262), (3, 9_000, 100, 134, 0.132, 430, 0.044)],
)
def test_ids_of_the_callers(
    in_flight: int, tasks: int, batch: int, calls: float, boxes: float, wire_bytes: float, commits: float
) -> None:
    """Two of three live at another node, each wherever its hash says."""
    found = costs(in_flight=in_flight, tasks=tasks, batch=batch, own_ids=True)
    show(f"ids of the callers, {in_flight} in flight, batches of {batch or 1}", found)
    assert found.calls < calls
    assert found.boxes < boxes
    assert found.wire_bytes < wire_bytes
    assert found.commits < commits
