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
    [(1, 150, 1360, 7.4, 950, 3.9), (32, 1_500, 445, 2.3, 740, 0.38), (128, 3_000, 295, 0.93, 680, 0.097)],
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
    [(100, 162, 0.152, 617, 0.042), (1_000, 76, 0.013, 600, 0.0042)],
)
def test_batches(batch: int, calls: float, boxes: float, wire_bytes: float, commits: float) -> None:
    found = costs(in_flight=3, tasks=9_000, batch=batch)
    show(f"batches of {batch}", found)
    assert found.calls < calls
    assert found.boxes < boxes
    assert found.wire_bytes < wire_bytes
    assert found.commits < commits
