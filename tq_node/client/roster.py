"""Which nodes there are, and which of them is asked next."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable

import msgspec

from tq_node.client import limits
from tq_node.client.addresses import Address, BadAddress, parse_addresses
from tq_node.client.connection import Lost
from tq_node.client.errors import UNREADABLE
from tq_node.client.node import Node

_LEAVING = ("down", "joining", "draining")


class _Services(msgspec.Struct):
    http: str = ""


class _Member(msgspec.Struct):
    status: str = "active"
    services: _Services = msgspec.field(default_factory=_Services)


class _Cluster(msgspec.Struct):
    nodes: list[_Member] = []


class _Answer(msgspec.Struct):
    cluster: _Cluster


_decode = msgspec.json.Decoder(_Answer).decode


class Roster:
    """:param discover: ask the nodes who else is there.
    :param token: goes to the addresses that were given, and to others only by TLS with their
        certificate checked: whoever answers at a given address may name any other.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Iterable[Address],
        *,
        token: str | None,
        tls: ssl.SSLContext | None,
        discover: bool,
    ) -> None:
        self._loop = loop
        self._token = token
        self._tls = tls
        self._discover = discover
        self._given: dict[str, Node] = {}
        self._learnt: dict[str, Node] = {}
        self.is_closed = False
        self._turn = 0
        self._learn_at_s = 0.0
        self._learning: asyncio.Task[None] | None = None
        for address in addresses:
            self._given[address.place] = self._node(address)
        self._nodes = list(self._given.values())

    @property
    def addresses(self) -> list[str]:
        """All that are known: those that were given first."""
        return [str(node.address) for node in self._nodes]

    @property
    def is_crowded(self) -> bool:
        """Calls that wait for tasks wait for connections."""
        return any(node.is_crowded for node in self._nodes)

    def next(self, after: Node | None = None) -> tuple[Node, float]:
        """The next node in turn, and how long to wait before it is asked, in seconds.

        :param after: the one that was asked in vain; it comes again only where there is no other.
        """
        if self._discover and self._loop.time() >= self._learn_at_s and self._learning is None:
            self._learning = self._loop.create_task(self._learn())
        nodes = self._nodes
        count = len(nodes)
        now_s = self._loop.time()
        self._turn = turn = (self._turn + 1) % count
        spare: Node | None = None
        for number in range(turn, turn + count):
            node = nodes[number % count]
            if node.is_up and node.not_before_s <= now_s:
                if node is not after:
                    return node, 0.0
                spare = node
        if spare is not None:
            return spare, 0.0
        # Nobody is known to be well. One that can't be reached may be back; one that asked for a
        # pause gets it.
        rotated = [nodes[number % count] for number in range(turn, turn + count)]
        node = min(rotated, key=lambda one: (one.not_before_s > now_s, one.not_before_s, one is after))
        return node, max(0.0, node.not_before_s - now_s)

    def lost_one(self) -> None:
        """A node could not be reached: the cluster may be another one now."""
        self._learn_at_s = min(self._learn_at_s, self._loop.time() + limits.LEARN_AGAIN_S)

    def close(self) -> None:
        self.is_closed = True
        if self._learning is not None:
            self._learning.cancel()
        for node in self._nodes:
            node.close(at_once=True)

    # --- who is there ---
    def _node(self, address: Address, *, is_up: bool = True) -> Node:
        return Node(self._loop, address, token=self._token, tls=self._tls, is_up=is_up)

    async def _learn(self) -> None:
        try:
            self._learn_at_s = self._loop.time() + limits.LEARN_EVERY_S
            node, pause_s = self.next()
            if pause_s:
                return
            try:
                answer = await node.ask(b"GET", b"/cluster", None, limits.ATTEMPT_S)
            except Lost:
                self.lost_one()
                return
            if answer.status == 200:
                self._follow(answer.body, tls=node.address.tls)
        finally:
            self._learning = None

    def _may_learn(self, address: Address) -> bool:
        """Whether a node that was only named gets the token, without which it is of no use. Without
        one anybody may be asked.
        """
        if self._token is None:
            return True
        return (
            address.tls
            and self._tls is not None
            and self._tls.verify_mode is ssl.CERT_REQUIRED
            and self._tls.check_hostname
        )

    def _follow(self, body: bytes, *, tls: bool) -> None:
        try:
            members = _decode(body).cluster.nodes[: limits.NODES_MAX]
        except UNREADABLE:
            return
        wanted: dict[str, Address] = {}
        for member in members:
            if member.status in _LEAVING or not member.services.http:
                continue
            try:
                (address,) = parse_addresses([member.services.http], tls=tls)
            except (BadAddress, ValueError):
                continue
            if self._may_learn(address):
                wanted[address.place] = address
        for place in [place for place in self._learnt if place not in wanted]:
            self._learnt.pop(place).close(at_once=False)
        for place, address in wanted.items():
            if place not in self._given and place not in self._learnt:
                # Where nodes know themselves by names that are of no use here, nobody's call finds
                # that out.
                self._learnt[place] = self._node(address, is_up=False)
        self._nodes = [*self._given.values(), *self._learnt.values()]
