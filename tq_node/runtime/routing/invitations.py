"""What a member tells nodes that would join: the secret on loopback, or where the peers are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from tq_node.errors import Denied, NotReady, Unauthorized
from tq_node.facade import Invitation, NotReadyReason
from tq_node.runtime.clock import Clock
from tq_node.runtime.join_proof import Challenges, is_proven
from tq_node.runtime.routing.node_state import NodeState


class Invitations:
    """See the module. ``not_ready``: why this node can't serve; it invites nobody then."""

    def __init__(self, state: NodeState, clock: Clock, not_ready: Callable[[], Sequence[NotReadyReason]]) -> None:
        self._state = state
        self._not_ready = not_ready
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
        return Invitation(self._state.map.cluster_id, secret.hex(), self._state.plane.membership.registration.peer)

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
        leader = self._state.plane.core.leader
        members = sorted(self._state.map.members(), key=lambda node: (node.node_id != leader, not node.is_up))
        return [node.peer for node in members if node.peer]

    def _check_ready(self) -> None:
        reasons = [reason for reason in self._not_ready() if reason.code != "not_active"]
        if reasons:
            raise NotReady(reasons[0].detail)
