"""The AMP commands between peers: fields with their bounds, answers, and lanes.

``tq_node.wire.codec`` knows the content of ``body``, ``messages``, ``calls`` and ``results``. Times
in milliseconds, sizes in bytes. Every error of ``errors.CODE_OF`` may answer any command."""

from __future__ import annotations

import enum
from typing import Any, ClassVar

from twisted.protocols.amp import AmpBox, Argument, Command

from tq_node.wire import bounds
from tq_node.wire.arguments import Blob, Flag, Number, Octets, Word
from tq_node.wire.errors import CODE_OF

Arguments = list[tuple[bytes, Argument]]


class Lane(enum.StrEnum):
    """A connection to a peer for one purpose: a megabyte in one delays no ping in another (F36)."""

    CONSENSUS = "consensus"
    BULK = "bulk"


class NewBox(AmpBox):
    """A box that is made empty, without AMP's check of each key."""

    __init__ = dict.__init__


class PeerCommand(Command):
    errors: ClassVar[dict[type[Exception], bytes]] = {kind: code.encode() for kind, code in CODE_OF.items()}
    commandType = responseType = NewBox
    lanes: ClassVar[frozenset[Lane]] = frozenset()
    """Lanes that serve the command; empty: only before authentication."""
    is_timed: ClassVar[bool] = False
    """The command carries ``within_ms``: the peer answers by then, if only "outcome unknown"."""

    @classmethod
    def makeArguments(cls, objects: dict[str, Any], proto: Any) -> Any:
        """As AMP's, but no identifiers of all names for each box; an odd number is left to AMP."""
        if len(objects) != len(cls.arguments):
            return super().makeArguments(objects, proto)
        box = NewBox()
        for name, argument in cls.arguments:
            argument.toBox(name, box, objects, proto)
        return box

    @classmethod
    def parseArguments(cls, box: AmpBox, protocol: Any) -> dict[str, Any]:
        """As AMP's, without a copy of the box: no argument of ours takes anything out of it."""
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
    """The dialler's first box, unproven: the node and cluster it looks for (birth guard, F15a).

    ``cluster`` is empty for a node that has not joined, ``name`` where only the address is known.
    The answer has the listener's own; ``newborn``: it founded that cluster and is not ready yet."""

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
    """The dialler's encoded ``handshake.Introduction``; the answer is the listener's.
    Refused as ``wrong_cluster``, ``wrong_node``, ``no_common_protocol``, ``not_a_member``."""

    arguments: ClassVar[Arguments] = [(b"hello", Blob(bounds.HELLO_BYTES_MAX))]
    response: ClassVar[Arguments] = [(b"hello", Blob(bounds.HELLO_BYTES_MAX))]


class Prove(PeerCommand):
    """The dialler's proof that it knows the secret; the answer is the listener's; opens the lane.
    Refused as ``wrong_secret``, ``wrong_certificate``, ``stale_session``, ``removed``."""

    arguments: ClassVar[Arguments] = [(b"proof", Octets(bounds.PROOF_BYTES))]
    response: ClassVar[Arguments] = [(b"proof", Octets(bounds.PROOF_BYTES))]


# --- either lane ---
class Ping(PeerCommand):
    """A sign of life, with each side's session, which may have risen since; 0: not registered."""

    lanes = _BOTH
    arguments: ClassVar[Arguments] = [(b"session", Number())]
    response: ClassVar[Arguments] = [(b"session", Number())]


class Renew(PeerCommand):
    """Proves an open connection anew by a secret that has replaced the one it was opened with.
    Refused as ``unknown_secret``, which closes nothing."""

    lanes = _BOTH
    arguments: ClassVar[Arguments] = [(b"proof", Octets(bounds.PROOF_BYTES))]
    response: ClassVar[Arguments] = [(b"proof", Octets(bounds.PROOF_BYTES))]


# --- consensus ---
class Raft(PeerCommand):
    """A batch of Raft messages. Not answered: Raft sends again by itself."""

    lanes = _CONSENSUS
    requiresAnswer = False
    arguments: ClassVar[Arguments] = [(b"messages", Blob())]


class Confirm(PeerCommand):
    """A ping of the partitions' primaries, or its answer. Small, and never behind bulk (F36)."""

    lanes = _CONSENSUS
    requiresAnswer = False
    arguments: ClassVar[Arguments] = [(b"body", Blob(bounds.ASK_BYTES_MAX))]


class ToController(PeerCommand):
    """A call to the Raft leader; others answer ``no_controller``. ``runtime`` knows the bodies."""

    lanes = _CONSENSUS
    is_timed = True
    arguments: ClassVar[Arguments] = [(b"body", Blob(bounds.ASK_BYTES_MAX)), _WITHIN]
    response: ClassVar[Arguments] = [(b"body", Blob(bounds.ASK_BYTES_MAX))]


class Register(ToController):
    """A node registers its run; the answer has its session."""


class Heartbeat(ToController):
    """A node reports that it is alive, and its state (R5)."""


class Evidence(ToController):
    """A node reports that another's connection broke and its port refused twice (R5a)."""


class Propose(ToController):
    """A node proposes a command for the metadata log."""


# --- bulk ---
class Forward(PeerCommand):
    """Calls for partitions that the peer leads: a list of ``codec.ForwardedCall``, answered by
    ``codec.ForwardedResult`` in the same order; a long answer comes in several boxes."""

    lanes = _BULK
    is_timed = True
    arguments: ClassVar[Arguments] = [(b"calls", Blob()), _WITHIN]
    response: ClassVar[Arguments] = [(b"results", Blob(bounds.ANSWER_BYTES_MAX))]


class Data(PeerCommand):
    """A batch of the partitions' streams. Not answered: acknowledgements are messages too (R16)."""

    lanes = _BULK
    requiresAnswer = False
    arguments: ClassVar[Arguments] = [(b"body", Blob())]
