"""The parser holds every bound while bytes arrive (F33), and speaks AMP."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.protocols import amp

from tests.support.wires import raw_box
from tq_node.limits import MIB
from tq_node.wire import bounds
from tq_node.wire.bounds import PEER, UNAUTHENTICATED, WireLimits
from tq_node.wire.errors import BoxTooLarge, MalformedBox, SpeaksHttp
from tq_node.wire.framing import BoxParser, cut, serialize

BOXES = st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=2_000), min_size=1, max_size=60)
MORE = b"_more"


def parsed(parser: BoxParser, data: bytes) -> list[dict[bytes, bytes]]:
    return [dict(box) for box, _ in parser.feed(data)]


def takes(parser: BoxParser, number: int) -> bool:
    """One more key, and a value as long as AMP has them."""
    try:
        parsed(parser, b"\0\4%04d\xff\xff" % number + bytes(65_535))
    except BoxTooLarge:
        return False
    return True


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(BOXES, min_size=1, max_size=4), st.lists(st.integers(0, 1 << 20), max_size=30))
def test_boxes_come_out_as_they_went_in_however_they_are_cut(boxes: list[dict[bytes, bytes]], cuts: list[int]) -> None:
    parser = BoxParser(PEER)
    out = [box for piece in pieces(b"".join(map(serialize, boxes)), cuts) for box in parsed(parser, piece)]
    assert out == boxes


@given(BOXES)
def test_twisted_reads_what_we_write_and_we_what_twisted_writes(box: dict[bytes, bytes]) -> None:
    assert amp.parseString(serialize(box)) == [box]
    assert parsed(BoxParser(PEER), amp.AmpBox(box).serialize()) == [box]


@given(st.lists(st.binary(max_size=300), max_size=20))
@example([b"\0\1a\0\0\0\0" * 3])
@example([b"\0\0"])
def test_any_bytes_are_boxes_or_a_refusal(chunks: list[bytes]) -> None:
    parser = BoxParser(UNAUTHENTICATED)
    received = 0
    for chunk in chunks:
        received += len(chunk)
        try:
            boxes = parsed(parser, chunk)
        except (BoxTooLarge, MalformedBox):
            break
        assert received <= UNAUTHENTICATED.box_bytes_max
        assert all(len(box) <= UNAUTHENTICATED.box_keys_max for box in boxes)
        assert len(parser._rest) <= received


def test_a_size_is_told_with_each_box() -> None:
    data = serialize({b"key": b"value"})
    assert [size for _, size in BoxParser(PEER).feed(data * 2)] == [len(data)] * 2


@pytest.mark.parametrize(
    "caps", [UNAUTHENTICATED, WireLimits(UNAUTHENTICATED.box_bytes_max, UNAUTHENTICATED.box_keys_max, None)]
)
def test_a_stranger_s_box_ends_at_its_cap_before_the_bytes_have_come(caps: WireLimits) -> None:
    parser = BoxParser(caps)
    announced = raw_box({b"key": bytes(4_000)})[:-4_002]
    assert parsed(parser, announced) == []
    with pytest.raises(BoxTooLarge):
        parsed(parser, b"") or parsed(parser, bytes(4_000) + raw_box({b"another": bytes(200)}))
    with pytest.raises(BoxTooLarge):
        parsed(BoxParser(caps), b"\0\1k\xff\xff")  # a value of 65,535 bytes, none of which is there yet


def test_all_that_a_stranger_says_counts_not_only_one_box() -> None:
    parser = BoxParser(UNAUTHENTICATED)
    box = raw_box({b"key": bytes(1_000)})
    assert len(parsed(parser, box * 3)) == 3
    parser.caps = WireLimits(UNAUTHENTICATED.box_bytes_max, UNAUTHENTICATED.box_keys_max, None)
    assert len(parsed(parser, box * 3)) == 3
    parser.caps = UNAUTHENTICATED
    with pytest.raises(BoxTooLarge):
        parsed(parser, box * 2)


@pytest.mark.parametrize("caps", [UNAUTHENTICATED, PEER])
def test_keys_are_counted(caps: WireLimits) -> None:
    parser = BoxParser(caps)
    most = {b"%d" % number: b"" for number in range(caps.box_keys_max)}
    assert parsed(parser, raw_box(most)) == [most]
    with pytest.raises(BoxTooLarge):
        parsed(parser, raw_box(most | {b"one more": b""}))


def test_a_box_that_never_ends_holds_no_more_than_its_bound() -> None:
    """F33: Twisted's parser held 250 MB for one peer that had not said who it was."""
    parser = BoxParser(PEER)
    tracemalloc.start()
    try:
        taken = sum(1 for _ in itertools.takewhile(lambda number: takes(parser, number), range(1_000)))
        assert taken < bounds.BOX_BYTES_MAX // 65_535 + 1
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()


def test_a_value_that_comes_byte_by_byte_is_not_copied_each_time() -> None:
    parser = BoxParser(PEER)
    data = serialize({b"key": bytes(60_000)})
    out = [box for position in range(len(data)) for box in parsed(parser, data[position : position + 1])]
    assert out == [{b"key": bytes(60_000)}]


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0",  # an empty box
        b"\1\0" + bytes(256),  # a key of 256 bytes
        b"\xff\xff",
        raw_box({b"a": b"1"})[:-2] + raw_box({b"a": b"2"}),  # a key that comes twice
    ],
)
def test_what_is_not_amp_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedBox):
        parsed(BoxParser(PEER), data)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"POST /cluster/join HTTP/1.1\r\n", b"HEAD"])
def test_http_is_known_by_its_first_bytes(data: bytes) -> None:
    """A joiner that was given the peer port asks so; that is no reason for a warning."""
    with pytest.raises(SpeaksHttp):
        parsed(BoxParser(PEER), data)
    with pytest.raises(MalformedBox):
        parsed(BoxParser(PEER), raw_box({b"a": b"1"})[:-2] + data)


def test_we_send_nothing_that_a_peer_would_not_take() -> None:
    for box in (
        {b"key": bytes(65_536)},
        {b"k" * 256: b""},
        {b"": b"value"},
        {b"%d" % number: b"" for number in range(bounds.BOX_KEYS_MAX + 1)},
        {b"%d" % number: bytes(60_000) for number in range(40)},
    ):
        with pytest.raises(BoxTooLarge):
            serialize(box)


def test_a_long_answer_is_cut_into_boxes_that_fit() -> None:
    values = {b"results" + (b".%d" % number if number else b""): bytes([number]) * 60_000 for number in range(100)}
    head = {b"_answer": b"1"}
    boxes = [box for part in cut(values, head, MORE) for box in parsed(BoxParser(PEER), part)]
    assert len(boxes) > 5
    assert [MORE in box for box in boxes] == [True] * (len(boxes) - 1) + [False]
    merged: dict[bytes, bytes] = {}
    for box in boxes:
        assert box.pop(b"_answer") == b"1"
        box.pop(MORE, None)
        merged |= box
    assert merged == values
    with pytest.raises(BoxTooLarge):
        cut({b"%d" % number: bytes(60_000) for number in range(150)}, head, MORE)
