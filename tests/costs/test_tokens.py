"""What a token costs a hot request: at most four calls and three in a hundred of its instructions."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from bench.instructions import measuring
from tests.costs.test_instructions import needs_callgrind
from tests.unit.tq_node.api.talk import World
from tq_node.tokens import Role

CALLS_MORE_MAX = 4
GROWTH_MAX = 1.03
SUBMIT = b'POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: 16\r\n\r\n{"type":"email"}'
STATUS = b"GET /tasks/status?id=a HTTP/1.1\r\nHost: localhost\r\n%b\r\n"


def calls_of(request: bytes, *, with_token: bool) -> int:
    """Of Python and C, by a request whose like was served before."""
    world = World(fast_path=True)
    world.submit(id="a")
    line = b""
    if with_token:
        line = b"Authorization: Bearer %b\r\n" % world.tokens.make(Role.SUBMIT, Role.READ).encode()
        world.clock.advance(1)
    connection = world.connect()
    counted = before = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    for _ in range(3):
        connection.transport.clear()
        before = counted
        sys.setprofile(count)
        try:
            connection.send(request % line)
        finally:
            sys.setprofile(None)
        assert b"HTTP/1.1 20" in connection.received
    world.close()
    return counted - before


@pytest.mark.parametrize("request_", [SUBMIT, STATUS], ids=["submit", "status"])
def test_calls(request_: bytes) -> None:
    without, with_token = (calls_of(request_, with_token=shown) for shown in (False, True))
    print(f"\n{without} calls without, {with_token} with")
    assert without > 50
    assert with_token <= without + CALLS_MORE_MAX


@needs_callgrind
@pytest.mark.slow
@pytest.mark.parametrize("what", ["submit", pytest.param("status", marks=pytest.mark.long)])
def test_instructions(what: str) -> None:
    without, with_token = (measuring.measure(part) for part in (f"request, {what}", f"request, {what}, with a token"))
    print(f"\n{what}: {without:,.0f} instructions, {with_token:,.0f} with a token")
    assert with_token < without * GROWTH_MAX
