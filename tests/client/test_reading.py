"""Answers out of bytes, however the network cuts them."""

from __future__ import annotations

import itertools

import pytest

from tq_node.client import limits
from tq_node.client.reading import Answer, AnswerReader, NotHttp

PLAIN = b'HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n1;note=x\r\n"\r\n3\r\n:1}\r\n0\r\n\r\n'
TRAILED = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n0\r\nX-Sum: 1\r\n\r\n'


def read(reader: AnswerReader, pieces: list[bytes]) -> list[Answer]:
    return [answer for piece in pieces if (answer := reader.feed(piece)) is not None]


@pytest.mark.parametrize("sent", [PLAIN, CONTINUED, CHUNKED, TRAILED], ids=["plain", "continued", "chunked", "trailed"])
def test_an_answer_is_the_same_wherever_it_is_cut(sent: bytes) -> None:
    for first, second in itertools.combinations_with_replacement(range(len(sent) + 1), 2):
        reader = AnswerReader()
        (answer,) = read(reader, [sent[:first], sent[first:second], sent[second:]])
        assert answer.body == b'{"a":1}'
        assert answer.status in (200, 201)
        assert answer.keeps
        assert not reader.has_begun


@pytest.mark.parametrize("sent", [PLAIN, CHUNKED, EMPTY], ids=["plain", "chunked", "empty"])
def test_byte_by_byte_and_one_after_the_other(sent: bytes) -> None:
    reader = AnswerReader()
    for _ in range(2):
        (answer,) = read(reader, [sent[n : n + 1] for n in range(len(sent))])
        assert answer.body in (b'{"a":1}', b"")


def test_a_body_without_a_length_lasts_until_the_end() -> None:
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<h1>") is None
    assert reader.feed(b"no</h1>") is None
    answer = reader.end()
    assert answer is not None
    assert (answer.status, answer.body, answer.keeps) == (502, b"<h1>no</h1>", False)


@pytest.mark.parametrize("sent", [PLAIN[:-1], CHUNKED[:-4], PLAIN[:20], b""])
def test_what_was_cut_off_is_no_answer(sent: bytes) -> None:
    reader = AnswerReader()
    assert reader.feed(sent) is None
    assert reader.end() is None


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nconnection: CLOSE", False),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", True),
        (b"HTTP/1.1 200 OK", True),
    ],
)
def test_whether_the_connection_may_be_used_again(head: bytes, keeps: bool) -> None:
    answer = AnswerReader().feed(head + b"\r\nContent-Length: 0\r\n\r\n")
    assert answer is not None
    assert answer.keeps is keeps


def test_headers_are_found_by_name() -> None:
    answer = AnswerReader().feed(b"HTTP/1.1 503 X\r\nRetry-After:  2 \r\nContent-Length: 0\r\n\r\n")
    assert answer is not None
    assert answer.header(b"retry-after") == b"2"
    assert answer.header(b"after") is None


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n12",
        b"x" * (limits.HEAD_BYTES_MAX + 1),
    ],
)
def test_what_is_no_answer_is_refused(sent: bytes) -> None:
    with pytest.raises(NotHttp):
        AnswerReader().feed(sent)
