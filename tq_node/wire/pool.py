"""The dialling side of a node: two lanes to every other member, and what may be said over them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail

from tq_node.errors import OutcomeUnknown
from tq_node.raft.messages import Message
from tq_node.types import NodeId, NodeName
from tq_node.wire import bounds
from tq_node.wire.calls import Values
from tq_node.wire.codec import CALLS, RESULTS, ForwardedCall, ForwardedResult, encode_messages
from tq_node.wire.commands import Confirm, Data, Forward, Lane, PeerCommand, Raft, ToController
from tq_node.wire.connector import Connector, DialledPeer, Target, unreachable
from tq_node.wire.errors import BoxTooLarge, MalformedBox, Stopped, Superseded
from tq_node.wire.handler import LaneWatcher
from tq_node.wire.handshake import PeerIdentity
from tq_node.wire.lane import PeerLane


class Member(msgspec.Struct, frozen=True):
    """Another node according to the cluster map. ``address``: where peers dial it."""

    node_id: NodeId
    name: NodeName
    address: str


class PeerPool(Service):
    """Keeps both lanes to every member open, between ``startService`` and ``stopService``.

    Nothing is queued: what can't be sent now is refused or dropped, and the caller is told.

    :param rng: jitter of the back-off."""

    def __init__(self, connector: Connector, watcher: LaneWatcher, rng: random.Random) -> None:
        self._connector = connector
        self._watcher = watcher
        self._rng = rng
        self._members: dict[NodeId, Member] = {}
        self._lanes: dict[tuple[NodeId, Lane], PeerLane] = {}
        connector.sessions.on_newer = self._newer_run
        connector.sessions.dialled = self._connections
        self.dropped = 0
        """Consensus messages and data batches that could not be sent."""

    # --- life ---
    def startService(self) -> None:
        super().startService()
        for member in self._members.values():
            self._open(member)

    def stopService(self) -> Deferred[None]:
        """Fires once every connection is gone."""
        super().stopService()
        for lane in self._lanes.values():
            lane.stop()
        self._lanes.clear()
        return Deferred.fromCoroutine(self._connector.close_all())

    def set_members(self, members: Iterable[Member]) -> None:
        """Keep lanes to these members but this node; close those to others and to moved ones."""
        wanted = {member.node_id: member for member in members if member.node_id != self._connector.local.node_id}
        for node_id, known in list(self._members.items()):
            if wanted.get(node_id) != known:
                del self._members[node_id]
                for lane in Lane:
                    if stale := self._lanes.pop((node_id, lane), None):
                        stale.stop()
        for node_id, member in wanted.items():
            if node_id not in self._members:
                self._members[node_id] = member
                if self.running:
                    self._open(member)

    def _open(self, member: Member) -> None:
        target = Target(member.address, member.node_id, member.name)
        for lane in Lane:
            opened = self._lanes[member.node_id, lane] = PeerLane(
                self._connector, self._watcher, target, lane, self._rng
            )
            opened.start()

    def _newer_run(self, peer: PeerIdentity) -> None:
        """Close connections with the node's earlier run: its answers count no more (F23, F42)."""
        for lane in Lane:
            connection = self.connection(peer.node_id, lane)
            if (
                connection is not None
                and connection.peer is not None
                and connection.peer.incarnation < peer.incarnation
            ):
                connection.give_up(Superseded(f"node {peer.name} runs anew"))

    def hang_up(self, node_id: NodeId, why: str) -> None:
        """Close a node's connections: calls fail with ``OutcomeUnknown``; it is redialled."""
        for connection in self._connections(node_id):
            connection.give_up(Stopped(why))

    # --- looking ---
    def _connections(self, node_id: NodeId) -> list[DialledPeer]:
        return [open_ for lane in Lane if (open_ := self.connection(node_id, lane)) is not None]

    def connection(self, node_id: NodeId, lane: Lane) -> DialledPeer | None:
        """The open connection, if there is one: ``peer`` says who is there."""
        known = self._lanes.get((node_id, lane))
        return None if known is None else known.connection

    def is_connected(self, node_id: NodeId, lane: Lane = Lane.CONSENSUS) -> bool:
        return self.connection(node_id, lane) is not None

    # --- saying ---
    def send(self, node_id: NodeId, messages: Sequence[Message]) -> bool:
        """Send consensus messages, in order. False: some were dropped; Raft sends them again."""
        connection = self.connection(node_id, Lane.CONSENSUS)
        whole = True
        for batch, count in encode_messages(messages):
            if connection is None or not connection.tell(Raft, messages=batch):
                self.dropped += count
                whole = False
        return whole

    def send_data(self, node_id: NodeId, body: bytes) -> bool:
        """Send one batch of partition streams. False: dropped; ``LaneWatcher.lane_writable`` or
        ``lane_up`` says when to retry.

        :raises BoxTooLarge: longer than ``bounds.BLOB_BYTES_MAX``."""
        connection = self.connection(node_id, Lane.BULK)
        if connection is not None and connection.tell(Data, body=body):
            return True
        self.dropped += 1
        return False

    def send_confirm(self, node_id: NodeId, body: bytes) -> bool:
        """Send a ping of the ping round, or its answer. False: dropped; the sender repeats it."""
        connection = self.connection(node_id, Lane.CONSENSUS)
        if connection is not None and connection.tell(Confirm, body=body):
            return True
        self.dropped += 1
        return False

    def call(
        self, node_id: NodeId, command: type[PeerCommand], deadline_s: float = bounds.CALL_S_DEFAULT, **arguments: Any
    ) -> Deferred[Values]:
        """Call a member over the lane of the command. Fails with ``PeerUnreachable`` or ``Busy``:
        nothing was sent; ``OutcomeUnknown``: no answer within ``deadline_s``, or the connection was
        lost, and it may have been done; or with what the peer refused it with."""
        assert command.lanes, "not a command of the handshake"
        connection = self.connection(node_id, min(command.lanes, key=list(Lane).index))
        if connection is None:
            member = self._members.get(node_id)
            return fail(unreachable(node_id if member is None else member.name))
        return connection.call(command, deadline_s, **arguments)

    def ask(
        self, node_id: NodeId, command: type[ToController], body: bytes, deadline_s: float = bounds.CALL_S_DEFAULT
    ) -> Deferred[bytes]:
        """``Register``, ``Heartbeat``, ``Evidence`` or ``Propose``; see ``call`` for failures."""
        return self.call(node_id, command, deadline_s, body=body).addCallback(lambda answer: answer["body"])

    def forward(
        self, node_id: NodeId, calls: list[ForwardedCall], deadline_s: float = bounds.CALL_S_DEFAULT
    ) -> Deferred[list[ForwardedResult]]:
        """Send calls for partitions of that node in one box; returns one result for each, in order.
        See ``call`` for failures. Fails with ``BoxTooLarge`` (nothing was sent) where they don't
        fit: aim at ``bounds.FORWARD_BYTES_AIM``."""
        try:
            data = CALLS.encode(calls)
        except BoxTooLarge:
            return fail()

        def unpacked(answer: Values) -> list[ForwardedResult]:
            try:
                results = RESULTS.decode(answer["results"])
            except MalformedBox as why:
                raise OutcomeUnknown(f"the peer's results can't be read: {why}") from None
            if len(results) != len(calls):
                raise OutcomeUnknown("the peer sent more or fewer results than there were calls")
            return results

        return self.call(node_id, Forward, deadline_s, calls=data).addCallback(unpacked)

    def announce(self) -> None:
        """Tell all peers this node's session now, rather than with the next ping."""
        for lane in self._lanes.values():
            if lane.connection is not None:
                Deferred.fromCoroutine(lane.connection.ping())

    # --- others ---
    async def probe_refused(self, node_id: NodeId) -> tuple[int, ...]:
        """Monotonic ms of two refusals by the member's port, 50 ms apart; empty: none (R5a)."""
        member = self._members.get(node_id)
        return () if member is None else await self._connector.refused_at(member.address)

    async def dial(self, address: str, lane: Lane = Lane.CONSENSUS) -> DialledPeer:
        """Connect to whoever listens there; the joiner closes it. Raises as ``Connector.open``."""
        return await self._connector.open(Target(address), lane)
