"""The chain of the audit log: what was taken out, added, changed or moved is found; no token is in a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_node import audit, tokens
from tq_node.audit import GENESIS, AuditRecord, Chain, findings_of

NOW_US = 1_790_000_000_000_000


def lines_of(count: int) -> list[bytes]:
    lines: list[bytes] = []
    head = GENESIS
    for number in range(count):
        record = AuditRecord(
            NOW_US + number, b"r-%d" % number, "ops", "10.0.0.1", b"POST", b"/tasks/cancel", "id=t", 200
        )
        lines.append(audit.encode(record, "node-1", head))
        head = audit.hash_of(lines[-1])
    return lines


def places(lines: list[bytes]) -> list[str]:
    """Where the chain is broken."""
    return [finding.place for finding in findings_of(Chain(), ((str(n), line) for n, line in enumerate(lines)))]


def test_a_line_has_the_fields_of_the_contract_in_their_order() -> None:
    (line,) = lines_of(1)
    assert json.loads(line) == {
        "at": "2026-09-21T14:13:20.000000Z", "request_id": "r-0", "token": "ops", "from": "10.0.0.1", "method": "POST",
        "path": "/tasks/cancel", "what": "id=t", "outcome": 200, "node": "node-1", "prev": "0" * 64,
    }  # fmt: skip
    assert list(json.loads(line)) == [
        "at",
        "request_id",
        "token",
        "from",
        "method",
        "path",
        "what",
        "outcome",
        "node",
        "prev",
    ]


def test_a_whole_chain_has_no_findings() -> None:
    chain = Chain()
    lines = lines_of(5)
    assert not list(findings_of(chain, (("", line) for line in lines)))
    assert (chain.is_whole, chain.count, chain.head) == (True, 5, audit.hash_of(lines[-1]))


@given(st.data())
def test_one_line_taken_out_of_the_middle_is_found_where_it_was(data: st.DataObject) -> None:
    lines = lines_of(data.draw(st.integers(3, 8)))
    gone = data.draw(st.integers(1, len(lines) - 2))
    assert places(lines[:gone] + lines[gone + 1 :]) == [str(gone)]


@given(st.data())
def test_two_lines_that_changed_places_are_found(data: st.DataObject) -> None:
    lines = lines_of(data.draw(st.integers(3, 8)))
    first = data.draw(st.integers(0, len(lines) - 3))
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    assert places(lines)


@given(st.data())
def test_one_byte_changed_is_found(data: st.DataObject) -> None:
    lines = lines_of(4)
    number = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(lines[number]) - 1))
    line = bytearray(lines[number])
    line[place] ^= data.draw(st.integers(1, 255))
    lines[number] = bytes(line)
    chain = Chain()
    assert list(findings_of(chain, (("", line) for line in lines))) or not chain.is_whole


def test_a_line_put_between_is_found() -> None:
    lines = lines_of(4)
    made = audit.encode(AuditRecord(NOW_US, what="harmless"), "node-1", audit.hash_of(lines[1]))
    assert places([*lines[:2], made, *lines[2:]]) == ["3"]


def test_a_chain_without_its_beginning_is_not_whole_unless_a_line_says_that_the_log_deleted_it() -> None:
    lines = lines_of(4)
    chain = Chain()
    assert not list(findings_of(chain, (("", line) for line in lines[2:])))
    assert not chain.is_whole
    deleted = AuditRecord(NOW_US, what=audit.forgotten("audit.000001", audit.hash_of(lines[1])))
    assert not list(chain.follow("", audit.encode(deleted, "node-1", chain.head)))
    assert chain.is_whole


def test_what_a_caller_says_is_not_taken_for_what_the_log_says() -> None:
    lines = lines_of(4)
    chain = Chain()
    list(findings_of(chain, (("", line) for line in lines[2:])))
    what = audit.forgotten("audit.000001", audit.hash_of(lines[1]))
    record = AuditRecord(NOW_US, b"r", "ops", "10.0.0.1", b"POST", b"/tasks/cancel", what, 404)
    list(chain.follow("", audit.encode(record, "node-1", chain.head)))
    assert not chain.is_whole


def test_no_line_holds_a_token_whatever_place_it_was_sent_in() -> None:
    token = tokens.encode(bytes(range(32)))
    record = AuditRecord(NOW_US, token.encode(), "", "", b"GET", f"/x/{token}".encode(), f"token={token}&id=1", 401)
    line = audit.encode(record, "node-1", GENESIS)
    assert token.encode() not in line
    assert b"tq_\xe2\x80\xa6&id=1" in line


@pytest.mark.parametrize("junk", [b"", b"{}", b"[1]", b"\xff", b'{"at":1}', b"[" * 10_000])
def test_what_is_no_line_is_said_to_be_none(junk: bytes) -> None:
    assert audit.decode(junk) is None
    assert places([*lines_of(2), junk]) == ["2"]


def test_bytes_of_any_kind_become_a_line() -> None:
    record = AuditRecord(NOW_US, bytes(range(256)), "", "", b"P\xff", bytes(range(256)), "é\ud7ff\x00", 401)
    line = audit.encode(record, "node-1", GENESIS)
    assert b"\n" not in line
    assert audit.decode(line) is not None
