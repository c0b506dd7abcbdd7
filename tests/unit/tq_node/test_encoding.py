"""One rule for payloads and results: what has a clear form in JSON is taken, the rest is refused by name."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid
from typing import Any, NamedTuple

import attrs
import msgspec
import pytest

from tq_node import encoding, limits
from tq_node.client import NewTask
from tq_node.client.engine import named
from tq_node.work.results import BadResult, describe, encode_result

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
NAIVE = dt.datetime(2026, 1, 1, 12)  # noqa: DTZ001


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Color(enum.Enum):
    RED = "red"
    ODD = frozenset({1})


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 2


class Order(msgspec.Struct, rename="camel", omit_defaults=True):
    line_items: Any
    note: Any = None
    unset: Any = msgspec.UNSET


@attrs.define
class Parcel:
    weight: Any


class Pair(NamedTuple):
    a: Any
    b: Any


def nested(levels: int, inner: Any = 0) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


CLEAR = [
    (None, "null"),
    (True, "true"),
    (-(2**63), str(-(2**63))),
    (2**64 - 1, str(2**64 - 1)),
    (1.5, "1.5"),
    ("é", '"é"'),
    ({"a": [1, (2,)]}, '{"a":[1,[2]]}'),
    (NOON, '"2026-01-01T12:00:00Z"'),
    (NOON.date(), '"2026-01-01"'),
    (dt.timedelta(seconds=1.5), '"PT1.5S"'),
    (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    (decimal.Decimal("1.50"), '"1.50"'),
    (Color.RED, '"red"'),
    (Level.LOW, "1"),
    (Text("t"), '"t"'),
    (Number(3), "3"),
    (Real(0.5), "0.5"),
    (Pair(1, NOON), '[1,"2026-01-01T12:00:00Z"]'),
    (Point([NOON]), '{"x":["2026-01-01T12:00:00Z"],"y":2}'),
    (Order([Point(1)]), '{"lineItems":[{"x":1,"y":2}]}'),
    (Parcel(decimal.Decimal(2)), '{"weight":"2"}'),
    (collections.OrderedDict(a=collections.defaultdict(list, b=[Text("c")])), '{"a":{"b":["c"]}}'),
    ({1: 2, Text("k"): 3, Color.RED: 4, uuid.UUID(int=1): 5}, None),
    (nested(limits.JSON_DEPTH_MAX), "[" * 200 + "0" + "]" * 200),
    ([0] * (encoding.VALUES_MAX - 1), None),
]
REFUSED = [
    ({1, 2}, "set: a set has no order"),
    (frozenset(), "frozenset: a set"),
    (NAIVE, "datetime .*without a zone"),
    (dt.time(12), "time .*without a zone"),
    (float("nan"), "NaN"),
    (float("-inf"), "infinity"),
    (Real("inf"), "infinity"),
    (decimal.Decimal("NaN"), "NaN"),
    (b"x", "bytes .*base64"),
    (bytearray(b"x"), "bytearray .*base64"),
    (2**64, "beyond 64 bits"),
    (-(2**63) - 1, "beyond 64 bits"),
    (Number(2**70), "beyond 64 bits"),
    (10**6000, "beyond 64 bits"),
    (object(), "an object of type object"),
    (Point, "an object of type type"),
    (collections.deque([1]), "an object of type deque"),
    ((number for number in (1, 2)), "an object of type generator"),
    (msgspec.Raw(b'{"a":'), "an object of type Raw"),
    (Color.ODD, "frozenset"),
    ("\ud800", "lone surrogate"),
    ({"\ud800": 1}, "lone surrogate"),
    ({(1, 2): 3}, "key of type tuple"),
    ({None: 3}, "key of type NoneType"),
    ({True: 3}, "key of type bool"),
    ({b"k": 3}, "bytes"),
    ({NAIVE: 3}, "without a zone"),
    (nested(limits.JSON_DEPTH_MAX + 1), "deeper than 200 levels"),
    (nested(limits.JSON_DEPTH_MAX, {}), "deeper than 200 levels"),
    (nested(100_000), "deeper than 200 levels"),
    ([0] * encoding.VALUES_MAX, "more than 100000 values"),
]


@pytest.mark.parametrize(("value", "text"), CLEAR)
def test_what_is_clear_is_taken_on_both_sides(value: Any, text: str | None) -> None:
    encoded = encode_result(value)
    if text is not None:
        assert encoded.decode() == text
    _, body = named(NewTask("t", value, id="x"))
    assert json.loads(body).get("payload") == json.loads(encoded)


@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: {"a": [Point(Order(value))]}], ids=["bare", "deep"]
)
@pytest.mark.parametrize(("value", "why"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_is_not_is_refused_by_name_on_both_sides(value: Any, why: str, wrap: Any) -> None:
    with pytest.raises(TypeError, match=why) as refused:
        named(NewTask("t", wrap(value), id="x"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    with pytest.raises(BadResult, match=why) as bad:
        encode_result(wrap(value))
    error, retry_in_ms, final = describe(bad.value)
    assert (error.type, retry_in_ms, final) == ("result_not_json", None, True)


def test_what_contains_itself_is_refused_and_costs_no_memory() -> None:
    wide: list[Any] = []
    wide.extend([wide] * 300)
    tall: dict[str, Any] = {}
    tall["tall"] = tall
    for value in (wide, tall):
        with pytest.raises(encoding.NotJson):
            encoding.encode(value)


def test_text_that_is_there_many_times_is_counted_each_time() -> None:
    text = "x" * 100_000
    for value in ([text] * 50_000, {str(number): {text: 1} for number in range(1_000)}):
        with pytest.raises(BadResult, match="characters of text") as bad:
            encode_result(value)
        assert (bad.value.error.type, bad.value.final) == ("result_too_large", True)


def test_each_value_counts() -> None:
    kept = [Pair(1, 2), Point(1), {"a": 1}]
    encoding.check([kept] * (encoding.VALUES_MAX // 9))
    with pytest.raises(encoding.NotJson, match="more than"):
        encoding.check([kept] * (encoding.VALUES_MAX // 9 + 1))
