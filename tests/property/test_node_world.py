"""The whole queue in virtual time, and each of its rules switched off once (``tests.support.node_world``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogLevel

from tests.conftest import LoggedErrors
from tests.support.node_world import NodeWorld, Violation, run
from tq_node.errors import Divergence
from tq_node.facade import Accepted, Read
from tq_node.runtime.replication import commit_waiters, replicator
from tq_node.runtime.replication.driver import ReplicaDriver
from tq_node.runtime.tasks import activation, reads, recovery, submit, task_table
from tq_node.runtime.tasks import claims as running
from tq_node.types import State

SEEDS = 60
MUTATION_SEEDS = 400


@pytest.fixture(autouse=True)
def crashed_nodes_leave_rounds_behind(logged_errors: LoggedErrors) -> Any:
    """A crash abandons a loop's round in the middle; the coroutine's end is logged when it is collected."""
    yield
    for failure in logged_errors.flush(GeneratorExit):
        assert failure is not None


@pytest.mark.parametrize("base", range(3))
def test_nothing_acknowledged_is_lost_and_everything_ends(base: int) -> None:
    for seed in range(base * 1_000, base * 1_000 + SEEDS // 3):
        world = run(seed)
        assert world.acknowledged, world.replay_hint()


def test_the_same_seed_is_the_same_world() -> None:
    first, second = run(5), run(5)
    assert (first.answers, first.rev_seen, first.states) == (second.answers, second.rev_seen, second.states)


# --- the mutation table ---
Patch = Callable[[pytest.MonkeyPatch], object]


def _set(owner: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(owner, name, value)


def _answer_before_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(task_table.TaskTable, "committed_wait", lambda self, slot, wait: None)


def _claims_start_before_commit(self: running.Claims, claims: list[Any], places: dict[int, int]) -> Any:
    return succeed(claims)


def _repeat_looks_at_no_content(self: submit.Submitter, submission: Any, task_id: str, found: Any) -> Any:
    return Accepted(task_id, State.PENDING, "node-1", False), found


def _load_forgets_the_resident(self: submit.Submitter, submissions: Any, *, has_more: bool = False) -> Any:
    own = [s.id for s in submissions if s.id is not None and self._table.find(s.id) is None]
    if own:
        return self._table.load(own).addCallback(self._many_found, submissions, has_more)
    return self._many_found({}, submissions, has_more)


def _no_tail(store: Any, state: Any) -> Any:
    async def nothing() -> list[Any]:
        return []

    return nothing()


def _due_heap_is_lost(self: running.Claims) -> None:
    return None


def _stop_and_forget(self: running.Claims, task_id: str, token: Any) -> None:
    self._claims.pop(task_id, None)
    if self._worker is not None:
        self._worker.stop_attempt(task_id, token)


_recover_rows = recovery.recover_rows
_follow = replicator.Replication.follow


def _active_before_the_barrier(self: replicator.Replication, records: Any, names: Any) -> None:
    _follow(self, records, names)
    for core in self.driver.cores:
        if core.epoch is not None and not core.is_active:
            self.driver._events.activated(core.partition, core.epoch)


async def _no_heaps(store: Any, partitions: Any, ready: Any) -> Any:
    found = await _recover_rows(store, partitions, ready)
    found.ready, found.due = type(found.ready)(), type(found.due)()
    return found


_all_committed = commit_waiters.CommitWaiters.committed


def _drop_some_waiters(self: commit_waiters.CommitWaiters, upto: int) -> list[Any]:
    return _all_committed(self, upto)[:3]


MUTATIONS: dict[str, Patch] = {
    "a task starts anew beside its stopped handler (I12)": _set(running.Claims, "stop_attempt", _stop_and_forget),
    "a waiter is forgotten now and then": _set(commit_waiters.CommitWaiters, "committed", _drop_some_waiters),
    "answers go out before the commit (R11)": _answer_before_commit,
    "workers start before the claim's commit (R11)": _set(running.Claims, "_when_claimed", _claims_start_before_commit),
    "durable is taken for granted (R8, R16)": lambda patch: (
        patch.setattr(ReplicaDriver, "when_committed", lambda self, wait, places: succeed(wait.value)),
        patch.setattr(task_table.TaskTable, "committed_wait", lambda self, slot, wait: None),
    ),
    "the tail of the log is not read at start": _set(recovery, "_tail", _no_tail),
    "a batch loads only what is not resident": _set(submit.Submitter, "submit_many", _load_forgets_the_resident),
    "a repeat is not compared by content": _set(submit.Submitter, "_repeat", _repeat_looks_at_no_content),
    "an id is not looked up": _set(submit.Submitter, "submit", lambda self, s: self._submit_found(None, s)),
    "rows that somebody waits for are dropped": _set(task_table.RowCache, "pin", lambda self, task_id: None),
    "the due timer is not set, nor the safety net": lambda patch: (
        patch.setattr(running.Claims, "schedule_due", _due_heap_is_lost),
        patch.setattr(running.Claims, "find_due", _due_heap_is_lost),
    ),
    "inherited attempts are never lost": _set(activation.Activation, "_lose_inherited", lambda self, *a: None),
    "a partition is led before its barrier is committed (R7)": _set(
        replicator.Replication, "follow", _active_before_the_barrier
    ),
    "claims outlive the primary that stepped down": _set(
        running.Claims, "_let_go_of_unstarted", lambda self, claims: None
    ),
    "heaps are not built anew with the lead": _set(activation, "recover_rows", _no_heaps),
    "reads show what is not committed": _set(
        reads.TaskReads,
        "_read",
        lambda self, slot, task_id, wait_s, age_s: succeed(Read(slot.row, "node-1", age_s)),
    ),
}

NOT_CAUGHT_HERE = {
    "who waits is not told when the primary steps down (R12)": "with one copy the entry commits all the same, with the next "
    "epoch's barrier; the world of several nodes is to catch it",
    "two claims of a task may share an entry": "the cancelled one is not handed out; tests/property/test_lifecycle.py catches it",
    "the epoch is resumed after a restart (R6, F20)": "harmless without a second copy; the world of several nodes is to catch it",
}
"""Mutations that this world can't see, and who does. Printed with the table."""


MARKS = {"a task starts anew beside its stopped handler (I12)": pytest.mark.long}
"""Those that it takes many seeds to catch."""
CAUGHT = (Violation, Divergence, AssertionError, KeyError, AttributeError, TypeError, RuntimeError)


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in MUTATIONS])
def test_a_rule_switched_off_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors, record_property: Any
) -> None:
    MUTATIONS[name](monkeypatch)
    try:
        for seed in range(MUTATION_SEEDS):
            try:
                run(seed)
            except CAUGHT as why:
                record_property("seeds_to_catch", seed + 1)
                print(f"{name}: caught after {seed + 1} seeds: {str(why)[:120]!r}")
                return
            if any(
                event.get("log_level") is LogLevel.critical and "purge" not in str(event)
                for event in logged_errors.events
            ):
                print(f"{name}: caught after {seed + 1} seeds by what was logged")
                return
    finally:
        logged_errors.flush()
    pytest.fail(f"{name}: not caught in {MUTATION_SEEDS} seeds")


def test_a_task_born_while_a_batch_waits_is_seen() -> None:
    """A batch asks for A and B; A is not there, then it is born, stored and dropped from memory; then B arrives."""
    world = NodeWorld(0, cache_bytes=0)
    own = world.queue.table
    own.load(["b"])
    results: list[Any] = []
    world.queue.submitter.submit_many([world.submission("a", b"x"), world.submission("b", b"x")]).addCallback(
        results.append
    )
    look_b, look_a = world.store.late
    world.store.late = [look_a]
    world.store.deliver()
    born = world.queue.submitter.submit(world.submission("a", b"x"))
    world.settle()
    assert own.find("a") is not None, "a row that somebody waits beside stays in memory"
    assert world.heard(born).created
    world.store.late = [look_b]
    world.settle()
    first, second = results[0]
    assert not first.created, "accepted twice"
    assert second.created


def test_two_absences_that_never_arrive_together_are_answered() -> None:
    world, answers = NodeWorld(0), list[Any]()
    world.queue.reads.get("a").addErrback(lambda why: None)
    world.queue.submitter.submit_many([world.submission("a", b"x"), world.submission("b", b"x")]).addCallback(
        answers.append
    )
    for _ in range(200):
        if not getattr(world.store, "late", None):
            break
        (out, found), world.store.late = world.store.late[0], world.store.late[1:]
        out.callback(found)
    world.settle()
    assert len(answers) == 1


def test_tombstones_go_once_the_horizon_has_passed_them() -> None:
    """F46: what was purged is remembered for the dedupe window, and then forgotten; its made id is refused from then on."""
    world = NodeWorld(0, dedupe_ms=600_000)
    sent = world.queue.submitter.submit(world.submission("own", b"x"))
    world.settle()
    assert world.heard(sent).created
    world.queue.cancel("own")
    world.settle()
    for _ in range(40):
        world.turn(60.0)
        world.settle()
    assert "own" not in world.store._disk.tasks
    assert world.store._disk.tombstones == {}
    world.states.pop("own")
    again = world.queue.submitter.submit(world.submission("own", b"y"))
    world.settle()
    assert world.heard(again).created, "after retention and dedupe window the id is free"


def test_a_queue_that_has_stopped_may_be_stopped_again() -> None:
    """Also where an entry is left that nobody will write any more."""
    world = NodeWorld(1)
    world.settle()
    ended: list[object] = []
    for _ in range(2):
        Deferred.fromCoroutine(world.queue.stop()).addBoth(ended.append)
        world.settle()
        world.queue.table.driver._dirty.add(0)
    assert ended == [None, None]


def test_what_is_not_caught_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for name, why in NOT_CAUGHT_HERE.items():
        print(f"{name}: not caught here: {why}")
    assert not set(NOT_CAUGHT_HERE) & set(MUTATIONS)
