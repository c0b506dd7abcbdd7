"""Laws of the bodies: whatever comes in, the answer is a submission that says the same, or a refusal with a place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tq_node.api.reading import at_once, one_slice
from tq_node.api.names import is_shown
from tq_node.api.query import ListParameters, to_list_query, write_cursor
from tq_node.api.requests import _DIGITS_TO_ZEROS, _LONG_NUMBER, Bodies, SubmitRequest, content_hash
from tq_node.errors import FieldError, Malformed, TaskQueueError
from tq_node.facade import Submission

BODIES = Bodies()


def batch(body: bytes) -> Any:
    """Read in one slice."""
    return at_once(BODIES.batch(body, one_slice()))


def lines(body: bytes) -> Any:
    return at_once(BODIES.lines(body, one_slice()))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), parts),
    max_leaves=20,
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100).filter(is_shown)
good_fields = st.fixed_dictionaries(
    {"type": names},
    optional={
        "payload": values,
        "id": st.from_regex(r"[A-Za-z0-9._:-]{1,200}", fullmatch=True),
        "priority": st.integers(0, 9),
        "delay": st.floats(0, 1e6),
        "run_at": st.floats(max_value=253_402_300_799, allow_infinity=False)
        | st.datetimes().map(lambda at: at.isoformat() + "Z"),
        "max_attempts": st.integers(1, 100) | st.integers(1, 100).map(float),
        "timeout": st.floats(0.001, 1e6),
        "backoff": st.floats(0, 1e6)
        | st.fixed_dictionaries({}, optional={"kind": st.sampled_from(["linear", "constant"])}),
        "queue": names,
        "tags": st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), st.text("ab"), max_size=20
        ),
    },
).filter(lambda fields: not {"delay", "run_at"} <= fields.keys())
any_fields = st.dictionaries(st.sampled_from([*SubmitRequest.__struct_fields__, "colour", "a/b"]), values, max_size=6)


def judged(read: Callable[[bytes], object], body: bytes) -> object:
    """What it was read as, or the refusal; nothing else is let pass."""
    try:
        return read(body)
    except TaskQueueError as refused:
        return refused


@given(good_fields)
def test_what_is_good_is_taken_and_says_the_same(fields: dict[str, Any]) -> None:
    sent = BODIES.submission(json.dumps(fields).encode())
    assert sent.type == fields["type"]
    assert msgspec.json.decode(sent.payload) == fields.get("payload")
    assert sent.payload.decode("utf-8")
    assert sent.id == fields.get("id")
    assert (sent.priority, sent.queue, sent.tags) == (fields.get("priority"), fields.get("queue"), fields.get("tags"))
    assert sent.run_at_us is None or sent.run_at_us >= 0
    assert len(sent.content_hash) == 16


@given(any_fields)
def test_anything_else_is_refused_with_a_place(fields: dict[str, Any]) -> None:
    result = judged(BODIES.submission, msgspec.json.encode(fields))
    if not isinstance(result, Submission):
        assert isinstance(result, FieldError)
        first = result.field.split("/")[1].replace("~1", "/").replace("~0", "~")
        assert first in fields or first == "type"
        assert result.detail


@given(st.binary(max_size=200))
def test_bytes_never_raise_anything_else(body: bytes) -> None:
    for read in (BODIES.submission, batch, lines):
        result = judged(read, body)
        assert isinstance(result, Submission | list | Malformed | FieldError)


@given(st.binary(max_size=60))
def test_nor_do_bytes_in_the_place_of_a_payload(payload: bytes) -> None:
    result = judged(BODIES.submission, b'{"type":"a","payload":%b}' % payload)
    assert isinstance(result, Submission | Malformed | FieldError)
    if isinstance(result, Submission):
        json.loads(result.payload.decode("utf-8"))


@given(st.lists(any_fields, max_size=5))
def test_a_batch_judges_each_item_as_a_submit_would(items: list[dict[str, Any]]) -> None:
    def alone(fields: dict[str, Any], place: int) -> object:
        result = judged(BODIES.submission, msgspec.json.encode(fields))
        if isinstance(result, FieldError):
            return (result.code, f"/tasks/{place}{result.field}", result.detail)
        return result if isinstance(result, Submission) else shown(result)

    def shown(result: object) -> object:
        if isinstance(result, TaskQueueError):
            return (result.code, getattr(result, "field", None), result.detail)
        return result

    expected = [alone(fields, place) for place, fields in enumerate(items)]
    assert [shown(result) for result in batch(msgspec.json.encode({"tasks": items}))] == expected
    as_lines = b"\n".join(msgspec.json.encode(fields) for fields in items)
    assert [shown(result) for result in lines(as_lines)] == expected


@given(good_fields, st.randoms(use_true_random=False))
def test_the_content_hash_ignores_order_space_and_id(good: dict[str, Any], random: Any) -> None:
    fields = {"id": "one"} | good
    names = list(fields)
    random.shuffle(names)
    shuffled = json.dumps({name: fields[name] for name in names} | {"id": "other"}, indent=1).encode()
    assert BODIES.submission(json.dumps(fields).encode()).content_hash == BODIES.submission(shuffled).content_hash


def test_the_content_hash_is_part_of_the_data_format() -> None:
    fields = {"type": "email", "priority": 5, "delay": 2, "backoff": {}, "tags": {"b": "1", "a": "2"}, "id": "x"}
    sent = BODIES.submission(msgspec.json.encode(fields | {"payload": {"z": 1, "a": [None]}, "run_at": None}))
    assert sent.content_hash.hex() == "852b462db4784933836ef1030802de97"
    assert (
        sent.content_hash
        == BODIES.submission(msgspec.json.encode(fields | {"payload": {"a": [None], "z": 1}})).content_hash
    )
    assert content_hash(SubmitRequest("email"), None) != content_hash(SubmitRequest("email", priority=5), None)


def test_each_field_but_the_id_counts_in_the_content_hash() -> None:
    others: dict[str, Any] = {
        name: 5 for name in SubmitRequest.__struct_fields__ if name not in ("type", "id", "payload")
    }
    tasks = [SubmitRequest("email", **{name: value}) for name, value in others.items()]
    hashes = {content_hash(task, None) for task in tasks}
    hashes |= {
        content_hash(SubmitRequest(kind), value) for kind, value in (("email", None), ("mail", None), ("email", 5))
    }
    assert len(hashes) == len(others) + 3
    assert content_hash(SubmitRequest("email", id="one"), None) in hashes


@given(st.lists(st.sampled_from([*"0123456789,[]{}", "9" * 17, "a"])).map("".join))
def test_a_number_of_nineteen_digits_is_found(text: str) -> None:
    raw = text.encode()
    assert (raw.translate(_DIGITS_TO_ZEROS).find(_LONG_NUMBER) >= 0) == bool(re.search(rb"\d{19}", raw))


@given(
    st.sampled_from(["id", "-id", "priority", "-run_at"]), st.integers(-(1 << 63), (1 << 63) - 1), st.text(max_size=200)
)
def test_a_cursor_comes_back(sort: str, value: int, task_id: str) -> None:
    try:
        task_id.encode("utf-8")
    except UnicodeEncodeError:
        return
    query = to_list_query(ListParameters(sort=sort))  # type: ignore[arg-type]  # one of the words
    text = write_cursor((value, task_id), query)
    assert text is not None
    assert text.isascii()
    assert to_list_query(ListParameters(sort=sort, cursor=text)).cursor == (value, task_id)  # type: ignore[arg-type]  # as above
