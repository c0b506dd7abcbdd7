"""A batch's body is cut where its items end, however it is written, and is refused where it can't be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tq_node.api.reading import Cut, at_once, one_slice
from tq_node import limits
from tq_node.api.batch_cutter import BatchCutter
from tq_node.api.requests import Bodies
from tq_node.errors import BodyTooLarge, InvalidField, Malformed, PayloadTooLarge, TaskQueueError, UnknownField

ITEMS = BatchCutter(4_096)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(alphabet='ab",\\{}[]: é\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='a"},{', max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def cut(body: bytes, window: int = 24) -> list[Any]:
    with mock.patch.object(limits, "ITEMS_WINDOW_BYTES", window):
        return [json.loads(bytes(item)) for item in at_once(ITEMS.of_array(body, one_slice()))]


@given(st.lists(anything, max_size=12), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 200))
def test_it_is_cut_where_its_items_end(items: list[Any], indent: int | None, ascii_only: bool, window: int) -> None:
    body = json.dumps({"tasks": items}, indent=indent, ensure_ascii=ascii_only).encode()
    assert cut(body, window) == items


@given(st.lists(anything, max_size=6), st.binary(max_size=6), st.integers(0, 300), st.integers(1, 60))
def test_what_is_no_json_is_refused_and_nothing_else_comes_out(
    items: list[Any], noise: bytes, at: int, window: int
) -> None:
    body = json.dumps({"tasks": items}).encode()
    at = min(at, len(body))
    broken = body[:at] + noise + body[at:]
    try:
        found = cut(broken, window)
    except TaskQueueError:
        return
    except ValueError:
        return  # an item that is unread as yet: its own reader refuses it
    assert found == json.loads(broken)["tasks"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"tasks":[{},{}]',
        b'{"tasks":[{},{}]}}',
        b'{"tasks":[{},{}] {}]}',
        b'{"tasks":[{} {}]}',
        b'{"tasks":[{},,{}]}',
        b'{"tasks":[{},{},]}',
        b'{"tasks":{"a":[{},{}]}}',
        b'[{"tasks":[{},{}]}]',
        b'{"tasks":["%b"' % (b"x" * 5_000),
        b'{"tasks":[%b' % (b"[" * 5_000),
    ],
)
def test_long_bodies_that_are_something_else(body: bytes) -> None:
    with pytest.raises((Malformed, InvalidField, PayloadTooLarge)):
        cut(body, 8)


@pytest.mark.parametrize("long", [b'{"a":"%b"}' % (b"x" * 5_000), b"[%b]" % (b'{"]":[]},' * 900 + b"1")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_item_that_is_too_long_does_not_sink_the_others(long: bytes, place: int) -> None:
    items = [b'{"b":1}', b'{"b":2}']
    items.insert(place, long)
    with mock.patch.object(limits, "ITEMS_WINDOW_BYTES", 24):
        sliced = Cut()
        found = [bytes(item) for item in sliced.result(ITEMS.of_array(spread(items), sliced.pace))]
    assert len(found.pop(place)) == 4_097
    assert found == [b'{"b":1}', b'{"b":2}']


@pytest.mark.parametrize("window", [64, 10**9])
def test_more_items_than_a_batch_may_have(window: int) -> None:
    body = b'{"tasks":[%b]}' % b",".join([b"{}"] * (limits.BATCH_TASKS_MAX + 1))
    with pytest.raises(BodyTooLarge, match="at most 10000"):
        cut(body, window)


def test_lines() -> None:
    body = b'\n\r\n {"a":1} \r\n\n{"b":"x y"}\n   \n[1]'
    found = at_once(ITEMS.of_lines(body, one_slice()))
    assert [json.loads(bytes(item)) for item in found] == [{"a": 1}, {"b": "x y"}, [1]]
    with pytest.raises(BodyTooLarge):
        at_once(ITEMS.of_lines(b"{}\n" * (limits.BATCH_TASKS_MAX + 1), one_slice()))


# --- in slices ---
def spread(items: Iterable[bytes]) -> bytes:
    return b'{"tasks":[%b]}' % b",".join(items)


def test_a_batch_is_read_in_slices_and_ends_the_same() -> None:
    body = spread([b'{"type":"email","payload":[1,2,{"a":"},{"}]}', b"{}", b'{"x":1}', b"3"] * 2_000)
    with mock.patch.object(limits, "ITEMS_WINDOW_BYTES", 4_096):
        sliced = Cut()
        found = sliced.result(Bodies().batch(body, sliced.pace))
    whole = at_once(Bodies().batch(body, one_slice()))
    assert sliced.turns > 8_000, "each item, and each window"
    assert [getattr(one, "field", one) for one in found] == [getattr(one, "field", one) for one in whole]


# --- what one payload may hold ---
@pytest.mark.parametrize(
    "payload",
    [
        b"[%b]" % b",".join([b"1"] * (limits.PAYLOAD_VALUES_MAX - 1)),
        b"[%b]" % b", ".join([b"[ ]"] * (limits.PAYLOAD_VALUES_MAX - 1)),
        b'"%b"' % (b',[{\\"' * 100_000),
        json.dumps({f"k,{number}": "" for number in range(60_000)}, separators=(",", ":")).encode(),
    ],
)
def test_as_many_values_as_there_may_be(payload: bytes) -> None:
    """Commas and brackets in strings are none."""
    body = b'{"type":"a","payload":%b}' % payload
    assert msgspec.json.decode(Bodies().submission(body).payload) == json.loads(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"[%b]" % b",".join([b"1"] * limits.PAYLOAD_VALUES_MAX),
        b"[%b]" % b",".join([b"[]"] * 300_000),
        b"[%b]" % b",".join([b"[1]"] * 60_000),
        b"{%b}" % b",".join([b'"":1'] * limits.PAYLOAD_VALUES_MAX),
    ],
)
def test_one_more(payload: bytes) -> None:
    with pytest.raises(InvalidField, match="values; at most 100000 are allowed") as caught:
        Bodies().submission(b'{"type":"a","payload":%b}' % payload)
    assert caught.value.field == "/payload"


def test_a_long_submit_is_judged_as_a_short_one() -> None:
    bodies = Bodies()
    good = b'{"type":"a","payload":"%b"}' % (b"x" * 100_000)
    assert at_once(bodies.large_submission(good, None, one_slice())) == bodies.submission(good)
    with pytest.raises(UnknownField) as caught:
        at_once(bodies.large_submission(b'{"y":1,' + good[1:], None, one_slice()))
    assert caught.value.field == "/y"
    with pytest.raises(PayloadTooLarge):
        at_once(bodies.large_submission(b'{"type":"%b"}' % (b"x" * (2 << 20)), None, one_slice()))
