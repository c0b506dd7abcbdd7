"""Where tasks land that bring no id."""

from __future__ import annotations

import random
from collections import Counter

from tq_node.cluster.placement import partition_of
from tq_node.runtime.tasks.id_allocator import DRAWS_EACH, TASKS_EACH, TASKS_EACH_OF_BATCH, IdAllocator, IdMaker

NOW_US = 1_700_000_000_000_000
SEED = 11


class Node:
    """A node that leads some partitions, and gathers a commit when it is told to."""

    def __init__(self, led: set[int], partition_count: int = 64) -> None:
        self.led = dict.fromkeys(led, 1)
        self.refusals: dict[int, object] = {}
        self.commits = 0
        self._partition_count = partition_count
        self._allocator = IdAllocator(
            IdMaker(random.Random(1).randbytes, seed=SEED, partition_count=partition_count),
            self.led,
            self.refusals,
            self,
            partition_count,
        )

    def land(self, tasks: int = 1) -> list[int]:
        """The partitions of so many new tasks."""
        ids = [self._allocator.allocate(NOW_US)[0] for _ in range(tasks)]
        return self._places_of(ids)

    def land_batch(self, tasks: int) -> list[int]:
        """Those of so many that come together."""
        return self._places_of(self._allocator.allocate_many(NOW_US, tasks)[0])

    def _places_of(self, ids: list[str]) -> list[int]:
        assert len(set(ids)) == len(ids)
        return [partition_of(task_id, seed=SEED, partition_count=self._partition_count) for task_id in ids]


def test_what_one_commit_gathers_lands_in_one_place_and_the_next_in_the_next() -> None:
    node = Node({3, 17, 40})
    seen: list[int] = []
    for _ in range(7):
        node.commits += 1
        places = set(node.land(10))
        assert len(places) == 1
        seen += places
    assert seen == [3, 17, 40, 3, 17, 40, 3]


def test_a_big_batch_goes_to_many_and_fills_them_alike() -> None:
    node = Node(set(range(0, 63, 3)))
    landed = Counter(node.land_batch(2_100))
    assert set(landed) == set(range(0, 63, 3))
    assert min(landed.values()) > 50


def test_a_small_batch_goes_to_few_and_the_next_to_others() -> None:
    node = Node(set(range(0, 63, 3)))
    assert set(node.land_batch(100)) == {0, 3, 6, 9}
    assert set(node.land_batch(TASKS_EACH_OF_BATCH)) == {12}


def test_many_single_ones_of_one_commit_go_to_several_places_too() -> None:
    node = Node(set(range(0, 63, 3)))
    assert Counter(node.land(21 * TASKS_EACH)) == dict.fromkeys(range(0, 63, 3), TASKS_EACH)


def test_a_partition_that_takes_no_work_gets_none() -> None:
    node = Node({3, 17, 40})
    node.refusals[17] = object()
    seen = set()
    for _ in range(6):
        node.commits += 1
        seen |= set(node.land(5))
    assert seen == {3, 40}


def test_what_is_led_is_asked_for_each_commit() -> None:
    node = Node({3})
    assert set(node.land(5)) == {3}
    del node.led[3]
    node.led[9] = 2
    node.commits += 1
    assert set(node.land(5)) == {9}


def test_a_partition_that_goes_within_a_commit_gets_nothing_more() -> None:
    node = Node({3, 17, 40})
    assert node.land() == [3]
    del node.led[3]
    assert node.land() == [17]
    node.refusals[17] = object()
    assert node.land() == [40]
    node.refusals[40] = object()
    assert len(set(node.land(200))) > 30


def test_a_node_that_leads_nothing_makes_ids_of_all_partitions() -> None:
    node = Node(set())
    assert len(set(node.land(2_000))) == 64


def test_where_there_are_very_many_partitions_an_id_may_fit_several() -> None:
    """It would cost a thousand hashes otherwise."""
    node = Node(set(range(1_024)), partition_count=1_024)
    node.commits += 1
    at_once = 1_024 // DRAWS_EACH
    assert set(node.land(500)) == set(range(at_once))
    node.commits += 1
    assert set(node.land(500)) == set(range(at_once, 2 * at_once))
