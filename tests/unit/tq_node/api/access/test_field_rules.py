"""``--redact``: which values lists hide, whatever the names look like, and what stays."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tq_node.api.talk import World
from tq_node import limits
from tq_node.api.access.field_rules import HIDDEN, FieldRules
from tq_node.types import Backoff, State, TaskError, TaskId, TaskRow, TaskSpec

RULES = FieldRules(["password", "*token*", "card-?"])


def task_row(payload: bytes, result: bytes | None) -> TaskRow:
    spec = TaskSpec(TaskId("t"), "email", payload, "default", 5, 3, None, Backoff(), None, 0, b"")
    return TaskRow(spec, 0, 1, State.COMPLETED, 0, result=result)


def hidden(rules: FieldRules, payload: Any, result: Any = None) -> Any:
    row = rules.shown(task_row(msgspec.json.encode(payload), None if result is None else msgspec.json.encode(result)))
    return msgspec.json.decode(row.spec.payload), None if row.result is None else msgspec.json.decode(row.result)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ({"password": "x", "user": "ann"}, {"password": HIDDEN, "user": "ann"}),
        ({"PassWord": {"a": 1}}, {"PassWord": HIDDEN}),
        ({"api_token_2": [1, 2], "tok": 1}, {"api_token_2": HIDDEN, "tok": 1}),
        ([{"a": [{"card-1": 1, "card-12": 2}]}], [{"a": [{"card-1": HIDDEN, "card-12": 2}]}]),
        ("password", "password"),
        ({"note": "password: x"}, {"note": "password: x"}),
        ({"to\u212aen": 1}, {"to\u212aen": HIDDEN}),  # the Kelvin sign is a K in either case
        (None, None),
        (3.5, 3.5),
    ],
)
def test_fields_of_such_names_are_hidden_at_any_depth(payload: Any, shown: Any) -> None:
    assert hidden(RULES, payload, payload) == (shown, None if payload is None else shown)


def test_an_escaped_name_is_the_same_name() -> None:
    row = RULES.shown(task_row(rb'{"pass\u0077ord":"x"}', None))
    assert msgspec.json.decode(row.spec.payload) == {"password": HIDDEN}


def test_what_hides_nothing_is_the_same_row() -> None:
    row = task_row(b'{"a": 1 }', b"[2]")
    assert RULES.shown(row) is row
    assert FieldRules().shown(task_row(b'{"password":1}', None)).spec.payload == b'{"password":1}'


def test_a_payload_that_is_not_shown_at_all_stays_so() -> None:
    assert RULES.shown(task_row(b"", None)).spec.payload == b""


def test_what_is_nested_too_deep_to_be_looked_at_is_hidden_as_a_whole() -> None:
    deep = b'{"password":' * 100_000 + b"1" + b"}" * 100_000
    assert RULES.shown(task_row(deep, None)).spec.payload == msgspec.json.encode(HIDDEN)


def test_a_long_value_is_hidden_as_a_whole_if_it_may_have_such_a_field() -> None:
    long = "x" * limits.REDACT_BYTES_MAX
    assert hidden(RULES, {"note": long}) == ({"note": long}, None)
    assert hidden(RULES, {"note": long, "password": 1}) == (HIDDEN, None)


NAMES = st.text(st.sampled_from("ab*?[]!-_tT"), max_size=6)
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
)


def expected(patterns: list[str], value: Any) -> Any:
    if isinstance(value, list):
        return [expected(patterns, part) for part in value]
    if isinstance(value, dict):
        return {
            name: HIDDEN if any(fnmatch(name.lower(), one.lower()) for one in patterns) else expected(patterns, part)
            for name, part in value.items()
        }
    return value


@given(st.lists(NAMES.filter(bool), min_size=1, max_size=3), VALUES)
def test_patterns_are_those_of_a_shell(patterns: list[str], value: Any) -> None:
    assert hidden(FieldRules(patterns), value)[0] == expected(patterns, value)


@pytest.mark.parametrize("path", ["/tasks/list", "/tasks/dead"])
def test_lists_hide_them_and_a_single_task_is_told_whole(path: str) -> None:
    world = World(redact=("password",))
    task_id = world.submit(payload={"password": "very private", "user": "ann"})
    world.queue.start_task(task_id)
    world.queue.fail_task(task_id, TaskError("Error", "no"))
    (task,) = world.get(path).json["tasks"]
    assert task["payload"] == {"password": HIDDEN, "user": "ann"}
    assert world.get(f"/tasks/status?id={task_id}").json["payload"]["password"] == "very private"
    world.close()
