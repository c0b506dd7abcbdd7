"""Errors of the wire, and how every error crosses it: a stable code, a sentence, a few fields.

A refusal is definite: not done. Other outcomes are unknown (``definite`` False), also that of a bug
of the peer, which may have struck after the effect."""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from tq_node import errors
from tq_node.errors import FieldError, TaskQueueError
from tq_node.wire import bounds


class PeerUnreachable(TaskQueueError):
    """There is no connection to the peer: nothing was sent."""

    status, code, title, retryable = 503, "peer_unreachable", "Peer not connected", True


class Internal(TaskQueueError):
    """The peer's responder failed with an undeclared error; the call may have been carried out."""

    status, code, title, definite = 500, "internal", "The peer failed", False


class WireRefusal(TaskQueueError):
    """Base of a peer's refusals. ``closes``: the connection ends with it."""

    status, code, title = 502, "wire_refused", "Refused by a peer"
    closes: ClassVar[bool] = False
    is_ordinary: ClassVar[bool] = False
    """Also occurs where nothing is wrong, so it is logged as information."""


class MalformedBox(WireRefusal):
    """A box, an argument or a body has a wrong form."""

    code, title = "malformed_box", "Malformed box"


class SpeaksHttp(WireRefusal):
    """An HTTP request came to the peer port, as of a joiner that does not know which port it is."""

    code, title, closes, is_ordinary = "speaks_http", "An HTTP request at the peer port", True, True


class UnknownCommand(WireRefusal):
    code, title = "unknown_command", "Unknown command"


class UnknownSecret(WireRefusal):
    """An open connection can't be proven anew: the listener has not been given that secret."""

    code, title = "unknown_secret", "Secret not known here"


class AnswerTooLarge(WireRefusal):
    """The call was carried out, but its answer is longer than the wire carries."""

    code, title, definite = "answer_too_large", "Answer too large", False


class HandshakeRefused(WireRefusal):
    """The connection was refused before any call."""

    code, title, closes = "handshake_refused", "Handshake refused", True
    is_final: ClassVar[bool] = False
    """The refused node stops for good; so it accepts the refusal only with a ``proof``."""
    proof = b""
    """The listener's, over code and introductions; empty until the dialler has proven itself."""


class WrongCluster(HandshakeRefused):
    code, title = "wrong_cluster", "Another cluster"


class WrongSecret(HandshakeRefused):
    code, title = "wrong_secret", "Wrong cluster secret"


class WrongNode(HandshakeRefused):
    """Another node listens at this address, or the box was meant for another node."""

    code, title = "wrong_node", "Another node"


class WrongCertificate(HandshakeRefused):
    """The certificate does not carry the name that the node gives itself."""

    code, title = "wrong_certificate", "Wrong certificate"


class StaleSession(HandshakeRefused):
    """A newer run or registration is known: a late connection, or a copied directory (F14, F42)."""

    code, title, is_final = "stale_session", "A newer session of this node is known", True


class Removed(HandshakeRefused):
    code, title, is_final = "removed", "Node was removed from the cluster", True


class Unproven(HandshakeRefused):
    """A refusal that is final came without proof of membership, perhaps from an impostor."""

    code, title = "unproven", "A refusal without proof"


class Starting(HandshakeRefused):
    """The listener does not know its members yet, as in every restart."""

    code, title, retryable, is_ordinary = "starting", "The node is starting", True, True


class EarlierRun(HandshakeRefused):
    """An earlier run is still connected; if that turns out to live, ``StaleSession`` (F14)."""

    code, title, retryable, is_ordinary = "earlier_run", "An earlier run of this node is still connected", True, True


class NotAMember(HandshakeRefused):
    """The listener belongs to no cluster yet."""

    code, title, retryable = "not_a_member", "Not yet in a cluster", True


class NoCommonProtocol(HandshakeRefused):
    code, title = "no_common_protocol", "No protocol version in common"


class OutOfOrder(HandshakeRefused):
    code, title = "out_of_order", "Not what comes next in the handshake"


# --- reasons why a connection ends; never sent ---
class BoxTooLarge(WireRefusal):
    """More bytes or keys than the bound of this stage (F33)."""

    code, title, closes = "box_too_large", "Box too large", True


class TooSlow(WireRefusal):
    """Authentication, a sign of life or an answer did not come in time (F35)."""

    code, title, closes = "too_slow", "Too slow", True


class Crowded(WireRefusal):
    """Closed to make room for another connection."""

    code, title, closes = "crowded", "Too many connections", True


class Superseded(WireRefusal):
    """A newer connection or session of the same node took this one's place (F42)."""

    code, title, closes = "superseded", "A newer connection took its place", True


class Unread(WireRefusal):
    """The peer does not read the answers to its calls."""

    code, title, closes = "unread", "The peer does not read", True


class Stopped(WireRefusal):
    code, title, closes, is_ordinary = "stopped", "Closed from this side", True, True


def _codes() -> dict[type[TaskQueueError], str]:
    """Codes of all errors that may be sent; any other error is a bug to its receiver."""
    found = [*vars(errors).values(), *globals().values()]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, TaskQueueError)]
    codes = {kind: kind.code for kind in kinds if kind not in (TaskQueueError, FieldError)}
    codes[errors.NoSuchNode] = "no_such_node"  # HTTP says ``not_found`` of five things
    codes[errors.NoSuchPartition] = "no_such_partition"
    codes[errors.NoSuchToken] = "no_such_token"
    codes[errors.NoSuchType] = "no_such_type"
    return codes


CODE_OF = _codes()
KIND_OF = {code: kind for kind, code in CODE_OF.items()}
assert len(CODE_OF) == len(KIND_OF), "two errors share a code"


class ErrorBody(msgspec.Struct, frozen=True, array_like=True):
    """Fields of an error besides its code; new ones are appended with a default."""

    detail: str
    task_id: str | None = None
    retry_after_s: float | None = None
    field: str | None = None
    definite: bool = True
    proof: bytes = b""


UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What msgspec raises for bytes that are no value; ``ValueError`` for some that are not UTF-8."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ErrorBody).decode


def declared_code(error: BaseException) -> str | None:
    """The code that an error is sent under, its class's or nearest declared base's; None: a bug."""
    return next((CODE_OF[kind] for kind in type(error).__mro__ if kind in CODE_OF), None)


def encode_error(error: TaskQueueError) -> bytes:
    field = getattr(error, "field", None)
    return _encode(
        ErrorBody(
            error.detail[: bounds.DETAIL_CHARS_MAX],
            error.task_id,
            error.retry_after_s,
            field if isinstance(field, str) else None,
            error.definite,
            error.proof if isinstance(error, HandshakeRefused) else b"",
        )
    )


def decode_error(code: str, body: bytes) -> TaskQueueError:
    """Rebuild the error that the peer raised; raises ``MalformedBox`` if it can't be read.
    An unknown code becomes ``WireRefusal`` if the peer says definite, else ``Internal``."""
    try:
        said = _decode(body)
    except UNREADABLE as why:
        raise MalformedBox(f"an error's body: {why}") from None
    retry_after_s = said.retry_after_s
    if retry_after_s is not None and not (math.isfinite(retry_after_s) and retry_after_s >= 0):
        retry_after_s = None
    detail = said.detail[: bounds.DETAIL_CHARS_MAX]
    kind = KIND_OF.get(code, WireRefusal if said.definite else Internal)
    if issubclass(kind, FieldError):
        return kind(detail, field=said.field or "", task_id=said.task_id)
    error = kind(detail, task_id=said.task_id, retry_after_s=retry_after_s)
    if said.proof and isinstance(error, HandshakeRefused):
        error.proof = said.proof
    return error
