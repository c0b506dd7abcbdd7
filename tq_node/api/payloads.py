"""Payloads: any JSON value in, compact and valid JSON out.

What is stored must be readable by every handler in every language, so a payload is decoded and encoded again: whitespace
goes, of equal keys in an object the last stays, bad UTF-8 and numbers that no double holds are refused.
"""

from __future__ import annotations

import re

import msgspec

from tq_node import limits
from tq_node.errors import InvalidField, Malformed, PayloadTooLarge

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
# 19 digits are the fewest that can be beyond 64 bits. Inside a string they are harmless, but worth a look.
_has_long_number = re.compile(rb"\d{19}").search
_string = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_empty = re.compile(rb"\[\s*\]|\{\s*\}")
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


_VALUES_UNCOUNTED_BYTES = 2 * limits.PAYLOAD_VALUES_MAX
"""Up to this size a payload can't hold too many values: each takes two bytes at least."""


class Payloads:
    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max

    def parse(self, raw: msgspec.Raw, at: str) -> tuple[object, bytes]:
        """The value and its compact JSON.

        :param at: JSON Pointer of the task in the body, for what is refused.
        :raises PayloadTooLarge: as sent or as stored it is over the bound.
        :raises Malformed: it is not JSON in UTF-8.
        :raises InvalidField: a number out of range, nesting deeper than ``limits.JSON_DEPTH_MAX``, or more values than
            ``limits.PAYLOAD_VALUES_MAX``.
        """
        size = len(raw)
        if size > self._bytes_max:
            raise self._too_large(size)
        if size > _VALUES_UNCOUNTED_BYTES:
            _check_count(bytes(raw), at)
        try:
            value = _decode(raw)
        except msgspec.ValidationError as why:
            raise InvalidField(f"payload: {str(why)[:200].lower()}", field=at + "/payload") from None
        except RecursionError:
            raise _too_deep(at) from None
        except ValueError as why:
            raise Malformed(f"payload: {str(why)[:200]}") from None
        encoded = _encode(value)
        size = len(encoded)
        if size >= 19 and (
            _has_long_number(encoded) or encoded.count(b"[") + encoded.count(b"{") > limits.JSON_DEPTH_MAX
        ):
            _check_shape(value, at)
        if size > self._bytes_max:
            raise self._too_large(size)
        return value, encoded

    def _too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"a payload of {size} bytes; at most {self._bytes_max} are allowed")


def _check_count(raw: bytes, at: str) -> None:
    """Before it is decoded: what many values cost, they cost then.

    Each element but the first of its container stands behind a comma. Strings may hold commas, too: they are taken out first
    where that could matter.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") < limits.PAYLOAD_VALUES_MAX:
        return
    bare = _string.sub(b"", raw)
    containers = bare.count(b"[") + bare.count(b"{") - len(_empty.findall(bare))
    values = 1 + containers + bare.count(b",")
    if values > limits.PAYLOAD_VALUES_MAX:
        raise InvalidField(
            f"payload: {values} values; at most {limits.PAYLOAD_VALUES_MAX} are allowed", field=at + "/payload"
        )


def _check_shape(value: object, at: str) -> None:
    """Level by level rather than by recursion: the input decides how deep this goes."""
    level: list[object] = [value]
    depth = 0
    while level:
        deeper: list[object] = []
        containers = False
        for item in level:
            kind = type(item)
            if kind is dict:
                containers = True
                deeper.extend(item.values())  # type: ignore[attr-defined]  # its type was just looked at
            elif kind is list:
                containers = True
                deeper.extend(item)  # type: ignore[arg-type]  # its type was just looked at
            elif kind is int and not _INT_MIN <= item <= _INT_MAX:  # type: ignore[operator]  # as above
                raise InvalidField("payload: an integer beyond 64 bits", field=at + "/payload")
        depth += containers
        if depth > limits.JSON_DEPTH_MAX:
            raise _too_deep(at)
        level = deeper


def _too_deep(at: str) -> InvalidField:
    return InvalidField(f"payload: nested deeper than {limits.JSON_DEPTH_MAX} levels", field=at + "/payload")
