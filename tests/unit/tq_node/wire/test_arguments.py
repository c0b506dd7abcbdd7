"""Values have a bound and one form (F36, F38)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.protocols.amp import AmpBox, Argument

from tq_node.wire import bounds
from tq_node.wire.arguments import Blob, Flag, Number, Octets, Word
from tq_node.wire.errors import BoxTooLarge, MalformedBox
from tq_node.wire.framing import serialize


def there_and_back(argument: Argument, value: object) -> object:
    strings, objects = AmpBox(), {}  # type: AmpBox, dict[str, Any]
    argument.toBox(b"it", strings, {"it": value}, None)
    argument.fromBox(b"it", strings, objects, None)
    return objects["it"]


@given(st.integers(0, 2**63 - 1))
def test_numbers(number: int) -> None:
    assert there_and_back(Number(), number) == number


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"-1",
        b"+1",
        b"01",
        b" 1",
        b"1 ",
        b"1_0",
        b"0x1",
        b"1.0",
        b"1e3",
        b"nan",
        "\u0661".encode(),
        b"9" * 19,
        b"9" * 60_000,
    ],
)
def test_what_is_no_number(text: bytes) -> None:
    """``int()`` would take some of these, and hours for a long one."""
    with pytest.raises(MalformedBox):
        Number().fromString(text)


def test_numbers_have_a_bound_both_ways() -> None:
    assert Number(7).fromString(b"7") == 7
    with pytest.raises(MalformedBox):
        Number(7).fromString(b"8")
    for number in (8, -1):
        with pytest.raises(MalformedBox):
            Number(7).toString(number)


def test_flags() -> None:
    assert [there_and_back(Flag(), value) for value in (True, False)] == [True, False]
    with pytest.raises(MalformedBox):
        Flag().fromString(b"True")


@pytest.mark.parametrize("text", ["", "a b", "a\n", "\0", "é", "x" * 65])
def test_what_is_no_word(text: str) -> None:
    with pytest.raises(MalformedBox):
        Word().toString(text)
    with pytest.raises(MalformedBox):
        Word().fromString(text.encode())


def test_words() -> None:
    assert there_and_back(Word(), "node-1") == "node-1"
    assert there_and_back(Word(least=0), "") == ""


def test_octets_have_their_length() -> None:
    assert there_and_back(Octets(4), b"1234") == b"1234"
    for data in (b"", b"123", b"12345"):
        with pytest.raises(MalformedBox):
            Octets(4).fromString(data)
        with pytest.raises(MalformedBox):
            Octets(4).toString(data)


PIECE = bounds.VALUE_BYTES_MAX


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5, bounds.BLOB_BYTES_MAX])
def test_a_blob_is_cut_into_values_that_fit(size: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    strings = AmpBox({b"another": b"value"})
    Blob().toBox(b"it", strings, {"it": data}, None)
    assert all(len(value) <= PIECE for value in strings.values())
    serialize(strings)
    objects: dict[str, Any] = {}
    Blob().fromBox(b"it", strings, objects, None)
    assert objects == {"it": data}


def test_a_blob_has_a_bound_both_ways() -> None:
    with pytest.raises(BoxTooLarge):
        Blob(100).toBox(b"it", AmpBox(), {"it": bytes(101)}, None)
    for box in ({b"it": bytes(101)}, {b"it": bytes(PIECE), b"it.1": bytes(PIECE)}):
        with pytest.raises(MalformedBox):
            Blob(100).fromBox(b"it", AmpBox(box), {}, None)


@pytest.mark.parametrize(
    "box",
    [
        {},
        {b"it.1": b"x"},
        {b"it": b"x", b"it.1": b"y"},  # the first piece is not full
        {b"it": bytes(PIECE), b"it.1": b""},  # an empty last one
        {b"it": bytes(PIECE), b"it.1": bytes(PIECE - 1), b"it.2": b"z"},
    ],
)
def test_a_blob_has_one_form(box: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedBox):
        Blob().fromBox(b"it", AmpBox(box), {}, None)
