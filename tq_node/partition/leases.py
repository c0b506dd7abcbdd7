"""Who still stands behind a primary, and what may rest on that: strong reads and leases
(replication.md, sections 7 and 8).

A round is one ``Ping`` to every peer, numbered. A member of the effective set that answers it
without refusal had, at that moment, promised nothing higher: whoever is primary next comes from
among them, so nothing was committed elsewhere before the round began. Reads compare round numbers
and so involve no clock; leases rest on a round's *send* time, by the sender's monotonic clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from tq_node.partition.messages import Ping, Pong
from tq_node.types import NodeId

NEVER_MS = -(10**15)
"""Nobody has confirmed anything yet."""
ALWAYS = 1 << 62
"""Alone in the set: nobody else could be primary, every round is answered."""
ROUNDS_KEPT = 64


class Answered(NamedTuple):
    """A round that one peer answered, for ``PartitionCore.confirmed`` of each of ``led``."""

    number: int
    sent_ms: int
    led: tuple[tuple[int, int], ...]


class PingRounds:
    """The rounds of one node, for all partitions that it leads. Late answers are dropped."""

    def __init__(self) -> None:
        self.number = 0
        self._rounds: OrderedDict[int, tuple[int, tuple[tuple[int, int], ...]]] = OrderedDict()

    def begin(self, now_ms: int, led: Iterable[tuple[int, int]]) -> Ping:
        """Begin a round over ``led``, (partition, epoch): it confirms reads that came before."""
        self.number += 1
        self._rounds[self.number] = (now_ms, tuple(led))
        while len(self._rounds) > ROUNDS_KEPT:
            self._rounds.popitem(last=False)
        return Ping(self.number, self._rounds[self.number][1])

    def answered(self, pong: Pong) -> Answered | None:
        """The partitions that the peer did not refuse; None: the round is too old."""
        known = self._rounds.get(pong.number)
        if known is None:
            return None
        sent_ms, led = known
        if pong.refused:
            refused = {partition for partition, _ in pong.refused}
            led = tuple(pair for pair in led if pair[0] not in refused)
        return Answered(pong.number, sent_ms, led)


class Confirmations:
    """The latest round that each other copy has answered, in one epoch of one partition."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: dict[NodeId, tuple[int, int]] = {}

    def confirm(self, node: NodeId, number: int, sent_ms: int) -> None:
        known = self._latest.get(node)
        if known is None or number > known[0]:
            self._latest[node] = (number, sent_ms)

    def number(self, others: Iterable[NodeId]) -> int:
        """The latest round that ``others`` all answered; 0: none; ``ALWAYS``: there are none."""
        latest = self._latest
        return min((latest[node][0] if node in latest else 0 for node in others), default=ALWAYS)

    def sent_ms(self, others: Iterable[NodeId], now_ms: int) -> int:
        """When that round was sent; ``now_ms`` where ``others`` is empty."""
        latest = self._latest
        return min((latest[node][1] if node in latest else NEVER_MS for node in others), default=now_ms)


def is_read_confirmed(confirmed: int, needed: int) -> bool:
    """Whether all others answered a round begun after the read; else it might be stale (F24)."""
    return confirmed >= needed


# --- leases (section 8); all times monotonic, of the node that asks ---
def runs_until_ms(confirmed_at_ms: int, lease_ms: int, margin_ms: int) -> int:
    """Until when an attempt at the primary's node may run."""
    return confirmed_at_ms + lease_ms - margin_ms


def renewed_until_ms(asked_at_ms: int, lease_ms: int, margin_ms: int) -> int:
    """Until when an attempt at another node may run: counted from when that node *sent* its
    request, if the answer rests on a round begun after the request came."""
    return asked_at_ms + lease_ms - margin_ms


def requeue_at_ms(promise_durable_ms: int, lease_ms: int) -> int:
    """When inherited attempts have ended: no older primary was confirmed after the promise."""
    return promise_durable_ms + lease_ms
