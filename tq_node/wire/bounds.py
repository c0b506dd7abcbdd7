"""Bounds of the wire, their relations (replication.md section 12, F33-F38); names end in units."""

from __future__ import annotations

import msgspec

from tq_node.limits import ENTRY_BYTES_MAX, HELP_BYTES_MAX, HELP_CLAIMS_MAX, KIB, LIST_BYTES_MAX, MIB, PAYLOAD_BYTES_MAX

# --- before a peer has proven who it is ---
HANDSHAKE_BYTES_MAX = 4 * KIB
"""All bytes received on a connection before authentication, not only those of one box."""
HANDSHAKE_KEYS_MAX = 8
HANDSHAKE_S_MAX = 5.0
"""From the connection's first moment, a TLS handshake included, to the proof."""
UNAUTHENTICATED_MAX = 256
"""Unauthenticated connections of a listener; one more closes the oldest: honest ones need ms."""

# --- boxes ---
KEY_BYTES_MAX = 255
"""AMP's own bound."""
VALUE_BYTES_MAX = 60_000
"""Longer values are cut over numbered keys; AMP's own bound is 65,535."""
BOX_BYTES_MAX = 2 * MIB
BOX_KEYS_MAX = 64
BLOB_BYTES_MAX = BOX_BYTES_MAX - 64 * KIB
"""The longest value of an argument; the rest of the box is for the other keys."""
ANSWER_BYTES_MAX = 8 * MIB
"""A longer answer than a box comes as several boxes; this bounds their sum."""
ANSWER_PART_BYTES = 1 * MIB
TAG_BYTES_MAX = 16
DETAIL_CHARS_MAX = 500
"""What an error says to a person."""

# --- values ---
ID_CHARS_MAX = 64
"""Ids of nodes and clusters, names of nodes."""
ADDRESS_CHARS_MAX = 300
HELLO_BYTES_MAX = 1_000
NONCE_BYTES = 32
PROOF_BYTES = 32
SECRET_BYTES_MIN = 16
RAFT_BATCH_BYTES_MAX = 1 * MIB
"""Aim of one box of consensus messages; a single message may be as long as a blob."""
ASK_BYTES_MAX = 256 * KIB
"""Body of a call to the controller, and of its answer: both share the connection of consensus."""
FORWARD_CALLS_MAX = 10_000
FORWARD_BYTES_AIM = 256 * KIB

# --- one connection ---
CALLS_OUTSTANDING_MAX = 1_024
COMMANDS_UNDER_WAY_MAX = 1_024
"""Commands of the peer that a handler works on; one more is refused as busy."""
CONSENSUS_SEND_BYTES_MAX = 8 * MIB
BULK_SEND_BYTES_MAX = 32 * MIB
"""What may wait in a transport; past it calls are refused as busy and messages dropped."""
ANSWERS_READ_ON_BYTES_MAX = 1 * MIB
"""With more unsent answers than this a listener reads no further commands of the peer."""
ANSWERS_BYTES_MAX = 64 * MIB
"""With more unsent answers than this a listener gives the connection up."""
TURN_BYTES = 256 * KIB
"""With more than this written, the outbox looks again in the next turn of the reactor."""
LINGER_S = 1.0
"""How long a closed connection may take to flush what it wrote."""

# --- one listener ---
HELD_BYTES_MAX = 64 * MIB
"""Boxes of all peers on one lane that handlers work on; one more is refused as busy."""
ACCEPTED_MAX = 4_096
"""Authenticated connections: two lanes of 2,048 nodes."""
KNOWN_SESSIONS_MAX = 4_096

# --- time ---
PING_S = 0.5
PING_ANSWER_S_MAX = 3.0
BULK_PING_S = 2.0
BULK_PING_ANSWER_S_MAX = 10.0
EARLIER_RUN_S = 1.5
"""After this silence of a node's earlier run, still connected, a later one is let in (F14)."""
RENEW_S_MAX = 5.0
"""So long a peer may take to prove its connection anew, once its secret is accepted no more."""
IDLE_S_MAX = 15.0
"""A listener closes an authenticated connection that was silent for so long."""
CALL_S_DEFAULT = 10.0
CALL_S_MAX = 120.0
ANSWER_GRACE_S = 2.0
"""How long a caller waits past the deadline that it told the peer, before it hangs up."""
PAUSE_S = 0.5
"""A deadline found passed by more was not watched: the process slept, answers lie unread (F40)."""
CONNECT_S_MAX = 1.0
REDIAL_FIRST_S = 0.05
REDIAL_S_MAX = 0.5
"""A lost member is dialled again at least so often (birth guard, replication.md section 2)."""
BIRTH_GUARD_S = 2.0
"""A newborn cluster is not ready before so long without a greeting."""
BIRTH_GUARD_QUIET_S = 10.0
"""And not this soon after a greeting that proves nothing: a member may send it, or anybody."""
BIRTH_GUARD_GREETINGS = 3
"""From the node's own user so many are proof, each in another step of the wait: members redial."""
PROBE_APART_S = 0.055
"""Between the two dials that R5a wants refused 50 ms apart, counted in whole ms."""
PROBE_S_MAX = 0.5
REFUSALS_LOGGED_EVERY_S = 10.0

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1


class WireLimits(msgspec.Struct, frozen=True):
    """What one connection may hold at a stage of its life."""

    box_bytes_max: int
    box_keys_max: int
    stream_bytes_max: int | None
    """All bytes together; None: no bound but the box's."""


UNAUTHENTICATED = WireLimits(HANDSHAKE_BYTES_MAX, HANDSHAKE_KEYS_MAX, HANDSHAKE_BYTES_MAX)
PEER = WireLimits(BOX_BYTES_MAX, BOX_KEYS_MAX, None)

assert VALUE_BYTES_MAX <= 65_535, "a value fits into AMP's length prefix"
assert BLOB_BYTES_MAX // VALUE_BYTES_MAX + 10 < BOX_KEYS_MAX, (
    "the pieces of a blob fit into a box's keys, beside the other keys"
)
assert BLOB_BYTES_MAX + 64 * 300 < BOX_BYTES_MAX, "the longest blob fits into a box with its keys"
assert ENTRY_BYTES_MAX + 64 * KIB <= BLOB_BYTES_MAX, (
    "the longest log entry fits into a box, or writes would fail at send (F36)"
)
assert max(RAFT_BATCH_BYTES_MAX, ASK_BYTES_MAX) <= BLOB_BYTES_MAX
assert LIST_BYTES_MAX * 2 <= ANSWER_BYTES_MAX, "a page of tasks fits into an answer, its JSON and all"
assert ANSWER_PART_BYTES + VALUE_BYTES_MAX < BOX_BYTES_MAX
assert min(ANSWERS_BYTES_MAX, BULK_SEND_BYTES_MAX) > ANSWER_BYTES_MAX
assert min(CONSENSUS_SEND_BYTES_MAX, BULK_SEND_BYTES_MAX, HELD_BYTES_MAX) > BOX_BYTES_MAX, (
    "any box can be sent and taken at all"
)
assert CONNECT_S_MAX + REDIAL_S_MAX < BIRTH_GUARD_S, "a newborn is greeted before it takes itself for ready (F15a)"
assert BIRTH_GUARD_S <= BIRTH_GUARD_QUIET_S
assert PING_S + PING_ANSWER_S_MAX < IDLE_S_MAX
assert BULK_PING_S + 1.0 < RENEW_S_MAX, "a lane is proven anew before it is closed for its old secret"
assert 2 * PING_S < EARLIER_RUN_S < HANDSHAKE_S_MAX, (
    "a run that lives is heard before a later one is let in, or gives up"
)
assert BULK_PING_S + BULK_PING_ANSWER_S_MAX < IDLE_S_MAX, "a connection that is pinged is never idle"
assert HELP_BYTES_MAX + PAYLOAD_BYTES_MAX + HELP_CLAIMS_MAX * KIB <= ANSWER_BYTES_MAX // 2, (
    "claims for a helper fit well"
)
assert CALL_S_DEFAULT <= CALL_S_MAX
assert HANDSHAKE_BYTES_MAX > 2 * HELLO_BYTES_MAX + ADDRESS_CHARS_MAX + 500, "the three boxes of a handshake fit"
