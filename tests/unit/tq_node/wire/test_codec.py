"""Bodies: version, schema, nothing that is not finite, nothing unbounded (F38)."""

from __future__ import annotations

import contextlib
import decimal
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tq_node.raft.messages import (
    AnyMessage,
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tq_node.raft.settings import RaftSettings
from tq_node.types import NodeId, TaskRow
from tq_node.wire import bounds
from tq_node.wire.codec import CALLS, Codec, ForwardedCall, decode_messages, encode_messages
from tq_node.wire.errors import BoxTooLarge, MalformedBox

A, B = NodeId("a"), NodeId("b")
COUNTS = st.integers(0, 2**63 - 1)
ENTRIES = st.builds(Entry, COUNTS, COUNTS, st.sampled_from(EntryKind), st.binary(max_size=50))
NODES = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Vote, st.just(A), st.just(B), COUNTS, COUNTS, COUNTS, st.booleans(), st.booleans()),
    st.builds(VoteReply, st.just(A), st.just(B), COUNTS, st.booleans(), st.booleans()),
    st.builds(Append, st.just(A), st.just(B), COUNTS, COUNTS, COUNTS, COUNTS, st.lists(ENTRIES, max_size=3).map(tuple)),
    st.builds(AppendReply, st.just(A), st.just(B), COUNTS, COUNTS, st.booleans(), COUNTS, COUNTS),
    st.builds(Heartbeat, st.just(A), st.just(B), COUNTS, COUNTS, COUNTS),
    st.builds(HeartbeatReply, st.just(A), st.just(B), COUNTS, COUNTS),
    st.builds(
        SnapshotChunk,
        *(st.just(A), st.just(B), COUNTS, COUNTS, COUNTS),
        *(st.builds(Configuration, NODES, NODES), COUNTS, COUNTS, COUNTS, st.binary(max_size=50)),
    ),
    st.builds(SnapshotReply, st.just(A), st.just(B), COUNTS, COUNTS, COUNTS),
    st.builds(TimeoutNow, st.just(A), st.just(B), COUNTS),
    st.builds(ReadRequest, st.just(A), st.just(B), COUNTS, COUNTS),
    st.builds(ReadReply, st.just(A), st.just(B), COUNTS, COUNTS, st.none() | COUNTS),
)


class Inner(msgspec.Struct, array_like=True):
    fraction: float


class Outer(msgspec.Struct, array_like=True):
    inner: dict[str, list[Inner]]
    number: int | None = None


OUTER: Codec[Outer] = Codec(Outer, 1_000)


@given(st.lists(MESSAGES, max_size=10))
def test_consensus_messages_survive_the_wire(messages: list[Message]) -> None:
    batches = list(encode_messages(messages))
    assert [m for batch, _ in batches for m in decode_messages(batch, A, B)] == messages
    assert sum(count for _, count in batches) == len(messages)


def test_every_kind_of_message_is_covered() -> None:
    assert set(AnyMessage.__args__) == {type(MESSAGES_OF[kind]) for kind in MESSAGES_OF}


MESSAGES_OF: dict[str, Any] = {
    "vote": Vote(A, B, 1, 1, 1),
    "vote_reply": VoteReply(A, B, 1, True),
    "append": Append(A, B, 1, 1, 1, 1),
    "append_reply": AppendReply(A, B, 1, 1),
    "heartbeat": Heartbeat(A, B, 1, 1, 1),
    "heartbeat_reply": HeartbeatReply(A, B, 1, 1),
    "snapshot_chunk": SnapshotChunk(A, B, 1, 1, 1, Configuration(), 1, 0, 1, b""),
    "snapshot_reply": SnapshotReply(A, B, 1, 1, 1),
    "timeout_now": TimeoutNow(A, B, 1),
    "read_request": ReadRequest(A, B, 1, 1),
    "read_reply": ReadReply(A, B, 1, 1, None),
}


@pytest.mark.parametrize(
    "message",
    [Heartbeat(B, B, 1, 1, 1), Heartbeat(A, A, 1, 1, 1), Heartbeat(NodeId("c"), B, 1, 1, 1), Heartbeat(A, B, -1, 1, 1)],
)
def test_nobody_speaks_for_another(message: Message) -> None:
    ((batch, _),) = encode_messages([message])
    with pytest.raises(MalformedBox):
        decode_messages(batch, A, B)


def test_batches_keep_within_their_bound_and_in_order() -> None:
    appends = [Append(A, B, 1, n, 1, 1, (Entry(1, n, EntryKind.DATA, bytes(200_000)),)) for n in range(20)]
    batches = list(encode_messages(appends))
    assert len(batches) > 3
    assert all(len(batch) <= bounds.RAFT_BATCH_BYTES_MAX + 100 for batch, _ in batches)
    assert [
        m.prev_log_index for batch, _ in batches for m in decode_messages(batch, A, B) if isinstance(m, Append)
    ] == list(range(20))
    with pytest.raises(BoxTooLarge):
        list(encode_messages([Append(A, B, 1, 1, 1, 1, (Entry(1, 1, EntryKind.DATA, bytes(bounds.BLOB_BYTES_MAX)),))]))


def test_what_consensus_sends_fits() -> None:
    assert RaftSettings().message_bytes_max < bounds.RAFT_BATCH_BYTES_MAX
    assert RaftSettings().snapshot_chunk_bytes < bounds.RAFT_BATCH_BYTES_MAX
    assert 2 * RaftSettings().inflight_bytes_max < bounds.CONSENSUS_SEND_BYTES_MAX


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x01")
@example(b"\x02\x90")
@example(b"\x01\xdd\xff\xff\xff\xff")  # a list of four thousand million items, none of them here
@example(b"\x01" + b"\x91" * 100_000)  # nested without end
@example(b"\x01\xc1")
@example(b"\x01\x91\x93\xc7\xff\x05hello\x01\x01")  # an extension type
def test_any_bytes_are_a_value_or_a_refusal(data: bytes) -> None:
    for decode in (lambda d: decode_messages(d, A, B), CALLS.decode, OUTER.decode):
        with contextlib.suppress(MalformedBox):
            decode(data)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(number: float) -> None:
    good = Outer({"a": [Inner(0.5)]})
    assert OUTER.decode(OUTER.encode(good)) == good
    bad = OUTER.encode(Outer({"a": [Inner(0.5), Inner(number)]}))
    assert struct.pack(">d", number) in bad
    with pytest.raises(MalformedBox):
        OUTER.decode(bad)
    keyed: Codec[dict[float, int]] = Codec(dict[float, int])
    with pytest.raises(MalformedBox):
        keyed.decode(keyed.encode({number: 1}))


def test_sizes_are_bounded_both_ways() -> None:
    with pytest.raises(BoxTooLarge):
        OUTER.encode(Outer({"a" * 1_000: []}))
    longer: Codec[Outer] = Codec(Outer)
    with pytest.raises(MalformedBox):
        OUTER.decode(longer.encode(Outer({"a" * 1_000: []})))


@pytest.mark.parametrize("value", [[{"a": [["x"]]}], [{}, "x"], ["x"], [{1: []}], [{}, 2**70], {"inner": {}}, []])
def test_types_are_exact(value: Any) -> None:
    try:
        body = b"\x01" + msgspec.msgpack.encode(value)
    except OverflowError:
        body = b"\x01\x92\x80\xc7\x09\x00" + bytes(9)
    with pytest.raises(MalformedBox):
        OUTER.decode(body)


def test_fields_of_the_next_release_are_skipped() -> None:
    """F44."""
    body = b"\x01" + msgspec.msgpack.encode([{}, 7, "new", {"newer": 1}])
    assert OUTER.decode(body) == Outer({}, 7)


@pytest.mark.parametrize(
    "kind", [Any, dict[str, Any], list[object], decimal.Decimal, msgspec.Raw | None, bytearray, complex]
)
def test_types_that_would_take_anything_do_not_cross_the_wire(kind: Any) -> None:
    if kind == msgspec.Raw | None:
        Codec(kind)  # opaque bytes are no danger
        return
    with pytest.raises(TypeError):
        Codec(kind)


class Point(NamedTuple):
    name: str
    at: float


class Branch(msgspec.Struct, array_like=True):
    weight: float
    parts: list[Branch]


class Left(msgspec.Struct, array_like=True, tag=0):
    number: int


class Right(msgspec.Struct, array_like=True, tag=1):
    number: int
    fraction: float | None


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (float, lambda x: x),
        (float | None, lambda x: x),
        (list[float | str], lambda x: ["a", x]),
        (dict[str, float], lambda x: {"a": 1.0, "b": x}),
        (dict[float, str], lambda x: {x: "a"}),
        (dict[str, list[float]] | None, lambda x: {"a": [1.0, x]}),
        (tuple[int, float], lambda x: (1, x)),
        (tuple[float, ...] | None, lambda x: (1.0, x)),
        (tuple[int, float] | None, lambda x: (1, x)),
        (set[float] | None, lambda x: {x}),
        (frozenset[float], lambda x: frozenset([x])),
        (Point, lambda x: Point("a", x)),
        (Point | None, lambda x: Point("a", x)),
        (list[Left | Right], lambda x: [Left(1), Right(2, None), Right(3, x)]),
        (Branch, lambda x: Branch(0.5, [Branch(0.5, [Branch(x, [])])])),
    ],
    ids=str,
)
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(kind: Any, make: Callable[[float], Any]) -> None:
    codec: Codec[Any] = Codec(kind)
    assert codec.decode(codec.encode(make(0.25))) == make(0.25)
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(MalformedBox, match="not finite"):
            codec.decode(codec.encode(make(number)))


def test_our_shared_values_cross_the_wire() -> None:
    Codec(list[TaskRow])
    assert Codec(TaskRow)._is_finite is not None, "progress"
    assert CALLS._is_finite is None
    calls = [ForwardedCall("submit", b"x" * 10)]
    assert CALLS.decode(CALLS.encode(calls)) == calls
