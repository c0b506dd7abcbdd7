"""Schedules written by hand, of one core or a few: what a swarm meets once in thousands of schedules, or never in reach of
a checker.

Each is a promise by itself; ``mutations`` runs them with a rule switched off, the tests as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from tests.simulation.families import need
from tq_node.errors import Divergence
from tq_node.partition.core import PartitionCore
from tq_node.partition.effects import ProposeIsr, Ready
from tq_node.partition.entries import (
    Effect,
    EpochStart,
    Horizon,
    LogEntry,
    make_entry,
)
from tq_node.partition.epochs import EpochTable
from tq_node.partition.leases import PingRounds
from tq_node.partition.messages import (
    Ack,
    AnyMessage,
    Append,
    Reject,
    SnapBegin,
    SnapChunk,
    SnapEnd,
    Sync,
    SyncOk,
)
from tq_node.partition.record import Record
from tq_node.partition.replica_log import Stored, Tail
from tq_node.partition.settings import ReplicationSettings
from tq_node.types import NodeId

A, B, C, D = NodeId("a"), NodeId("b"), NodeId("c"), NodeId("d")
Core = PartitionCore[str]
PACE = ReplicationSettings(keep_bytes=0, mark_bytes=1)


def record(
    epoch: int,
    version: int,
    primary: NodeId | None,
    isr: tuple[NodeId, ...] = (A, B, C),
    copies: tuple[NodeId, ...] = (A, B, C),
    up: Iterable[NodeId] = (A, B, C),
    min_isr: int = 2,
    **rest: object,
) -> Record:
    return Record(epoch, version, primary, copies, isr, min_isr, frozenset(up), **rest)  # type: ignore[arg-type]


def entry(sequence: int, epoch: int, *effects: Effect) -> LogEntry:
    return make_entry(0, sequence, epoch, list(effects) or [Horizon(sequence)])


def a_core(me: NodeId, stored: Stored | None = None, pace: ReplicationSettings = PACE) -> Core:
    return PartitionCore(0, me, stored or Stored(), settings=pace)


def stored(*epochs_of: int, promised: int = 0, applied: int = 0) -> Stored:
    """A log whose entries are of these epochs, from 1 on."""
    runs: list[tuple[int, int]] = []
    for sequence, epoch in enumerate(epochs_of, 1):
        if not runs or runs[-1][0] != epoch:
            runs.append((epoch, sequence))
    last = len(epochs_of)
    tail = tuple(Tail(s, epochs_of[s - 1], [Horizon(s)]) for s in range(applied + 1, last + 1))
    return Stored(promised or (epochs_of[-1] if epochs_of else 0), tuple(runs), 1, last, applied, tail)


def persist(core: Core, now_ms: int = 0) -> Ready:
    ready = core.ready(now_ms)
    core.persisted(ready.number, now_ms)
    return ready


def leaving(core: Core) -> list[tuple[NodeId, AnyMessage]]:
    return core.outbox().messages


def lead(core: Core, epoch: int, others: Iterable[NodeId], *, now_ms: int = 0, **fields: object) -> None:
    """Primary of ``epoch``, its promise and barrier durable, in stream with ``others`` and active."""
    for node in others:
        core.connected(node, now_ms)
    core.follow(record(epoch, epoch, core.me, **fields), now_ms)  # type: ignore[arg-type]
    persist(core, now_ms)
    for node in others:
        core.receive(node, SyncOk(0, epoch, 0), now_ms)
    for node in others:
        core.receive(node, Ack(0, epoch, core.last_sequence), now_ms)
    need(core.is_active, "with all acknowledged it is active (R7)")
    core.outbox()


def stale_ack() -> None:
    """F23: b acknowledged in epoch 1, and a leads again in epoch 3: what b had then it may have lost to epoch 2's cut."""
    core = a_core(A)
    lead(core, 1, (B,), isr=(A, B))
    core.propose(Horizon(1), 8, "one")
    persist(core)
    core.follow(record(2, 2, B, isr=(A, B)), 0)
    core.follow(record(3, 3, A, isr=(A, B)), 0)
    persist(core)
    core.receive(B, SyncOk(0, 3, 1), 0)
    core.receive(B, Ack(0, 1, 3), 0)
    need(core.committed < core.last_sequence, "an answer of another epoch does not count (F23)")
    need(not core.is_active, "and makes nobody active")


def told_in_an_earlier_epoch() -> None:
    """R17: 3 was told to be committed in epoch 1, of a log that epoch 2 has overwritten; what is here at 3 now is not."""
    core = a_core(B)
    core.receive(A, Sync(0, 1, ((1, 1),), 1, 3), 0)
    core.receive(A, Append(0, 1, 0, (entry(1, 1, EpochStart(1)),), 3), 0)
    persist(core)
    need(core.committed == 1, "what is told and here is committed")
    core.receive(C, Sync(0, 2, ((1, 1), (2, 2)), 1, 4), 0)
    core.receive(C, Append(0, 2, 1, tuple(entry(s, 2) for s in (2, 3)), 0), 0)
    persist(core)
    need(core.committed == 1, "what was told in an earlier epoch says nothing of this one (R17)")


def write_that_was_cut() -> None:
    """R16: an append is on its way to the disk when the log is cut; that it gets there counts no further than the cut."""
    core = a_core(B)
    core.receive(A, Sync(0, 1, ((1, 1),), 1, 1), 0)
    core.receive(A, Append(0, 1, 0, tuple(entry(s, 1) for s in (1, 2, 3)), 0), 0)
    first = core.ready(0)
    core.receive(C, Sync(0, 2, ((1, 1), (2, 2)), 1, 3), 0)
    core.receive(C, Append(0, 2, 1, tuple(entry(s, 2) for s in (2, 3)), 3), 0)
    second = core.ready(0)
    need(second.write.cut_after == 1, "the cut is decided by epochs (R15)")
    core.persisted(first.number, 0)
    need(core.committed <= 1, "what was cut is not durable (R16)")
    core.persisted(second.number, 0)
    need(core.committed == 3, "what took its place is")


def epoch_before_the_start() -> None:
    """The primary has trimmed up to the end of a member's log: the member must recognise it, and not cut what was committed."""
    primary = a_core(A, stored(1, 1, 1, promised=1, applied=3))
    member = a_core(B, stored(1, 1, 1, promised=1, applied=1))
    primary.connected(B, 0)
    primary.follow(record(2, 2, A, isr=(A, B), copies=(A, B)), 0)
    primary.log.trimmed(3)
    persist(primary)
    [(_, sync)] = leaving(primary)
    need(isinstance(sync, Sync), "a Sync comes first (R14)")
    member.receive(A, sync, 0)
    ready = persist(member)
    need(ready.write.cut_after is None, "nothing that was committed is cut (I5)")
    need(ready.messages_after == [(A, SyncOk(0, 2, 3))], "the logs agree up to their end:", ready.messages_after)


def old_snapshot() -> None:
    """A snapshot comes a second time, late: what was acknowledged since stays."""
    core = a_core(B)
    core.receive(A, Sync(0, 1, ((1, 1),), 4, 4), 0)
    persist(core)
    snapshot: list[AnyMessage] = [
        SnapBegin(0, 1, 1, 4, ((1, 1),), 0),
        SnapChunk(0, 1, 1, 0, zlib.crc32(b"rows"), b"rows"),
        SnapEnd(0, 1, 1, 1, b"digest"),
    ]
    for message in snapshot:
        core.receive(A, message, 0)
    ready = persist(core)
    need(ready.write.install is not None, "a snapshot is installed")
    need(core.last_sequence == 4, "and the log goes on behind it")
    core.receive(A, Append(0, 1, 4, (entry(5, 1), entry(6, 1)), 4), 0)
    persist(core)
    for message in snapshot:
        core.receive(A, message, 0)
    persist(core)
    need(core.last_sequence == 6, "an old snapshot takes nothing away")


def same_turn_claims() -> None:
    """F30a: claim, put back, claim again in one turn."""
    core = a_core(A)
    lead(core, 1, (), isr=(A,), copies=(A,), min_isr=1)
    first = core.claim_token(0)
    need(core.propose(Horizon(1), 8) == first.sequence, "a token is its entry's place")
    core.propose(Horizon(2), 8)
    second = core.claim_token(first.sequence)
    need(core.propose(Horizon(3), 8) == second.sequence, "a token is its entry's place")
    need(second > first, "two claims of a task never share a token (F30a)")


def round_in_flight() -> None:
    """F24: a read joins no round that began before it came: b answered that one, and promised another epoch right after."""
    core = a_core(A)
    lead(core, 1, (B,), isr=(A, B), copies=(A, B))
    rounds = PingRounds()
    early = rounds.begin(0, [(0, 1)])
    needed = rounds.number + 1  # a read comes
    core.confirmed(B, 1, early.number, 0)
    need(not core.may_read(needed), "a round that began before a read says nothing about it (F24)")
    late = rounds.begin(0, [(0, 1)])
    core.confirmed(B, 1, late.number, 0)
    need(core.may_read(needed), "the next one does")


def lower_promise() -> None:
    """R13: after a promise nobody older is obeyed, and the answer says why."""
    core = a_core(B, stored(1, promised=5))
    core.receive(A, Sync(0, 4, ((1, 1), (4, 2)), 1, 2), 0)
    [(to, answer)] = leaving(core)
    need(isinstance(answer, Reject) and (to, answer.promised) == (A, 5), "older epochs are rejected (R13)")
    need(not core.has_ready, "and change nothing")


def append_without_sync() -> None:
    """R14: before a ``Sync`` this log may end in what the primary never had."""
    core = a_core(B, stored(1, 1, promised=1))
    core.receive(A, Append(0, 2, 2, (entry(3, 2),), 3), 0)
    need(core.last_sequence == 2, "no entries are taken before a Sync (R14)")
    need(not core.has_ready, "nor anything promised")


def two_proposals() -> None:
    """R9: c is proposed, and nobody answers; then b lags and is proposed to go. C counts until a higher version is learned."""
    core = a_core(A)
    lead(core, 1, (B, C, D), isr=(A, B, D), copies=(A, B, C, D), up=(A, B, C, D))
    sets: list[tuple[NodeId, ...]] = []
    for now_ms in range(50, 2_500, 50):
        for node in (C, D):
            core.confirmed(node, 1, now_ms, now_ms)
        core.tick(now_ms)
        sets += [step.isr for step in core.outbox().steps if isinstance(step, ProposeIsr)]
    need((sets[0], sets[-1]) == ((A, B, C, D), (A, D)), "first c is to come, then b to go:", sets)
    need(C in core.effective_set, "a proposal that timed out still counts (R9)")


def higher_promise() -> None:
    """R12: a refusal with a higher promise stops a primary at once."""
    core = a_core(A)
    lead(core, 1, (B,), isr=(A, B), copies=(A, B))
    core.refused(B, 2)
    need(not core.is_leading, "a primary that is refused stops at once (R12)")


def own_epoch_again() -> None:
    """R6: restarted, with the table still naming it: it asks for a new epoch and does nothing in the old one (F20)."""
    core = a_core(A, stored(1, promised=1))
    core.follow(record(1, 1, A, isr=(A, B), copies=(A, B)), 0)
    need(not core.is_leading, "an epoch is not led twice (F20)")
    need(core.outbox().steps, "a new epoch is asked for (R6)")


def snapshot_for_a_member() -> None:
    """Section 6, trim: a member of the set that would need a snapshot lacks what was committed: halt."""
    core = a_core(A, Stored(1, ((1, 1),), 4, 3, 3))
    core.connected(B, 0)
    core.follow(record(2, 2, A, isr=(A, B), copies=(A, B)), 0)
    persist(core)
    try:
        core.receive(B, SyncOk(0, 2, 1), 0)
    except Divergence:
        return
    need(False, "a member of the set never needs a snapshot (I1)")


def barrier() -> None:
    """R8: the inherited log commits with the barrier, not before."""
    core = a_core(A, stored(1, 1, promised=1))
    core.connected(B, 0)
    core.follow(record(2, 2, A, isr=(A, B), copies=(A, B)), 0)
    persist(core)
    core.receive(B, SyncOk(0, 2, 2), 0)
    need(core.committed == 0, "nothing commits before the barrier (R8)")
    core.receive(B, Ack(0, 2, 3), 0)
    need(core.committed == 3, "with the barrier all before it commits")


def table_covers_the_start() -> None:
    """The epoch table keeps the epoch of the last entry that was trimmed."""
    table = EpochTable(((1, 1), (2, 4)))
    table.trim(3)
    need(table.at(3) == 1, "the epoch before the start of the log is known")


HANDMADE: tuple[Callable[[], None], ...] = (
    stale_ack,
    told_in_an_earlier_epoch,
    write_that_was_cut,
    epoch_before_the_start,
    old_snapshot,
    same_turn_claims,
    round_in_flight,
    lower_promise,
    append_without_sync,
    two_proposals,
    higher_promise,
    own_epoch_again,
    snapshot_for_a_member,
    barrier,
    table_covers_the_start,
)
