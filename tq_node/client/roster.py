"""The nodes that a client knows, and which of them is asked next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from tq_node.client import limits
from tq_node.client.addresses import Address, BadAddress, parse_addresses
from tq_node.client.connection import Lost
from tq_node.client.credentials import Credentials
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
    """Known nodes, asked in turn.

    :param discover: ask nodes for the members of the cluster, and use those, too.
    :param credentials: the token is sent to the configured addresses, and to discovered ones only
        as ``Credentials.may_learn`` allows."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Iterable[Address],
        *,
        credentials: Credentials,
        discover: bool,
    ) -> None:
        self._loop = loop
        self._credentials = credentials
        self._discover = discover
        self._configured: dict[str, Node] = {}
        self._discovered: dict[str, Node] = {}
        self.is_closed = False
        self._turn = 0
        self._discover_at_s = 0.0
        self._discovering: asyncio.Task[None] | None = None
        for address in addresses:
            self._configured[address.place] = self._node(address)
        self._nodes = list(self._configured.values())

    @property
    def addresses(self) -> list[str]:
        """All known addresses, configured ones first."""
        return [str(node.address) for node in self._nodes]

    @property
    def is_crowded(self) -> bool:
        """Whether calls that wait for tasks queue for connections."""
        return any(node.is_crowded for node in self._nodes)

    def next(self, after: Node | None = None) -> tuple[Node, float]:
        """The next node (``after`` failed: only if alone), and seconds to wait before asking it."""
        if self._discover and self._loop.time() >= self._discover_at_s and self._discovering is None:
            self._discovering = self._loop.create_task(self._discover_members())
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
        # No node is known to be up. An unreachable one may be back; a pause asked for is kept.
        rotated = [nodes[number % count] for number in range(turn, turn + count)]
        node = min(rotated, key=lambda one: (one.not_before_s > now_s, one.not_before_s, one is after))
        return node, max(0.0, node.not_before_s - now_s)

    def note_lost(self) -> None:
        """A request got no answer: discover soon, for the members may have changed."""
        self._discover_at_s = min(self._discover_at_s, self._loop.time() + limits.LEARN_AGAIN_S)

    def close(self) -> None:
        self.is_closed = True
        if self._discovering is not None:
            self._discovering.cancel()
        for node in self._nodes:
            node.close(at_once=True)

    # --- discovery ---
    def _node(self, address: Address, *, is_up: bool = True) -> Node:
        return Node(self._loop, address, self._credentials, is_up=is_up)

    async def _discover_members(self) -> None:
        try:
            self._discover_at_s = self._loop.time() + limits.LEARN_EVERY_S
            node, pause_s = self.next()
            if pause_s:
                return
            try:
                answer = await node.ask(b"GET", b"/cluster", None, limits.ATTEMPT_S)
            except Lost:
                self.note_lost()
                return
            if answer.status == 200:
                self._apply_members(answer.body, tls=node.address.tls)
        finally:
            self._discovering = None

    def _apply_members(self, body: bytes, *, tls: bool) -> None:
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
            if self._credentials.may_learn(tls=address.tls):
                wanted[address.place] = address
        for place in [place for place in self._discovered if place not in wanted]:
            self._discovered.pop(place).close(at_once=False)
        for place, address in wanted.items():
            if place not in self._configured and place not in self._discovered:
                # Probed before its first call: its name may not resolve here.
                self._discovered[place] = self._node(address, is_up=False)
        self._nodes = [*self._configured.values(), *self._discovered.values()]
