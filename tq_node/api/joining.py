"""``POST /cluster/join`` for nodes that would join, and ``/cluster/invite`` for operators."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import errors, limits
from tq_node.api.access.access import Access
from tq_node.api.http.local_only import require_loopback
from tq_node.api.http.request import ApiRequest
from tq_node.api.problems import JoinDenied, PeerUnreachable
from tq_node.api.query import NoParameters, read_query
from tq_node.api.responses import time_text
from tq_node.api.routes import Answer, Route
from tq_node.facade import CHALLENGE_BYTES, INVITATION_SCHEME, JOIN_SCHEME, PROOF_BYTES, Invitation, TaskQueue
from tq_node.tokens import SECRET_BYTES, encode, hash_of, is_well_formed

_CHANGE_ERRORS = (errors.NotReady, errors.Draining, errors.NoController, PeerUnreachable, errors.OutcomeUnknown)
_encode = msgspec.json.Encoder().encode
_PROOF_FORM = f'{JOIN_SCHEME} challenge="...", proof="..."'
_proof = re.compile(
    JOIN_SCHEME.encode()
    + rb' challenge="([0-9a-f]{%d})", proof="([0-9a-f]{%d})"' % (2 * CHALLENGE_BYTES, 2 * PROOF_BYTES)
).fullmatch


class JoinAnswer(msgspec.Struct, omit_defaults=True):
    """To join: the ``secret`` in hexadecimal, and the ``peer`` (``HOST:PORT``) to register at; or,
    for whoever has proven the secret, the ``peers`` alone, the leader first."""

    success: bool
    cluster_id: str = ""
    secret: str = ""
    peer: str = ""
    peers: Sequence[str] = ()

    def __repr__(self) -> str:
        """Excludes the secret: this could end up in a log."""
        return f"JoinAnswer({self.cluster_id!r}, peer={self.peer!r})"


class InvitedAnswer(msgspec.Struct):
    """``invitation`` is told here and nowhere else."""

    success: bool
    invitation: str
    expires_at: str

    def __repr__(self) -> str:
        """Excludes the invitation: this could end up in a log."""
        return f"InvitedAnswer(expires_at={self.expires_at!r})"


class JoinRoutes:
    """How nodes come in. ``random_bytes``: of invitations."""

    def __init__(self, queue: TaskQueue, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._queue = queue
        self._random_bytes = random_bytes

    def join(self, request: ApiRequest) -> Deferred[None] | None:
        """Hand the secret over on loopback, or for an invitation; tell who proves to know it where
        the peers are."""
        shown = request.getHeader(b"authorization") or b""
        if shown.startswith(JOIN_SCHEME.encode()):
            return self._tell_peers(request, shown)
        if shown.startswith(INVITATION_SCHEME.encode()):
            return self._let_in(request, shown)
        # Before anything else of an unauthorized request is read.
        try:
            require_loopback(request)
            read_query(request, NoParameters)
            invitation = self._queue.invite()
        except errors.Denied as why:
            challenge = self._queue.challenge()
            raise JoinDenied(why.detail, challenge) if challenge else why from None
        _answer_invitation(invitation, request)
        return None

    def _tell_peers(self, request: ApiRequest, shown: bytes) -> Deferred[None] | None:
        """Refusals come at the pace of those of wrong tokens."""
        try:
            match = _proof(shown)
            if match is None:
                raise errors.Unauthorized(f"not of the form {_PROOF_FORM}", reason="malformed")
            read_query(request, NoParameters)
            peers = self._queue.peers_for(bytes.fromhex(match[1].decode()), bytes.fromhex(match[2].decode()))
        except errors.Unauthorized as why:
            return _refused(request, why)
        request.answer(200, _encode(JoinAnswer(True, peers=peers)))
        return None

    def _let_in(self, request: ApiRequest, shown: bytes) -> Deferred[None]:
        """Use an invitation up. What is none costs no entry in the cluster's log."""
        scheme, _, invitation = shown.decode("latin-1").partition(" ")
        if scheme != INVITATION_SCHEME or not is_well_formed(invitation):
            return _refused(request, errors.Unauthorized("this is no invitation", reason="malformed"))
        read_query(request, NoParameters)

        def failed(why: Failure) -> Failure | Deferred[None]:
            return _refused(request, why.value) if isinstance(why.value, errors.Unauthorized) else why

        request.changed = ("invitation",)
        return self._queue.take_invitation(hash_of(invitation)).addCallbacks(
            _answer_invitation, failed, callbackArgs=(request,)
        )

    def invite(self, request: ApiRequest) -> Deferred[None]:
        """Make an invitation for one node."""
        read_query(request, NoParameters)
        invitation = encode(self._random_bytes(SECRET_BYTES))

        def answer(expires_us: int) -> None:
            request.answer(200, _encode(InvitedAnswer(True, invitation, time_text(expires_us))))

        request.changed = ("invitation",)
        return self._queue.put_invitation(hash_of(invitation), request.caller.name).addCallback(answer)

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/cluster/join",
                Access.OPEN,
                self.join,
                "Hand the secret to a node on this machine, or an invited one; tell who proves it where the peers are",
                {200: Answer("what a node needs to know to join", JoinAnswer)},
                errors=(errors.Denied, errors.Unauthorized, *_CHANGE_ERRORS),
                headers={"Authorization": {"type": "string", "description": f"`{_PROOF_FORM}`, both in hexadecimal"}},
            ),
            Route(
                "POST",
                "/cluster/invite",
                Access.ADMIN,
                self.invite,
                f"Make an invitation for one node, good for {limits.INVITATION_S // 60} minutes",
                {200: Answer("the invitation, told once", InvitedAnswer)},
                errors=(errors.ClusterRefused, errors.Upgrading, *_CHANGE_ERRORS),
            ),
        ]


def _answer_invitation(invitation: Invitation, request: ApiRequest) -> None:
    answer = JoinAnswer(True, invitation.cluster_id, invitation.secret, invitation.peer, invitation.peers)
    request.answer(200, _encode(answer))


def _refused(request: ApiRequest, why: errors.Unauthorized) -> Deferred[None]:
    """Answer at the pace of refusals of wrong tokens."""
    refused: Deferred[None] = Deferred()
    request.server.refused_callers.refuse(lambda: None if refused.called else refused.errback(why))
    return refused
