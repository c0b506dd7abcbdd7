"""What a message of a peer may say at all. Nothing in it is believed before it has passed here.

A term that was taken up is never given back, a log that begins at 2**62 is never appended to again,
and an entry that can't be read is met again at each start. So whatever is absurd is refused before
it changes anything, and the sender answers for it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tq_node.errors import Unsound
from tq_node.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    SnapshotChunk,
    SnapshotReply,
    Vote,
    decode_change,
)
from tq_node.raft.settings import NUMBER_MAX
from tq_node.raft.state import NodeState

MEMBERS_MAX = 4_096
ID_CHARS_MAX = 64


def check(state: NodeState, message: Message) -> None:
    """Raises ``Unsound`` for a message that no node sends that keeps to the protocol."""
    term = message.term
    if not 0 <= term <= NUMBER_MAX or term - state.term > state.settings.jump_max:
        raise Unsound(f"term {term}, far from the present {state.term}")
    further = _CHECKS.get(type(message))
    if further is not None:
        further(state, message)


def _check_index(state: NodeState, log_index: int) -> None:
    if not 0 <= log_index <= NUMBER_MAX or log_index - state.log.last_index > state.settings.jump_max:
        raise Unsound(f"position {log_index}, far from the log's end at {state.log.last_index}")


def _check_count(number: int) -> None:
    if not 0 <= number <= NUMBER_MAX:
        raise Unsound(f"the number {number}")


def _check_term_of(message: Message, term: int) -> None:
    """Nobody's log holds an entry of a term that is yet to come."""
    if not 0 <= term <= message.term:
        raise Unsound(f"an entry of term {term} in a message of term {message.term}")


def _check_configuration(configuration: Configuration) -> None:
    voters, learners = configuration.voters, configuration.learners
    members = {*voters, *learners}
    if not voters or len(members) != len(voters) + len(learners) or len(members) > MEMBERS_MAX:
        raise Unsound("a configuration that can't be one")
    if not all(0 < len(node) <= ID_CHARS_MAX for node in members):
        raise Unsound("a configuration with a member that can't be one")


def _vote(state: NodeState, message: Vote) -> None:
    _check_index(state, message.last_log_index)
    _check_count(message.last_log_term)


def _append(state: NodeState, message: Append) -> None:
    """Its entries follow the one that it names, one by one, and their terms never fall."""
    log_index, term = message.prev_log_index, message.prev_log_term
    _check_index(state, log_index)
    _check_index(state, message.commit_index)
    _check_term_of(message, term)
    for entry in message.entries:
        log_index += 1
        if entry.log_index != log_index or entry.term < term:
            raise Unsound(f"entry {entry.log_index} of term {entry.term} where {log_index} was to come")
        term = entry.term
        if entry.kind is EntryKind.CONFIGURATION:
            try:
                _check_configuration(decode_change(entry).configuration)
            except (msgspec.DecodeError, ValueError, RecursionError) as why:
                raise Unsound(f"entry {log_index} is no change of the configuration: {why}") from None
    _check_term_of(message, term)


def _append_reply(state: NodeState, message: AppendReply) -> None:
    _check_index(state, message.log_index)
    _check_index(state, message.hint_index)
    _check_count(message.hint_term)


def _heartbeat(state: NodeState, message: Heartbeat) -> None:
    _check_index(state, message.commit_index)
    _check_count(message.round)


def _heartbeat_reply(state: NodeState, message: HeartbeatReply) -> None:
    _check_count(message.round)


def _snapshot_chunk(state: NodeState, message: SnapshotChunk) -> None:
    _check_index(state, message.log_index)
    _check_term_of(message, message.log_term)
    _check_configuration(message.configuration)
    if not 0 <= message.configuration_index <= message.log_index or message.log_index < 1:
        raise Unsound(f"a snapshot of {message.log_index} with the configuration of {message.configuration_index}")
    if not 0 <= message.offset <= message.offset + len(message.data) <= message.total_bytes:
        raise Unsound(f"{len(message.data)} bytes from {message.offset} on of {message.total_bytes}")


def _snapshot_reply(state: NodeState, message: SnapshotReply) -> None:
    _check_index(state, message.log_index)
    _check_count(message.offset)


def _read_request(state: NodeState, message: ReadRequest) -> None:
    if not 0 <= message.read_id < 1 << 64:
        raise Unsound(f"the read {message.read_id}")


def _read_reply(state: NodeState, message: ReadReply) -> None:
    if message.log_index is not None:
        _check_index(state, message.log_index)


_CHECKS: dict[type[Message], Callable[[NodeState, Any], None]] = {
    Vote: _vote,
    Append: _append,
    AppendReply: _append_reply,
    Heartbeat: _heartbeat,
    HeartbeatReply: _heartbeat_reply,
    SnapshotChunk: _snapshot_chunk,
    SnapshotReply: _snapshot_reply,
    ReadRequest: _read_request,
    ReadReply: _read_reply,
}
