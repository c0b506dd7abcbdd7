"""Somebody who knows the cluster's secret and keeps to no protocol: dials a node as whoever it says it is."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from tq_node.errors import TaskQueueError
from tq_node.raft.messages import Append, AppendReply, Entry, EntryKind, Heartbeat, Message, Vote
from tq_node.types import NodeId, NodeName
from tq_node.wire.authentication import TLS, Authentication
from tq_node.wire.codec import CALLS, ForwardedCall, encode_messages
from tq_node.wire.commands import Confirm, Data, Evidence, Forward, Lane, Propose, Raft, Register
from tq_node.wire.commands import Heartbeat as Beat
from tq_node.wire.connector import Connector, DialledPeer, Target
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.handshake import LocalIdentity, Sessions

the_reactor: Any = reactor


class Intruder:
    """:param name, node_id: whom it says to be."""

    def __init__(
        self,
        cluster: str,
        secret: bytes,
        name: str,
        node_id: str,
        *,
        incarnation: int = 1,
        tls: TLS | None = None,
    ) -> None:
        self.local = LocalIdentity(
            node_id=NodeId(node_id),
            name=NodeName(name),
            incarnation=incarnation,
            cluster=cluster,
            secret=secret,
        )
        self._dialling = Connector(
            the_reactor,
            Authentication(self.local, Sessions(), tls),
            lambda address, s: client_endpoint(the_reactor, address, s),
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


async def who_is_at(cluster: str, secret: bytes, address: str) -> str:
    """The node id and incarnation that a listener tells whoever knows the secret."""
    stranger = Intruder(cluster, secret, "mallory", "9" * 32)
    try:
        peer = (await stranger.dial(address, Lane.CONSENSUS)).peer
        assert peer is not None
        return f"{peer.node_id} {peer.incarnation}"
    finally:
        await stranger.stop()


async def say_everything(intruder: Intruder, address: str) -> list[str]:
    """The reproductions of A5 (b) to (e), one connection each. Returns the codes of the answers, in order."""

    told: list[str] = []
    garbage = b"\x01garbage"
    shutdown = CALLS.encode([ForwardedCall("shutdown", garbage), ForwardedCall("list", garbage)])
    asked: tuple[tuple[Lane, Any, dict[str, Any]], ...] = (
        (Lane.CONSENSUS, Register, {"body": garbage}),
        (Lane.CONSENSUS, Propose, {"body": garbage}),
        (Lane.CONSENSUS, Beat, {"body": garbage}),
        (Lane.CONSENSUS, Evidence, {"body": garbage}),
        (Lane.BULK, Forward, {"calls": shutdown}),
    )
    for lane, command, arguments in asked:
        connection = await intruder.dial(address, lane)
        try:
            told.append(str(await connection.call(command, 5.0, 2.0, **arguments)).replace(" ", ""))
        except TaskQueueError as why:
            told.append(why.code)
        connection.close()
    me = intruder.local.node_id
    for far in (2**62, 2**31):
        for kind in (Heartbeat, Append, AppendReply, Vote, Entry):
            connection = await intruder.dial(address, Lane.CONSENSUS)
            assert connection.peer is not None
            it = connection.peer.node_id
            message: Message = {
                Heartbeat: Heartbeat(me, it, far, far, 1),
                Append: Append(me, it, far, far, far, far),
                AppendReply: AppendReply(me, it, far, far),
                Vote: Vote(me, it, far, far, far, False, True),
                Entry: Append(me, it, far, 1, 1, far, (Entry(far, 2, EntryKind.DATA, garbage),)),
            }[kind]
            intruder.raft(connection, message)
            connection.tell(Confirm, body=garbage)
            connection.close()
    connection = await intruder.dial(address, Lane.BULK)
    connection.tell(Data, body=b"\x91\x95\x01\x00\xcf" + b"\x7f" * 8 + b"\x90\x01\x00")
    connection.close()
    await intruder.stop()
    return told
