"""The in-sync set at its primary: what is committed (R8, R9), who may join (R10), who must go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from tq_node.partition.progress import ReplicaProgress
from tq_node.partition.record import Record
from tq_node.types import NodeId

Members = frozenset[NodeId]


# --- what counts ---
def effective_set(learned: Collection[NodeId], proposed: Collection[NodeId]) -> Members:
    """The set last learned, united with every set proposed and unresolved (R9). Counting less is
    bug F17. A smaller set counts for nothing before it is learned; a larger one counts from before
    its proposal leaves."""
    return frozenset(learned) | frozenset(proposed)


def may_commit(sequence: int, barrier: int) -> bool:
    """Nothing commits before the barrier does; all before it commits with it (R8)."""
    return sequence >= barrier


def floor_to_join(barrier: int, committed: int) -> int:
    """What a copy needs to join: at least the barrier; the last primary may have committed more
    than this one knows (R10, F18)."""
    return max(barrier, committed)


class Commitment:
    """Up to where the log of one epoch is committed: what every member of the effective set has
    durable (R8, R9).

    The committed sequence never decreases, and the first one is at least the barrier. A member's
    acknowledgement is ``acked`` of its ``ReplicaProgress``; the primary counts by what is durable
    on its own disk."""

    __slots__ = ("_copies", "_learned", "_primary", "_proposed", "barrier", "effective", "others")

    def __init__(self, primary: NodeId, barrier: int) -> None:
        self._primary = primary
        self.barrier = barrier
        """The sequence of the epoch's first entry."""
        self._learned: Members = frozenset()
        self._proposed: Members = frozenset()
        self.effective: Members = frozenset()
        """Who counts: the set last learned, and all proposed since (R9)."""
        self.others: tuple[NodeId, ...] = ()
        """The effective set without the primary, in order."""
        self._copies: tuple[ReplicaProgress, ...] = ()

    def learn(self, isr: Collection[NodeId], copies: Mapping[NodeId, ReplicaProgress], *, settles: bool) -> None:
        """The map's set is ``isr``. ``settles``: its version resolves all proposals before it."""
        self._learned = frozenset(isr)
        if settles:
            self._proposed = frozenset()
        self._recount(copies)

    def propose(self, isr: Members, copies: Mapping[NodeId, ReplicaProgress]) -> None:
        """``isr`` counts from before its proposal leaves (R9)."""
        self._proposed |= isr
        self._recount(copies)

    def _recount(self, copies: Mapping[NodeId, ReplicaProgress]) -> None:
        self.effective = effective_set(self._learned, self._proposed)
        assert all(node == self._primary or node in copies for node in self.effective), "whoever counts is a copy"
        self.others = tuple(node for node in sorted(self.effective) if node != self._primary)
        self._copies = tuple(copies[node] for node in self.others)

    def advance(self, own_durable: int, committed: int) -> int | None:
        """The new committed sequence; None: it stays ``committed``. On the hot path. The least that
        is durable over the effective set, never below the barrier (R8)."""
        least = own_durable
        for copy in self._copies:
            least = min(least, copy.acked)
        return least if least > committed and may_commit(least, self.barrier) else None

    def unlearned(self) -> tuple[ReplicaProgress, ...]:
        """The copies that count only because they were proposed."""
        return tuple(copy for copy in self._copies if copy.node not in self._learned)


# --- who should be in it ---
class Standing(NamedTuple):
    """How one copy besides the primary is doing. ``lags``: silent, or with something
    unacknowledged, for longer than ``replica_lag_max_ms``. ``is_fit``: streaming, and stable for as
    long as its removals for lag ask for."""

    node: NodeId
    acked: int
    is_up: bool
    lags: bool
    is_fit: bool


class Smaller(NamedTuple):
    """Propose the set without ``node``."""

    node: NodeId
    for_lag: bool


class Larger(NamedTuple):
    node: NodeId


class GiveUp(NamedTuple):
    """Ask for another primary: everybody lags, so the fault is probably here."""


Move = Smaller | Larger | GiveUp


def next_move(record: Record, me: NodeId, standings: Mapping[NodeId, Standing], floor: int) -> Move | None:
    """The change of the set to propose now, if any is due and allowed; one at a time."""
    others = [standings[node] for node in record.isr if node != me]
    may_go = may_shrink(record)
    if may_go:
        dead = [other for other in others if not other.is_up]
        if dead:
            return Smaller(
                dead[0].node, for_lag=False
            )  # first, as R4 wants it: no live one goes while a dead one stays
    living = [other for other in others if other.is_up]
    lagging = [other for other in living if other.lags]
    if is_fault_here(lagging, living):
        return GiveUp()
    if lagging and may_go:
        return Smaller(lagging[0].node, for_lag=True)
    joining = first_to_join(record, standings, floor)
    if joining is not None:
        return Larger(joining)
    leaving = first_to_leave(record, me)
    if leaving is not None and may_go:
        return Smaller(leaving, for_lag=False)
    return None


def may_shrink(record: Record) -> bool:
    """Never below ``min_isr``, else losing the last store loses what was acknowledged (R3, F16)."""
    return len(record.isr) > record.min_isr


def is_fault_here(lagging: Collection[Standing], living: Collection[Standing]) -> bool:
    """Whether all of several others lag. With one other nobody can tell: the set shrinks."""
    return len(living) > 1 and len(lagging) == len(living)


def may_join(standing: Standing, floor: int) -> bool:
    """Whether a copy has what the floor asks for (R10), and has kept up for long enough."""
    return standing.is_up and standing.is_fit and not standing.lags and standing.acked >= floor


def first_to_join(record: Record, standings: Mapping[NodeId, Standing], floor: int) -> NodeId | None:
    for node in record.copies:
        if node not in record.isr and node not in record.removing:
            standing = standings.get(node)
            if standing is not None and may_join(standing, floor):
                return node
    return None


def first_to_leave(record: Record, me: NodeId) -> NodeId | None:
    """A copy that a move takes out, once all newcomers are in the set; never the primary."""
    if not all(node in record.isr for node in record.adding):
        return None
    return next((node for node in record.isr if node in record.removing and node != me), None)
