"""Values of the program <-> the opaque bytes in a box: a version byte, then msgpack that is checked
against a schema.

What is decoded has exactly the declared types: no ``Any``, no object by name, nothing that runs.
NaN and infinity are refused (F38). Unknown trailing fields are skipped, so that the next release
can add some (F44)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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
        self._has_floats = _has_floats(inspect.type_info(kind), set())
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
        body = _body(data, self.bytes_max)
        try:
            value: T = self._decode(body)
        except UNREADABLE as why:
            raise MalformedBox(f"{why}"[: bounds.DETAIL_CHARS_MAX]) from None
        if self._has_floats and not all(map(math.isfinite, _floats(value))):
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


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from _floats(getattr(value, field))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _floats(key)
            yield from _floats(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _floats(item)


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
