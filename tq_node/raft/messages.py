"""The values of consensus: what is in the log, what nodes say to each other, and ``Ready``, what
the driver must do.

Everything here is frozen. ``term`` is Raft's election number, ``log_index`` a position in its log,
from 1. Sections in brackets are those of Ongaro's dissertation, "Consensus: Bridging Theory and
Practice"."""

from __future__ import annotations

import enum

import msgspec

from tq_node.types import NodeId

ENTRY_OVERHEAD_BYTES = 32
"""Counted for an entry besides its data, in every bound."""


class EntryKind(enum.IntEnum):
    """The numbers are part of the on-disk format."""

    DATA = 0
    NO_OP = 1
    """What a new leader writes, so that something of its own term can be counted (3.6.2, F2)."""
    CONFIGURATION = 2
    """``data`` is an encoded ``ConfigurationChange``; in effect from the append on (4.1)."""


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One position of the log. Equal (term, log_index): an equal entry, an equal log before it."""

    term: int
    log_index: int
    kind: EntryKind
    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data) + ENTRY_OVERHEAD_BYTES


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Voters and learners, sorted: equal sets are equal values. Empty before a node joined."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()

    @property
    def members(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self.voters + self.learners))


class ChangeKind(enum.IntEnum):
    """The four changes of one server; everything we need is a sequence of them."""

    ADD_LEARNER = 0
    PROMOTE = 1
    DEMOTE = 2
    REMOVE = 3


class Change(msgspec.Struct, frozen=True, array_like=True):
    kind: ChangeKind
    node: NodeId


class ConfigurationChange(msgspec.Struct, frozen=True, array_like=True):
    """What a CONFIGURATION entry holds: the *whole* new configuration, the change that led to it,
    and the proposer's words. ``context`` is opaque; it comes back to whoever applies the entry."""

    configuration: Configuration
    change: Change
    context: bytes = b""


_decode_change = msgspec.msgpack.Decoder(ConfigurationChange).decode
encode_change = msgspec.msgpack.Encoder().encode


def decode_change(entry: Entry) -> ConfigurationChange:
    """What a CONFIGURATION entry says; raises ``msgspec.DecodeError`` if it holds none."""
    assert entry.kind is EntryKind.CONFIGURATION
    return _decode_change(entry.data)


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must be durable before any message of this term leaves (3.8, F1)."""

    term: int = 0
    vote: NodeId | None = None


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The state after ``log_index``, the configuration there and its entry's index (4.1, 5.1)."""

    log_index: int = 0
    term: int = 0
    configuration: Configuration = Configuration()
    configuration_index: int = 0
    data: bytes = b""


class Persisted(msgspec.Struct, frozen=True):
    """What a node finds on its disk when it starts; a node that joins finds nothing."""

    hard_state: HardState = HardState()
    snapshot: Snapshot = Snapshot()
    entries: tuple[Entry, ...] = ()
    """See ``RaftLog``, as for ``applied_index``."""
    applied_index: int = 0


class Role(enum.IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class SoftState(msgspec.Struct, frozen=True):
    """Not durable; for the driver's decisions and people. ``leader``: None if unknown."""

    role: Role
    leader: NodeId | None
    term: int


class ReadState(msgspec.Struct, frozen=True):
    """Serve the read once ``log_index`` is applied; None: it could not be confirmed, ask anew."""

    read_id: int
    log_index: int | None


# --- what nodes say to each other ---
class Message(msgspec.Struct, frozen=True, array_like=True):
    """``term``: the sender's; in a pre-vote and its grant the one that would be (9.6)."""

    source: NodeId
    target: NodeId
    term: int


class Vote(Message, frozen=True, array_like=True, tag="vote"):
    """Asks for a vote (3.4); ``pre``: would it be given (9.6)? ``force``: leader's wish (3.10)."""

    last_log_index: int
    last_log_term: int
    pre: bool = False
    force: bool = False


class VoteReply(Message, frozen=True, array_like=True, tag="vote_reply"):
    granted: bool
    pre: bool = False


class Append(Message, frozen=True, array_like=True, tag="append"):
    """Entries after (``prev_log_index``, ``prev_log_term``), up to ``message_bytes_max`` (3.5)."""

    prev_log_index: int
    prev_log_term: int
    commit_index: int
    entries: tuple[Entry, ...] = ()


class AppendReply(Message, frozen=True, array_like=True, tag="append_reply"):
    """Accepted: everything up to ``log_index`` is durable and equal to the leader's.

    Rejected: ``log_index`` repeats the append's ``prev_log_index``; (``hint_index``, ``hint_term``)
    is the last position here that may still agree (3.5, the optimization at its end).

    ``lost``: the leader counts on ``log_index``, and it is not here; what is missing is wanted
    again, and nothing above the hint counts (``LostLog``). It comes with ``rejected``, which is all
    that a node of an earlier release sees of it."""

    log_index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0
    lost: bool = False


class Heartbeat(Message, frozen=True, array_like=True, tag="heartbeat"):
    """``round`` counts within the leader's term; one begun after a read came confirms it (6.4)."""

    commit_index: int
    round: int


class HeartbeatReply(Message, frozen=True, array_like=True, tag="heartbeat_reply"):
    round: int


class SnapshotChunk(Message, frozen=True, array_like=True, tag="snapshot_chunk"):
    """A piece of a snapshot: ``data`` begins at byte ``offset`` of ``total_bytes`` (chapter 5)."""

    log_index: int
    log_term: int
    configuration: Configuration
    configuration_index: int
    offset: int
    total_bytes: int
    data: bytes


class SnapshotReply(Message, frozen=True, array_like=True, tag="snapshot_reply"):
    """The follower has the snapshot of ``log_index`` up to ``offset`` and waits for more."""

    log_index: int
    offset: int


class TimeoutNow(Message, frozen=True, array_like=True, tag="timeout_now"):
    """The leader hands over: campaign at once (3.10)."""


class ReadRequest(Message, frozen=True, array_like=True, tag="read_request"):
    """A follower's or learner's ``read_index``, sent on to the leader."""

    read_id: int


class ReadReply(Message, frozen=True, array_like=True, tag="read_reply"):
    """``log_index`` None: the leader lost its place, or has too many reads waiting."""

    read_id: int
    log_index: int | None


AnyMessage = (
    Vote
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | SnapshotChunk
    | SnapshotReply
    | TimeoutNow
    | ReadRequest
    | ReadReply
)
"""For the wire's decoder: ``msgspec.msgpack.Decoder(AnyMessage)``."""


class Ready(msgspec.Struct, frozen=True):
    """What the driver must do, in this order; docs/explanation/raft.md draws it.

    1. Send ``messages`` at once.
    2. In ONE transaction, synced: ``hard_state`` if not None; ``snapshot`` if not None, which
       replaces the whole log; ``entries`` if any, which replace everything from the first one's
       index on. Writes of successive Readys reach the disk in order.
    3. Then ``RaftCore.persisted(number)``, and send ``messages_after_persist``, which also wait
       for the writes of all *earlier* Readys, even where this one has nothing to persist.
    4. Apply ``committed`` in order, each exactly once; it is durable here already. ``snapshot``,
       once durable, replaces the state machine: after this Ready's ``committed``, before any
       later one's."""

    number: int
    hard_state: HardState | None
    snapshot: Snapshot | None
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]
    messages_after_persist: tuple[Message, ...]
    committed: tuple[Entry, ...]
    read_states: tuple[ReadState, ...]
    soft_state: SoftState | None
    """Given when it changed."""

    @property
    def must_persist(self) -> bool:
        return self.hard_state is not None or self.snapshot is not None or bool(self.entries)
