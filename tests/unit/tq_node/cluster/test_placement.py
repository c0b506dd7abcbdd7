from __future__ import annotations

from collections import Counter

import pytest

from tq_node.cluster.placement import partition_of


@pytest.mark.parametrize(
    ("task_id", "seed", "count", "partition"),
    [
        ("a", 0, 64, 50),
        ("a", 1, 64, 40),
        ("order-4711", 0, 64, 24),
        ("order-4711", 0, 1024, 472),
        ("order-4711", 4294967295, 64, 29),
        ("task-0192f000-7abc-7000-8000-123456789abc", 0, 64, 55),
        ("aufgabe-ä", 0, 64, 59),
    ],
)
def test_values_are_pinned_because_they_are_part_of_the_data_format(task_id: str, seed: int, count: int, partition: int) -> None:
    assert partition_of(task_id, seed=seed, partition_count=count) == partition


def test_ids_spread_over_all_partitions() -> None:
    spread = Counter(partition_of(f"task-{n}", seed=3, partition_count=64) for n in range(64_000))
    assert len(spread) == 64
    assert max(spread.values()) < 1_200
