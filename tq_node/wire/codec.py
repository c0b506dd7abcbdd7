"""Values of the program <-> the opaque bytes in a box: a version byte, then msgpack that is checked
against a schema.

What is decoded has exactly the declared types: no ``Any``, no object by name, nothing that runs.
NaN and infinity are refused (F38). Unknown trailing fields are skipped, so that the next release
can add some (F44)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from tq_node.raft.messages import AnyMessage, Message
from tq_node.types import NodeId
from tq_node.wire import bounds
from tq_node.wire.errors import UNREADABLE, BoxTooLarge, MalformedBox

T = TypeVar("T")
VERSION = 1
_HEAD = bytes([VERSION])
_LEAVES = (inspect.IntType, inspect.StrType, inspect.BytesType, inspect.BoolType, inspect.NoneType, inspect.EnumType)
_LEAVES_TOO = (inspect.LiteralType, inspect.RawType)


class Codec(Generic[T]):
    """Encodes and decodes one type.

    :param kind: made of structs, containers, ints, strings, bytes, booleans, floats, enums; never
        ``Any``.
    :raises TypeError: the type holds something that is not fit for the wire."""

    def __init__(self, kind: Any, bytes_max: int = bounds.BLOB_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._is_finite = _finite_check(inspect.type_info(kind), {})
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def encode(self, value: T) -> bytes:
        """Encode a value; raises ``BoxTooLarge`` above ``bytes_max``."""
        data = _HEAD + self._encode(value)
        if len(data) > self.bytes_max:
            raise BoxTooLarge(f"{len(data)} bytes, more than {self.bytes_max}")
        return data

    def decode(self, data: bytes) -> T:
        """Decode a value; raises ``MalformedBox``: another version, too long, or off the schema."""
        return self.decode_part(_body(data, self.bytes_max))

    def decode_part(self, part: memoryview | msgspec.Raw) -> T:
        """Decode what stands in a longer value; raises ``MalformedBox``: off the schema."""
        try:
            value: T = self._decode(part)
        except UNREADABLE as why:
            raise MalformedBox(f"{why}"[: bounds.DETAIL_CHARS_MAX]) from None
        if self._is_finite is not None and not self._is_finite(value):
            raise MalformedBox("a number that is not finite")
        return value


def _body(data: bytes, bytes_max: int) -> memoryview:
    if len(data) > bytes_max:
        raise MalformedBox(f"{len(data)} bytes, more than {bytes_max}")
    if data[:1] != _HEAD:
        raise MalformedBox(f"version {data[0]} of a body" if data else "an empty body")
    return memoryview(data)[1:]


def _has_floats(info: inspect.Type, seen: set[type]) -> bool:
    """Whether a type has floats; raises ``TypeError`` for ``Any`` and others that take all."""
    if isinstance(info, inspect.FloatType):
        return True
    if isinstance(info, (*_LEAVES, *_LEAVES_TOO)):
        return False
    parts: Iterable[inspect.Type]
    if isinstance(info, inspect.StructType):
        if info.cls in seen:
            return False
        seen.add(info.cls)
        parts = [field.type for field in info.fields]
    elif isinstance(info, inspect.UnionType):
        parts = info.types
    elif isinstance(info, inspect.DictType):
        parts = (info.key_type, info.value_type)
    elif isinstance(info, inspect.TupleType):
        parts = info.item_types
    elif isinstance(info, inspect.NamedTupleType):
        parts = [field.type for field in info.fields]
    elif isinstance(info, (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)):
        parts = (info.item_type,)
    else:
        raise TypeError(f"{info} does not cross the wire")
    judged = [_has_floats(part, seen) for part in parts]  # all of them, before the first is enough
    return any(judged)


_Check = Callable[[Any], bool]


def _finite_check(info: inspect.Type, known: dict[type, _Check | None]) -> _Check | None:
    """What tells of a decoded value whether its floats are finite; None: it has none.

    It looks only where the type may have floats: a page of tasks has a hundred thousand values, and
    a look at each of them would hold the reactor.

    :param known: checks of structs. :raises TypeError: as ``_has_floats``.
    """
    if not _has_floats(info, set()):
        return None
    if isinstance(info, inspect.StructType):
        if info.cls not in known:
            known[info.cls] = lambda value: (
                (check := known[info.cls]) is None or check(value)
            )  # of a type within itself
            fields = [(attrgetter(field.name), _finite_check(field.type, known)) for field in info.fields]
            known[info.cls] = _all_of(fields)
        return known[info.cls]
    if isinstance(info, inspect.UnionType):
        checks = {_class_of(part): check for part in info.types if (check := _finite_check(part, known)) is not None}
        return lambda value: (check := checks.get(type(value))) is None or check(value)
    if isinstance(info, inspect.DictType):
        keys, values = _finite_check(info.key_type, known), _finite_check(info.value_type, known)
        return lambda value: (
            (keys is None or all(map(keys, value))) and (values is None or all(map(values, value.values())))
        )
    if isinstance(info, inspect.TupleType):
        return _all_of([(itemgetter(place), _finite_check(part, known)) for place, part in enumerate(info.item_types)])
    if isinstance(info, inspect.NamedTupleType):
        return _all_of([(attrgetter(field.name), _finite_check(field.type, known)) for field in info.fields])
    if isinstance(info, (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)):
        item = _finite_check(info.item_type, known)
        assert item is not None, "it has floats, and nowhere else"
        return lambda value: all(map(item, value))
    return math.isfinite


def _all_of(parts: Iterable[tuple[Callable[[Any], Any], _Check | None]]) -> _Check:
    checks = [(part_of, check) for part_of, check in parts if check is not None]

    def is_finite(value: Any) -> bool:
        for part_of, check in checks:  # noqa: SIM110 (a generator would cost more than what it runs)
            if not check(part_of(value)):
                return False
        return True

    return is_finite


def _class_of(info: inspect.Type) -> type:
    """The class of decoded values of a type that may have floats."""
    if isinstance(info, (inspect.StructType, inspect.NamedTupleType)):
        return info.cls
    for kind, cls in _CLASSES.items():
        if isinstance(info, kind):
            return cls
    raise TypeError(f"{info} does not cross the wire in a union")


_CLASSES: dict[type[inspect.Type], type] = {
    inspect.FloatType: float,
    inspect.DictType: dict,
    inspect.TupleType: tuple,
    inspect.VarTupleType: tuple,
    inspect.ListType: list,
    inspect.SetType: set,
    inspect.FrozenSetType: frozenset,
}


# --- consensus ---
_encode_message = msgspec.msgpack.Encoder().encode
_MESSAGES: Codec[list[AnyMessage]] = Codec(list[AnyMessage])


def encode_messages(messages: Iterable[Message]) -> Iterator[tuple[bytes, int]]:
    """Messages as (batch, number in it), in order; raises ``BoxTooLarge`` if one is too long."""
    batch: list[bytes] = []
    size = 0
    for message in messages:
        data = _encode_message(message)
        if len(data) > bounds.BLOB_BYTES_MAX - 6:
            raise BoxTooLarge(f"a message of {len(data)} bytes")
        if batch and size + len(data) > bounds.RAFT_BATCH_BYTES_MAX:
            yield _joined(batch), len(batch)
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    if batch:
        yield _joined(batch), len(batch)


def _joined(batch: list[bytes]) -> bytes:
    """The bytes of a list whose items are encoded already (msgpack's array of 32-bit length)."""
    return b"".join((_HEAD, b"\xdd", len(batch).to_bytes(4, "big"), *batch))


def decode_messages(data: bytes, source: NodeId, target: NodeId) -> list[AnyMessage]:
    """Decode a batch; raises ``MalformedBox``: no messages, or not from that peer to this node."""
    messages = _MESSAGES.decode(data)
    for message in messages:
        if message.source != source or message.target != target or message.term < 0:
            raise MalformedBox("a message that names another sender or receiver")
    return messages


# --- forwarded calls ---
class ForwardedCall(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``kind`` names the call to the handler; ``body`` is opaque here."""

    kind: str
    body: bytes


class ForwardedResult(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """``error``: empty after success, else a code; ``body``: then ``failures.encode_error``'s."""

    error: str
    body: bytes


CALLS: Codec[list[ForwardedCall]] = Codec(list[ForwardedCall])
RESULTS: Codec[list[ForwardedResult]] = Codec(list[ForwardedResult], bounds.ANSWER_BYTES_MAX)
