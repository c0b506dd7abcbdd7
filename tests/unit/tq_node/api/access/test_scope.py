"""Scope and redaction by themselves: every small case."""

from __future__ import annotations

from itertools import chain, combinations, product

import pytest

from tq_node.api.access.access import ACCESS_OF, UNCHECKED, Caller
from tq_node.api.access.redaction import NO_PAYLOAD, shown
from tq_node.api.access.scope import its_queues, must_be_its_queue, narrowed
from tq_node.errors import Denied
from tq_node.tokens import Asker, Role
from tq_node.types import AttemptRecord, Backoff, LogLine, Progress, State, TaskError, TaskId, TaskRow, TaskSpec

QUEUES = ("a", "b", "c")
SETS = [frozenset(some) for some in chain.from_iterable(combinations(QUEUES, size) for size in range(4))]


def caller(*roles: Role, queues: frozenset[str] | None = None) -> Caller:
    return Caller("ann", frozenset(roles), frozenset().union(*(ACCESS_OF[role] for role in roles)), queues)


def lets_pass(queues: frozenset[str] | None, inverse: bool, queue: str) -> bool:
    return queues is None or (queue in queues) is not inverse


def test_a_filter_passes_what_it_passed_and_the_caller_may_know() -> None:
    for own, asked, inverse in product([None, *SETS], [None, *SETS], (False, True)):
        found = narrowed(caller(Role.READ, queues=own), asked, inverse)
        for queue in (*QUEUES, "another"):
            may = own is None or queue in own
            assert lets_pass(*found, queue) is (may and lets_pass(asked, inverse, queue)), (own, asked, inverse, queue)


def test_queues_are_the_callers_or_refused() -> None:
    for own in (None, *SETS):
        one = caller(Role.OPERATE, queues=own)
        assert its_queues(one, QUEUES) == [queue for queue in QUEUES if own is None or queue in own]
        for queue in QUEUES:
            if own is None or queue in own:
                must_be_its_queue(one, queue)
            else:
                with pytest.raises(Denied):
                    must_be_its_queue(one, queue)


def test_a_refusal_lists_few_queues() -> None:
    with pytest.raises(
        Denied, match=r"is for queues '000', '001', '002', '003', '004' and 995 more, not for queue 'a'"
    ):
        must_be_its_queue(caller(Role.SUBMIT, queues=frozenset(f"{number:03}" for number in range(1000))), "a")


@pytest.mark.parametrize(
    ("roles", "to_see", "to_change"),
    [
        ((Role.VIEW,), None, Asker("ann", None, True)),
        ((Role.READ,), None, Asker("ann", None, True)),
        ((Role.SUBMIT,), Asker("ann", None, True), Asker("ann", None, True)),
        ((Role.WORK,), Asker("ann", None, True), Asker("ann", None, True)),
        ((Role.OPERATE,), None, Asker("ann")),
        ((Role.ADMIN,), None, Asker("ann")),
        ((Role.VIEW, Role.SUBMIT), None, Asker("ann", None, True)),
        ((Role.OPERATE, Role.SUBMIT), None, Asker("ann")),
    ],
)
def test_who_asks_by_the_roles(roles: tuple[Role, ...], to_see: Asker | None, to_change: Asker) -> None:
    assert (caller(*roles).to_see, caller(*roles).to_change) == (to_see, to_change)
    within = caller(*roles, queues=frozenset({"b", "a"}))
    assert within.to_see == Asker("ann", ("a", "b"), to_see is not None)
    assert within.to_change == Asker("ann", ("a", "b"), to_change.own_only)


def test_nobody_asks_where_tokens_are_not_checked() -> None:
    assert UNCHECKED.to_see is UNCHECKED.to_change is None


ERROR = TaskError("ValueError", "secret", "secret")


def row(made_by: str) -> TaskRow:
    spec = TaskSpec(TaskId("a"), "t", b'"secret"', "q", 5, 3, None, Backoff(), {"tag": "shown"}, 1, b"hash", made_by)
    attempt = AttemptRecord(1, "node-1", 1, 2, "failed", ERROR)
    return TaskRow(
        spec, 0, 7, State.FAILED, 1, 1, 1, result=b'"secret"', error=ERROR, progress=Progress(0.5, "secret"),
        log=(LogLine(1, "secret"),), log_dropped=3, attempts=(attempt, AttemptRecord(2, "node-2", 3, 4, "lost")),
    )  # fmt: skip


@pytest.mark.parametrize("made_by", ["ann", "bob", ""])
@pytest.mark.parametrize("role", [*Role, None])
def test_what_is_left_of_a_task(role: Role | None, made_by: str) -> None:
    whole = row(made_by)
    seen = shown(whole, UNCHECKED if role is None else caller(role))
    if role in (Role.READ, Role.OPERATE, Role.ADMIN, None) or made_by == "ann":
        assert seen is whole
        return
    assert "secret" not in repr(seen)
    assert seen.spec.payload == NO_PAYLOAD
    assert [one.error and one.error.type for one in seen.attempts] == ["ValueError", None]
    kept = ("id", "partition", "rev", "state", "run_at_us", "attempt", "failures", "log_dropped")
    assert all(getattr(seen, name) == getattr(whole, name) for name in kept)
    assert (seen.spec.tags, seen.error, seen.progress) == ({"tag": "shown"}, TaskError("ValueError", ""), Progress(0.5))
