"""Somebody who knows the cluster's secret and keeps to no protocol: dials a node as whoever it says it is."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from tq_node.raft.messages import Message
from tq_node.types import NodeId, NodeName
from tq_node.wire.codec import encode_messages
from tq_node.wire.commands import Lane, Raft
from tq_node.wire.dialled import DialledPeer, Target
from tq_node.wire.dialling import Dialling
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.handshake import LocalIdentity, Sessions

the_reactor: Any = reactor


class Intruder:
    """:param name, node_id: whom it says to be."""

    def __init__(self, cluster: str, secret: bytes, name: str, node_id: str, *, incarnation: int = 1) -> None:
        self.local = LocalIdentity(
            node_id=NodeId(node_id),
            name=NodeName(name),
            incarnation=incarnation,
            cluster=cluster,
            secret=secret,
        )
        self._dialling = Dialling(
            the_reactor,
            self.local,
            Sessions(),
            lambda address, s: client_endpoint(the_reactor, address, s),
            None,
            os.urandom,
        )

    async def dial(self, address: str, lane: Lane) -> DialledPeer:
        """:raises WireRefusal: it is not let in."""
        return await self._dialling.open(Target(address), lane)

    def raft(self, connection: DialledPeer, *messages: Message) -> None:
        """Consensus messages, from whomever they name, to whomever they name."""
        for body, _ in encode_messages(messages):
            assert connection.tell(Raft, messages=body)

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._dialling.close_all())
