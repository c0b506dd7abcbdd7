"""What peers say to each other. Each command: its fields with their bounds, what answers it, and
the lane it belongs to.

Bodies named ``body``, ``messages``, ``calls`` and ``results`` are opaque here:
``tq_node.wire.codec`` knows what is in them. Times in milliseconds, sizes in bytes. Every error of
``failures.CODE_OF`` may answer any of them.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar

from twisted.protocols.amp import AmpBox, Argument, Command

from tq_node.wire import bounds
from tq_node.wire.arguments import Blob, Flag, Number, Octets, Word
from tq_node.wire.errors import CODE_OF

Arguments = list[tuple[bytes, Argument]]


class Lane(enum.StrEnum):
    """One connection to a peer for one purpose, so that a megabyte in one never holds up a
    heartbeat in the other (F36)."""

    CONSENSUS = "consensus"
    BULK = "bulk"


class NewBox(AmpBox):
    """One that does not look at each key, for there is none yet."""

    __init__ = dict.__init__


class PeerCommand(Command):
    errors: ClassVar[dict[type[Exception], bytes]] = {kind: code.encode() for kind, code in CODE_OF.items()}
    commandType = responseType = NewBox
    lanes: ClassVar[frozenset[Lane]] = frozenset()
    """Where it is served. Empty: only before authentication."""
    is_timed: ClassVar[bool] = False
    """Carries ``within_ms``: the peer answers within it, be it that the outcome is not known."""

    @classmethod
    def makeArguments(cls, objects: dict[str, Any], proto: Any) -> Any:
        """What AMP's own does, without making identifiers of all names for each box; whatever is
        odd is left to that."""
        if len(objects) != len(cls.arguments):
            return super().makeArguments(objects, proto)
        box = NewBox()
        for name, argument in cls.arguments:
            argument.toBox(name, box, objects, proto)
        return box

    @classmethod
    def parseArguments(cls, box: AmpBox, protocol: Any) -> dict[str, Any]:
        """What AMP's own does, without a copy of the box: no argument of ours takes anything out of it."""
        objects: dict[str, Any] = {}
        for name, argument in cls.arguments:
            argument.fromBox(name, box, objects, protocol)
        return objects


_CONSENSUS = frozenset({Lane.CONSENSUS})
_BULK = frozenset({Lane.BULK})
_BOTH = _CONSENSUS | _BULK
_WITHIN: tuple[bytes, Argument] = (b"within_ms", Number(round(bounds.CALL_S_MAX * 1000)))


# --- before authentication ---
class Greet(PeerCommand):
    """The dialler's first box: who it is looking for, and in which cluster. Nothing is proven yet
    (birth guard, F15a).

    ``cluster`` is empty for a node that has not joined; ``name`` is empty where only the address is
    known. Answered with the listener's own cluster and name; ``newborn``: it founded that cluster
    by itself and is not ready yet.
    """

    arguments: ClassVar[Arguments] = [
        (b"cluster", Word(least=0)),
        (b"name", Word(least=0)),
        (b"address", Word(bounds.ADDRESS_CHARS_MAX, least=0)),
        (b"dialler", Word()),
    ]
    response: ClassVar[Arguments] = [
        (b"cluster", Word(least=0)),
        (b"name", Word()),
        (b"newborn", Flag()),
        (b"has_tasks", Flag()),
    ]


class Hello(PeerCommand):
    """Who the dialler is; answered with who the listener is. Both are encoded
    ``handshake.Introduction``s. Refused as ``wrong_cluster``, ``wrong_node``,
    ``no_common_protocol``, ``not_a_member``."""

    arguments: ClassVar[Arguments] = [(b"hello", Blob(bounds.HELLO_BYTES_MAX))]
    response: ClassVar[Arguments] = [(b"hello", Blob(bounds.HELLO_BYTES_MAX))]


class Prove(PeerCommand):
    """The dialler's proof that it knows the cluster's secret; answered with the listener's. Then
    the connection is open. Refused as ``wrong_secret``, ``wrong_certificate``, ``stale_session``,
    ``removed``."""

    arguments: ClassVar[Arguments] = [(b"proof", Octets(bounds.PROOF_BYTES))]
    response: ClassVar[Arguments] = [(b"proof", Octets(bounds.PROOF_BYTES))]


# --- either lane ---
class Ping(PeerCommand):
    """The connection is alive. Each side says its session (0: not registered), which may have risen
    since the handshake."""

    lanes = _BOTH
    arguments: ClassVar[Arguments] = [(b"session", Number())]
    response: ClassVar[Arguments] = [(b"session", Number())]


# --- consensus ---
class Raft(PeerCommand):
    """A batch of consensus messages. Wants no answer: consensus sends again by itself."""

    lanes = _CONSENSUS
    requiresAnswer = False
    arguments: ClassVar[Arguments] = [(b"messages", Blob())]


class Confirm(PeerCommand):
    """Who stands behind whom as primary: a ping of the partitions' layer, or its answer. Small, and
    never behind bulk (F36)."""

    lanes = _CONSENSUS
    requiresAnswer = False
    arguments: ClassVar[Arguments] = [(b"body", Blob(bounds.ASK_BYTES_MAX))]


class ToController(PeerCommand):
    """A call to the Raft leader; both bodies belong to ``runtime``. Others refuse it as ``no_controller``."""

    lanes = _CONSENSUS
    is_timed = True
    arguments: ClassVar[Arguments] = [(b"body", Blob(bounds.ASK_BYTES_MAX)), _WITHIN]
    response: ClassVar[Arguments] = [(b"body", Blob(bounds.ASK_BYTES_MAX))]


class Register(ToController):
    """A node's run is made known; the answer holds its session."""


class Heartbeat(ToController):
    """A node lives, and how it is (R5)."""


class Evidence(ToController):
    """A node's connection broke and its port refused twice (R5a)."""


class Propose(ToController):
    """A command for the metadata log."""


# --- bulk ---
class Forward(PeerCommand):
    """Calls for partitions of which the peer is primary, many in one box: lists of
    ``codec.ForwardedCall`` and, in the same order, ``codec.ForwardedResult``. The answer may be up
    to ``bounds.ANSWER_BYTES_MAX`` and then comes in several boxes."""

    lanes = _BULK
    is_timed = True
    arguments: ClassVar[Arguments] = [(b"calls", Blob()), _WITHIN]
    response: ClassVar[Arguments] = [(b"results", Blob(bounds.ANSWER_BYTES_MAX))]


class Data(PeerCommand):
    """A batch of the partitions' streams. Wants no answer: acknowledgements are messages of their own (R16)."""

    lanes = _BULK
    requiresAnswer = False
    arguments: ClassVar[Arguments] = [(b"body", Blob())]
