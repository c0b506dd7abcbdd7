"""Who waits for the rows hears of it when they show what was committed, not what an earlier slice of it carried."""

from __future__ import annotations

from unittest.mock import create_autospec

from twisted.internet.task import Clock as VirtualClock

from tests.support.lifecycle import spec
from tq_node.partition import lifecycle
from tq_node.partition.apply_queue import ApplyQueue
from tq_node.partition.entries import EpochStart, put_born
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.applier import Applier
from tq_node.runtime.replication.ports import ReplicaEvents


def applying() -> Applier:
    return Applier(Clock(VirtualClock()), ApplyQueue(), create_autospec(ReplicaEvents))


def test_nothing_to_wait_for() -> None:
    assert applying().settle().called


def test_what_came_after_a_slice_had_left_is_waited_for_too() -> None:
    """Found by a list that lacked the tasks of every partition whose first entry was on its way to the disk."""
    behind = applying()
    behind.unapplied.add(3, 1, [EpochStart(1)])
    first = behind.take(True, True)
    behind.unapplied.add(3, 2, [put_born(lifecycle.born(spec("t"), 0, 0))])
    settled = behind.settle()
    assert behind.durable(first) == []
    assert not settled.called
    [wait] = behind.durable(behind.take(False, False))
    wait.step()
    assert settled.called


def test_what_comes_after_is_not_waited_for() -> None:
    behind = applying()
    behind.unapplied.add(3, 1, [EpochStart(1)])
    settled = behind.settle()
    first = behind.take(True, False)
    behind.unapplied.add(3, 2, [EpochStart(2)])
    [wait] = behind.durable(first)
    wait.step()
    assert settled.called


def test_rows_that_are_replaced_are_not_waited_for() -> None:
    behind = applying()
    behind.unapplied.add(3, 1, [EpochStart(1)])
    settled = behind.settle()
    [wait] = behind.forget(3)
    wait.step()
    assert settled.called
