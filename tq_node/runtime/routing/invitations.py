"""What a member tells nodes that would join: the secret on loopback or for an invitation, or where
the peers are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from tq_node import limits
from tq_node.cluster.commands import Order, PutInvitation, TakeInvitation
from tq_node.cluster.records import InvitationEntry
from tq_node.errors import Denied, NotReady, Unauthorized
from tq_node.facade import Invitation, NotReadyReason
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.registration import TableRefused
from tq_node.runtime.join_proof import Challenges, is_proven
from tq_node.runtime.routing.node_state import NodeState

_NO_INVITATION = "this invitation is unknown here, was used, or has expired: make another (tq-token invite)"


class Orders(Protocol):
    """``ClusterAdmin``, as it is used here."""

    def not_ready(self) -> Sequence[NotReadyReason]:
        """Why this node can't serve; it invites nobody then."""

    def order_everywhere(self, order: Order, by: str) -> Deferred[None]:
        """Have the map changed; fires once all nodes know."""


class Invitations:
    """See the module."""

    def __init__(self, state: NodeState, clock: Clock, orders: Orders) -> None:
        self._state = state
        self._clock = clock
        self._orders = orders
        self._challenges = Challenges(os.urandom, clock.reactor.seconds)

    def invite(self) -> Invitation:
        """See ``facade.TaskQueue.invite``."""
        self._check_ready()
        secret = self._state.settings.secret_for_joiners()
        if secret is None and self._state.plane.has_certificates:
            raise Denied(
                "this cluster uses certificates: give --peer-cert, --peer-key and --peer-ca to the node that joins"
            )
        if secret is None:
            raise Denied("the secret of this cluster is kept in a file: give --secret-file to the node that joins")
        return self._invitation(secret)

    def _invitation(self, secret: bytes | None, peers: Sequence[str] = ()) -> Invitation:
        own = self._state.plane.membership.registration.peer
        return Invitation(
            self._state.map.cluster_id,
            "" if secret is None else secret.hex(),
            own,
            [one for one in peers if one != own],
        )

    def put_invitation(self, hash_: bytes, by: str = "") -> Deferred[int]:
        """See ``facade.TaskQueue.put_invitation``."""
        now_us = self._clock.wall_us()
        entry = InvitationEntry(hash_, now_us + limits.INVITATION_S * 1_000_000, by)
        return self._orders.order_everywhere(PutInvitation(entry, now_us), by).addCallback(lambda _: entry.expires_us)

    def take_invitation(self, hash_: bytes) -> Deferred[Invitation]:
        """See ``facade.TaskQueue.take_invitation``."""
        return Deferred.fromCoroutine(self._taken(hash_))

    async def _taken(self, hash_: bytes) -> Invitation:
        now_us = self._clock.wall_us()
        # What this node doesn't know costs no entry: whoever guesses has no right to the log.
        if not any(one.hash == hash_ and one.expires_us > now_us for one in self._state.map.invitations):
            raise Unauthorized(_NO_INVITATION, reason="invitation")
        self._check_ready()
        try:
            await self._state.plane.membership.propose(TakeInvitation(hash_, now_us))
        except TableRefused:
            raise Unauthorized(_NO_INVITATION, reason="invitation") from None
        return self._invitation(self._state.plane.local.secret, self._peers())

    def challenge(self) -> str:
        """See ``facade.TaskQueue.challenge``."""
        return self._challenges.make().hex() if self._state.plane.local.secrets else ""

    def peers_for(self, challenge: bytes, proof: bytes) -> Sequence[str]:
        """See ``facade.TaskQueue.peers_for``."""
        if not self._challenges.is_valid(challenge):
            raise Unauthorized("the challenge is not this node's, or too old: ask for another", reason="challenge")
        if not is_proven(self._state.plane.local.secrets, challenge, proof):
            raise Unauthorized("the cluster secret differs (--secret-file)", reason="secret")
        self._check_ready()
        return self._peers()

    def _peers(self) -> list[str]:
        """Of all members, the leader first."""
        leader = self._state.plane.core.leader
        members = sorted(self._state.map.members(), key=lambda node: (node.node_id != leader, not node.is_up))
        return [node.peer for node in members if node.peer]

    def _check_ready(self) -> None:
        reasons = [reason for reason in self._orders.not_ready() if reason.code != "not_active"]
        if reasons:
            raise NotReady(reasons[0].detail)
