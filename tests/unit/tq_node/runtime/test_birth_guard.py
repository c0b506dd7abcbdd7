"""The birth guard (replication.md section 2, F15a): who ends a newborn cluster, when, and who does not."""

from __future__ import annotations

import pytest
from twisted.internet import task

from tests.support.wires import run_until
from tq_node.runtime.birth_guard import STEPS, BirthGuard, Founder, is_of_older_cluster
from tq_node.runtime.clock import Clock
from tq_node.wire import bounds
from tq_node.wire.handler import Greeting

ME = Founder("new", "node-1", "127.0.0.1:9080")
OLD = Greeting("old", "node-1", "127.0.0.1:9080", "node-2", "127.0.0.1:40000")


class Guarded:
    def __init__(self, guard_s: float | None = None) -> None:
        self.time = task.Clock()
        self.has_tasks = False
        self.lines: list[str] = []
        self.passed: list[bool] = []
        self.guard = BirthGuard(
            Clock(self.time),
            ME,
            has_tasks=lambda: self.has_tasks,
            on_older_cluster=self.lines.append,
            guard_s=guard_s,
        )

    def watch(self) -> None:
        self.guard.watch().addCallback(self.passed.append)


@pytest.fixture
def guarded() -> Guarded:
    made = Guarded()
    made.watch()
    return made


# --- who ---
@pytest.mark.parametrize(
    ("cluster", "name", "address", "is_older"),
    [
        ("old", "node-1", "127.0.0.1:9080", True),
        ("old", "node-1", "10.0.0.1:1", True),
        ("old", "node-7", "127.0.0.1:9080", True),
        ("old", "node-7", "localhost:9080", True),
        ("old", "", "[::1]:9080", True),
        ("old", "node-7", "127.0.0.1:9081", False),
        ("new", "node-1", "127.0.0.1:9080", False),
        ("", "node-1", "127.0.0.1:9080", False),
        ("", "", "127.0.0.1:9080", False),
        ("old", "", "", False),
    ],
)
def test_a_member_of_another_cluster_that_looks_for_this_node(
    cluster: str, name: str, address: str, is_older: bool
) -> None:
    assert is_of_older_cluster(Greeting(cluster, name, address, "node-2", ""), ME) is is_older


def test_sockets_in_the_file_system_are_compared_whole() -> None:
    me = Founder("new", "node-1", "unix:/run/a")
    assert is_of_older_cluster(Greeting("old", "", "unix:/run/a", "x", ""), me)
    assert not is_of_older_cluster(Greeting("old", "", "unix:/run/b", "x", ""), me)


# --- when ---
def test_it_passes_after_two_seconds_without_such_a_greeting(guarded: Guarded) -> None:
    run_until(guarded.time, bounds.BIRTH_GUARD_S - 0.01)
    newborn = [guarded.guard.is_newborn]
    assert guarded.passed == []
    run_until(guarded.time, bounds.BIRTH_GUARD_S + 0.01)
    newborn.append(guarded.guard.is_newborn)
    assert newborn == [True, False]
    assert guarded.passed == [True]
    assert guarded.time.getDelayedCalls() == []


def test_it_ends_at_once_with_one_line_that_says_what_to_do(guarded: Guarded) -> None:
    run_until(guarded.time, 1.0)
    guarded.guard.greeted(OLD)
    (line,) = guarded.lines
    assert "\n" not in line
    assert line.startswith("node-1 was a member of cluster old, ")
    assert "remove node-1 there and start with --join" in line
    assert guarded.passed == [False]
    assert guarded.time.getDelayedCalls() == []


def test_it_is_said_once(guarded: Guarded) -> None:
    guarded.guard.greeted(OLD)
    guarded.guard.greeted(OLD)
    assert len(guarded.lines) == 1


def test_a_greeting_that_comes_later_ends_it_too_while_there_is_no_task(guarded: Guarded) -> None:
    run_until(guarded.time, 100.0)
    guarded.guard.greeted(OLD)
    assert guarded.passed == [True]
    assert len(guarded.lines) == 1


def test_a_cluster_that_holds_a_task_goes_on_for_good(guarded: Guarded) -> None:
    run_until(guarded.time, 100.0)
    guarded.has_tasks = True
    guarded.guard.greeted(OLD)
    guarded.has_tasks = False  # purged
    guarded.guard.greeted(OLD)
    assert guarded.lines == []


def test_a_restarted_newborn_that_holds_tasks_does_not_wait() -> None:
    guarded = Guarded()
    guarded.has_tasks = True
    guarded.watch()
    run_until(guarded.time, bounds.BIRTH_GUARD_S / STEPS + 0.01)
    assert guarded.passed == [True]


def test_others_are_ignored(guarded: Guarded) -> None:
    guarded.guard.greeted(Greeting("", "", "127.0.0.1:9080", "node-3", ""))
    run_until(guarded.time, 3.0)
    assert guarded.passed == [True]
    assert guarded.lines == []


def test_a_greeting_before_the_watch_counts() -> None:
    guarded = Guarded()
    guarded.guard.greeted(OLD)
    guarded.watch()
    assert guarded.passed == [False]
    assert len(guarded.lines) == 1


def test_a_pause_of_the_process_does_not_pass_for_silence(guarded: Guarded) -> None:
    """F40: what was said meanwhile is still in the sockets."""
    guarded.time.advance(60.0)
    assert guarded.guard.is_newborn
    guarded.guard.greeted(OLD)
    assert len(guarded.lines) == 1


def test_stop_leaves_no_timer(guarded: Guarded) -> None:
    guarded.guard.stop()
    guarded.guard.stop()
    assert guarded.passed == [False]
    assert guarded.time.getDelayedCalls() == []
    guarded.guard.greeted(OLD)
    assert guarded.lines == []


def test_tests_may_shorten_it() -> None:
    guarded = Guarded(guard_s=0.0)
    guarded.watch()
    run_until(guarded.time, 0.01)
    assert guarded.passed == [True]
