"""The nodes and partitions of a ``MemoryQueue``: enough of the cluster's table to refuse what the real one refuses.

An order changes what is shown at once, as its entry in the log would; the moves that follow from it are done by ``settle``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tq_node.errors import ClusterRefused, LastNode, NoController, NoSuchNode, NoSuchPartition, NotReady, Unauthorized
from tq_node.facade import CHALLENGE_BYTES, Invitation
from tq_node.runtime.join_proof import proof
from tq_node.types import ClusterNode, ClusterView, PartitionView
from tq_node.wire.errors import PeerUnreachable

CLUSTER_ID = "f" * 32
SECRET = "5ec4e7" * 10
INVITED_UNTIL_US = 1_800_000_000_000_000
CHALLENGE = "c4" * CHALLENGE_BYTES
REPLICATION_FACTOR = 3
VOTERS = 3
_replace = msgspec.structs.replace


class MemoryCluster:
    """``leader`` None: nobody leads, and orders are refused. ``invitation`` None: not yet in a cluster."""

    def __init__(self, me: str, names: Sequence[str], *, partitions: int = 2) -> None:
        """:param me: the node that is asked; one of ``names``."""
        self.me = me
        self.nodes = [
            ClusterNode(f"{n:032x}", name, f"127.0.0.1:{8080 + n}", f"127.0.0.1:{9080 + n}", "active", voter=n < VOTERS)
            for n, name in enumerate(names)
        ]
        self.leader: str | None = names[0]
        self.term = 1
        self.invitation: Invitation | None = Invitation(CLUSTER_ID, SECRET, self._node(me).peer)
        self.invitations: set[bytes] = set()
        """Open ones, by their hash."""
        self.told_to_stop: list[str] = []
        self._leaving: set[str] = set()
        self.partitions = [
            PartitionView(number, None, [], [], 0, 0, None, None, {}, [], [], "offline") for number in range(partitions)
        ]
        self.settle()

    # --- for tests ---
    def set_status(self, name: str, status: str) -> None:
        """What the leader has noticed; a node that is down is no longer the leader."""
        self._change(self._node(name), status=status)
        if status == "down" and name == self.leader:
            self.leader = None

    def set_partition(self, number: int, **fields: object) -> None:
        self.partitions[number] = _replace(self.partitions[number], **fields)

    def settle(self) -> None:
        """What was decided is done: the partitions lie on those that may have them, and who was to leave has left."""
        self.nodes = [node for node in self.nodes if node.name not in self._leaving]
        self._leaving.clear()
        homes = [node.name for node in self.nodes if node.status == "active"]
        # From the node that is asked onwards, so that partition 0, where a MemoryQueue keeps its tasks, is its own.
        start = homes.index(self.me) if self.me in homes else 0
        for number, view in enumerate(self.partitions):
            copies = [
                homes[(start + number + step) % len(homes)] for step in range(min(len(homes), REPLICATION_FACTOR))
            ]
            mine = 0 if self.me in copies else None
            moved = copies[0] != view.primary
            self.partitions[number] = PartitionView(
                number, copies[0], copies[1:], copies, view.epoch + moved, view.version + 1, mine, mine,
                dict.fromkeys(copies[1:], 0) if copies[0] == self.me else {}, [], [], "active",
            )  # fmt: skip

    def missing(self) -> list[str]:
        """Who does not answer when all are asked."""
        return [node.name for node in self.nodes if node.status == "down"]

    # --- the facade's side ---
    def view(self) -> ClusterView:
        return ClusterView(
            CLUSTER_ID, "taskqueue", list(self.nodes), self.leader, self.term, len(self.partitions), REPLICATION_FACTOR
        )

    def invite(self) -> Invitation:
        if self.invitation is None:
            raise NotReady("the node is not in a cluster yet")
        return self.invitation

    def put_invitation(self, hash_: bytes) -> int:
        self._need_leader()
        self.invitations.add(hash_)
        return INVITED_UNTIL_US

    def take_invitation(self, hash_: bytes) -> Invitation:
        if hash_ not in self.invitations:
            raise Unauthorized("this invitation is unknown here, was used, or has expired", reason="invitation")
        self.invitations.remove(hash_)
        return msgspec.structs.replace(self.invite(), peers=[node.peer for node in self.nodes if node.name != self.me])

    def peers_for(self, challenge: bytes, given: bytes) -> list[str]:
        if challenge.hex() != CHALLENGE or given != proof(bytes.fromhex(SECRET), challenge):
            raise Unauthorized("the cluster secret differs", reason="secret")
        return [node.peer for node in self.nodes]

    def drain(self, name: str) -> None:
        node = self._node(name)
        if all(other.name == name or other.status != "active" for other in self.nodes):
            raise LastNode(f"{name} is the last node that can hold tasks")
        self._need_leader()
        self._change(node, status="draining")
        for number, view in enumerate(self.partitions):
            if name == view.primary or name in view.replicas:
                self.set_partition(number, removing=[name])

    def undrain(self, name: str) -> None:
        node = self._node(name)
        self._need_leader()
        self._leaving.discard(name)
        if node.status == "draining":
            self._change(node, status="active")
            for number, view in enumerate(self.partitions):
                if view.removing == [name]:
                    self.set_partition(number, removing=[])

    def remove(self, name: str) -> None:
        node = self._node(name)
        if node.status == "down":
            self._need_leader()
            self.nodes.remove(node)
            for number, view in enumerate(self.partitions):
                alone = view.primary == name
                self.set_partition(
                    number,
                    primary=None if alone else view.primary,
                    replicas=[one for one in view.replicas if one != name],
                    in_sync=[one for one in view.in_sync if one != name],
                    state="offline" if alone else view.state,
                )
            return
        self.drain(name)
        self._leaving.add(name)

    def rebalance(self) -> None:
        self._need_leader()

    def unsafe_recover(self, number: int, name: str) -> None:
        if not 0 <= number < len(self.partitions):
            raise NoSuchPartition(f"there is no partition {number}")
        node, view = self._node(name), self.partitions[number]
        self._need_leader()
        if node.status == "down":
            raise ClusterRefused("not up")
        if view.state == "active":
            raise ClusterRefused("not needed")
        self.set_partition(
            number,
            primary=name,
            replicas=[],
            in_sync=[name],
            epoch=view.epoch + 1,
            version=view.version + 1,
            state="active",
        )

    def shutdown(self, name: str) -> None:
        if self._node(name).status == "down":
            raise PeerUnreachable(f"node {name} is not connected")
        self.told_to_stop.append(name)

    def _node(self, name: str) -> ClusterNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise NoSuchNode(f"there is no node {name}")

    def _need_leader(self) -> None:
        if self.leader is None:
            raise NoController("no leader is known")

    def _change(self, node: ClusterNode, **fields: object) -> None:
        self.nodes[self.nodes.index(node)] = _replace(node, **fields)
