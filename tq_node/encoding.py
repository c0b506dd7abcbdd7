"""From Python values to a task's JSON: one rule for payloads (the client) and results (handlers).

Taken is what has one clear form in JSON: None, booleans, finite numbers (integers of 64 bits),
text, dicts, lists, tuples, dataclasses, ``msgspec.Struct`` and attrs classes, enums by value,
``datetime`` with a zone, ``date``, ``timedelta``, ``UUID``, ``Decimal`` (as text). What has
several, or none, is refused by name: sets, bytes, a naive ``datetime``, NaN.

Imported by the client, by nodes and by worker processes, so it imports nothing of theirs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

DEPTH_MAX = 200
"""Levels of lists and objects."""
VALUES_MAX = 100_000
"""Values in all, the lists and objects among them."""
INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
_SHOWN_CHARS_MAX = 60
_ADVICE: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((set, frozenset), "a set has no order: make a sorted list of it"),
    ((bytes, bytearray, memoryview), "bytes are no text: decode them, or encode them as base64"),
    (dt.datetime, "a datetime without a zone is no instant: give it a tzinfo"),
    (dt.time, "a time of day without a zone is ambiguous: give it a tzinfo, or send text"),
    ((float, decimal.Decimal), "JSON has no NaN and no infinity"),
    (int, "an integer beyond 64 bits: send it as text"),
)


class NotJson(TypeError):
    """A value that has no clear form in JSON, or is over a bound. The message is one line."""


class TooLong(NotJson):
    """The text of the value is over the bound in bytes."""


def check(value: Any, chars_max: int | None = None) -> None:
    """Look at everything that ``encode`` would write, level by level: no depth is too much for it.

    :param chars_max: of all texts and keys together. None: no bound.
    :raises NotJson: can't be encoded, deeper than ``DEPTH_MAX`` or over ``VALUES_MAX`` values.
    :raises TooLong: it has more characters than ``chars_max``."""
    level: Iterable[Any] = (value,)
    depth, count, chars = 0, 1, 0
    while level:
        deeper: list[Any] = []
        is_nested = False
        for item in level:
            kind = type(item)
            parts: Iterable[Any] | None
            if kind is str:
                chars += len(item)
                continue
            if item is None or kind is bool:
                continue
            if kind is int:
                if not INT_MIN <= item <= INT_MAX:
                    raise _refused(item)
                continue
            if kind is list or kind is tuple:
                parts = item
                count += len(item)
            elif kind is dict:
                parts = item.values()
                count += len(item)
                chars += _check_keys(item)
            else:
                parts, length = _look_at(item)
                if parts is None:
                    chars += length
                    continue
                count += len(parts)  # type: ignore[arg-type]  # every one of them has a length
            is_nested = True
            if count > VALUES_MAX:
                raise NotJson(f"more than {VALUES_MAX} values")
            deeper.extend(parts)
        if chars_max is not None and chars > chars_max:
            raise TooLong(f"more than {chars_max} characters of text")
        depth += is_nested
        if depth > DEPTH_MAX:
            raise NotJson(f"nested deeper than {DEPTH_MAX} levels (or it contains itself)")
        level = deeper


def plain(value: Any) -> Any:
    """The built-in type that a value's type derives from; raises ``NotJson`` if there is none."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    raise _refused(value)


_encode = msgspec.json.Encoder(enc_hook=plain).encode


def encode(value: Any, chars_max: int | None = None) -> bytes:
    """Compact JSON; raises as ``check``, and ``NotJson`` for a lone surrogate (not UTF-8)."""
    check(value, chars_max)
    return encode_checked(value)


def encode_checked(value: Any) -> bytes:
    """As ``encode``, where ``check`` has been called for what came from outside."""
    try:
        return _encode(value)
    except UnicodeEncodeError as why:
        raise NotJson(f"text with a lone surrogate at character {why.start}") from None
    except RecursionError:
        raise NotJson("nested too deep for what is left of the stack") from None


def _look_at(item: Any) -> tuple[Iterable[Any] | None, int]:
    """What lies in an object of no plain type: its parts, or None and the characters of a scalar.

    :raises NotJson: there is no clear form for it."""
    if isinstance(item, enum.Enum):
        return (item.value,), 0
    if isinstance(item, str):
        return None, str.__len__(item)
    if isinstance(item, float):
        is_clear = math.isfinite(item)
    elif isinstance(item, int):
        is_clear = INT_MIN <= item <= INT_MAX
    elif isinstance(item, dict):
        return item.values(), _check_keys(item)
    elif isinstance(item, (list, tuple)):
        return item, 0
    elif isinstance(item, (dt.datetime, dt.time)):
        is_clear = item.tzinfo is not None
    elif isinstance(item, decimal.Decimal):
        is_clear = item.is_finite()
    elif isinstance(item, type):
        is_clear = False
    elif isinstance(item, msgspec.Struct):
        return [part for name in item.__struct_fields__ if (part := getattr(item, name)) is not msgspec.UNSET], 0
    elif dataclasses.is_dataclass(item):
        return [getattr(item, field.name) for field in dataclasses.fields(item) if hasattr(item, field.name)], 0
    elif (fields := getattr(type(item), "__attrs_attrs__", None)) is not None:
        return [getattr(item, field.name) for field in fields if hasattr(item, field.name)], 0
    else:
        is_clear = isinstance(item, (dt.date, dt.timedelta, uuid.UUID))
    if not is_clear:
        raise _refused(item)
    return None, 0


def _check_keys(mapping: Mapping[Any, Any]) -> int:
    """Characters of the keys; raises ``NotJson`` for one that is not written as text or number."""
    chars = 0
    for key in mapping:
        if type(key) is str:
            chars += len(key)
            continue
        found = key.value if isinstance(key, enum.Enum) else key
        if found is None or isinstance(found, bool):
            raise NotJson(f"a key of type {type(key).__qualname__}: keys are text")
        if type(found) is str:
            chars += len(found)
        elif _look_at(found)[0] is not None:
            raise NotJson(f"a key of type {type(key).__qualname__}: keys are text")
    return chars


def _refused(item: Any) -> NotJson:
    name = type(item).__qualname__
    for kinds, advice in _ADVICE:
        if isinstance(item, kinds):
            shown = "" if isinstance(item, (int, set, frozenset)) else f" ({repr(item)[:_SHOWN_CHARS_MAX]})"
            return NotJson(f"{name}{shown}: {advice}")
    return NotJson(f"an object of type {name} has no form in JSON")
