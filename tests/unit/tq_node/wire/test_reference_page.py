"""docs/reference/peer-protocol.md says what the code does."""

from __future__ import annotations

import inspect

from tests.support.harness import PROJECT
from tq_node.limits import KIB, MIB
from tq_node.wire import bounds, commands
from tq_node.wire import errors as declared
from tq_node.wire.commands import PeerCommand, ToController
from tq_node.wire.handshake import _CONTEXT, DIALLER, LISTENER

PAGE = (PROJECT / "docs" / "reference" / "peer-protocol.md").read_text()
ROWS = {
    cells[0]: cells[1:] for line in PAGE.splitlines() if (cells := [c.strip() for c in line.strip("| ").split("|")])[1:]
}


def test_every_command_is_there_with_its_lane() -> None:
    for name, command in vars(commands).items():
        if (
            not inspect.isclass(command)
            or not issubclass(command, PeerCommand)
            or command in (PeerCommand, ToController)
        ):
            continue
        (row,) = (cells for key, cells in ROWS.items() if f"`{name}`" in key or (cells and cells[0] == f"`{name}`"))
        if command.lanes:
            assert row[0] == ("both" if len(command.lanes) == 2 else next(iter(command.lanes)).value)


def test_every_error_of_the_wire_is_there() -> None:
    ours = {kind.code for kind in vars(declared).values() if inspect.isclass(kind) and kind.__module__ == declared.__name__
            and hasattr(kind, "code")}  # fmt: skip
    assert not {code for code in ours if f"`{code}`" not in PAGE}


def test_the_numbers_are_the_code_s() -> None:
    assert ROWS["before authentication: bytes in all, keys of a box, time"][0] == (
        f"{bounds.HANDSHAKE_BYTES_MAX // KIB} KiB, {bounds.HANDSHAKE_KEYS_MAX}, {bounds.HANDSHAKE_S_MAX:g} s"
    )
    assert ROWS["connections that are not authenticated"][0] == str(bounds.UNAUTHENTICATED_MAX)
    assert ROWS["connections of peers"][0] == f"{bounds.ACCEPTED_MAX:,}"
    assert ROWS["box, keys of a box"][0] == f"{bounds.BOX_BYTES_MAX // MIB} MiB, {bounds.BOX_KEYS_MAX}"
    assert ROWS["answer in parts"][0] == f"{bounds.ANSWER_BYTES_MAX // MIB} MiB"
    assert ROWS["calls that wait for an answer, a connection"][0] == f"{bounds.CALLS_OUTSTANDING_MAX:,}"
    assert ROWS["unsent bytes, a connection"][0] == (
        f"consensus {bounds.CONSENSUS_SEND_BYTES_MAX // MIB} MiB, bulk {bounds.BULK_SEND_BYTES_MAX // MIB} MiB"
    )
    assert ROWS["commands under way, a connection"][0] == f"{bounds.COMMANDS_UNDER_WAY_MAX:,}"
    assert ROWS["bytes of commands under way, a lane of a node"][0] == f"{bounds.HELD_BYTES_MAX // MIB} MiB"
    assert ROWS["unsent answers, a connection"][0] == (
        f"{bounds.ANSWERS_READ_ON_BYTES_MAX // MIB} MiB, {bounds.ANSWERS_BYTES_MAX // MIB} MiB"
    )
    assert (
        ROWS["no answer to a ping"][0] == f"{bounds.PING_ANSWER_S_MAX:g} s (bulk {bounds.BULK_PING_ANSWER_S_MAX:g} s)"
    )
    assert ROWS["silence of a dialler"][0] == f"{bounds.IDLE_S_MAX:g} s"
    assert f"its deadline + {bounds.ANSWER_GRACE_S:g} s" in PAGE
    assert f"each {bounds.PING_S:g} s (bulk: {bounds.BULK_PING_S:g} s)" in PAGE
    assert f"longer than {bounds.VALUE_BYTES_MAX:,} bytes" in PAGE
    assert f"`body` ({bounds.ASK_BYTES_MAX // KIB} KiB at most)" in PAGE
    assert f"at most {bounds.REDIAL_S_MAX:g} s after" in PAGE
    assert f"takes {bounds.CONNECT_S_MAX:g} s at most" in PAGE


def test_the_proof_is_made_as_the_page_says() -> None:
    for word in (_CONTEXT, DIALLER, LISTENER):
        assert f"`{word.decode()}`" in PAGE
