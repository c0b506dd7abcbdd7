"""The birth guard (replication.md section 2, F15a): who ends a newborn cluster, when, and who does not."""

from __future__ import annotations

import pytest
from msgspec import structs
from twisted.internet import task

from tests.support.wires import run_until
from tq_node.runtime.bootstrap.bootstrap_guard import STEPS, BootstrapGuard, Founder, is_of_older_cluster
from tq_node.runtime.clock import Clock
from tq_node.wire import bounds
from tq_node.wire.handler import Greeting

ME = Founder("new", "node-1", "127.0.0.1:9080")
OLD = Greeting("old", "node-1", "127.0.0.1:9080", "node-2", "127.0.0.1:40000", is_certified=True)
ANYBODY = structs.replace(OLD, is_certified=False)
OWN_USER = structs.replace(ANYBODY, is_own_users=lambda: True)


class Guarded:
    def __init__(self, guard_s: float | None = None, *, trusts_own_users: bool = True) -> None:
        self.time = task.Clock()
        self.has_tasks = False
        self.lines: list[str] = []
        self.passed: list[bool] = []
        self.guard = BootstrapGuard(
            Clock(self.time),
            ME,
            has_tasks=lambda: self.has_tasks,
            on_older_cluster=self.lines.append,
            guard_s=guard_s,
            trusts_own_users=trusts_own_users,
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


# --- what proves nothing (A15) ---
def test_an_unproven_greeting_ends_nothing_and_the_node_is_not_ready_for_a_while(guarded: Guarded) -> None:
    guarded.guard.greeted(ANYBODY)
    assert guarded.lines == []
    assert "node-2 at 127.0.0.1:40000 says that node-1 was a member of cluster old" in guarded.guard.doubt
    run_until(guarded.time, bounds.BIRTH_GUARD_QUIET_S - 0.3)
    assert [guarded.guard.is_newborn] == [True]
    assert guarded.passed == []
    guarded.guard.greeted(ANYBODY)
    run_until(guarded.time, bounds.BIRTH_GUARD_QUIET_S + 1)
    assert guarded.guard.is_newborn, "it counts from the last one"
    run_until(guarded.time, 2 * bounds.BIRTH_GUARD_QUIET_S + 1)
    assert [guarded.guard.is_newborn] == [False]
    assert (guarded.passed, guarded.lines, guarded.guard.doubt) == ([True], [], "")


def test_f15a_while_an_older_cluster_looks_for_it_it_is_never_ready(guarded: Guarded) -> None:
    for seconds in range(120):
        run_until(guarded.time, seconds / 2)
        guarded.guard.greeted(ANYBODY)
        assert guarded.guard.is_newborn
    assert guarded.lines == []


def test_one_that_comes_later_makes_it_not_ready_again(guarded: Guarded) -> None:
    run_until(guarded.time, 5.0)
    assert guarded.passed == [True]
    guarded.guard.greeted(ANYBODY)
    assert [guarded.guard.is_newborn] == [True]
    run_until(guarded.time, 30.0)
    assert [guarded.guard.is_newborn] == [False]
    assert guarded.passed == [True]


def test_the_nodes_own_user_who_keeps_on_greeting_is_believed_where_the_secret_is_handed_over(guarded: Guarded) -> None:
    for turn in range(bounds.BIRTH_GUARD_GREETINGS):
        for _ in range(5):
            assert guarded.lines == [], "at once it is one, however often"
            guarded.guard.greeted(OWN_USER)
            if turn == bounds.BIRTH_GUARD_GREETINGS - 1:
                break
        run_until(guarded.time, guarded.time.seconds() + 0.5)
    assert len(guarded.lines) == 1


def test_with_a_secret_in_a_file_the_user_id_proves_nothing() -> None:
    made = Guarded(trusts_own_users=False)
    made.watch()
    for turn in range(20):
        run_until(made.time, turn / 2)
        made.guard.greeted(OWN_USER)
    assert made.lines == []
    assert made.guard.is_newborn
    made.guard.stop()
