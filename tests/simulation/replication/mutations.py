"""The mutations of replication: each rule of sections 5 to 8 switched off in the real code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from tests.simulation.mutations import Mutation, always
from tests.simulation.replication import handmade, schedules
from tests.simulation.replication import world as data_world
from tests.simulation.replication.faults import CHANGES, LOSSY, READS, RESTARTS, SETS, SNAPSHOTS, Faults
from tests.support.world import SECOND_US
from tq_node.cluster import rules_partitions
from tq_node.partition import core, primary
from tq_node.partition import isr as in_sync
from tq_node.partition.core import PartitionCore
from tq_node.partition.effects import Activated
from tq_node.partition.epochs import EpochTable
from tq_node.partition.isr import Commitment
from tq_node.partition.leases import Confirmations
from tq_node.partition.messages import Ack
from tq_node.partition.primary import OpenEntry, Primary
from tq_node.partition.progress import Mode, ReplicaProgress
from tq_node.partition.replica import Replica
from tq_node.partition.replica_log import ReplicaLog
from tq_node.partition.sender import Sender
from tq_node.partition.snapshot_send import Snapshots
from tq_node.types import Token

BASES = (0, 100_000, 200_000)
SEEDS_DEFAULT = 60
SAFETY_US = 30 * SECOND_US


def pressed(faults: Faults | None = None, *rule_breaks: str) -> Callable[[int], None]:
    """A world that presses on one part of the rules; None: a swarm."""

    def run(seed: int) -> None:
        with mock.patch.object(data_world, "SAFETY_US", SAFETY_US):
            data_world.simulate(seed, faults=faults, rule_breaks=frozenset(rule_breaks))

    return run


swarm = pressed()


# --- rules, broken ---
def _counts_learned(learned: Any, proposed: Any) -> Any:
    return frozenset(learned)


def _counts_proposed(learned: Any, proposed: Any) -> Any:
    return frozenset(proposed or learned)


def _remembers_last(self: Commitment, isr: Any, copies: Any) -> None:
    self._proposed = isr
    self._recount(copies)


def _counts_itself(original: Any) -> Any:
    """What others have durable suffices; without others the primary's own disk must do."""

    def advance(self: Commitment, own_durable: int, committed: int) -> Any:
        durable = min((copy.acked for copy in self._copies), default=own_durable)
        return original(self, durable, committed)

    return advance


def _cuts_by_commit_mark(self: Replica[Any], sync: Any) -> int:
    return self._log.committed if self.synced_epoch != sync.epoch else self._log.last_sequence


def _cuts_nothing(self: Replica[Any], sync: Any) -> int:
    return self._log.last_sequence


def _promises_again(original: Any) -> Any:
    def promise(self: Any, epoch: int) -> None:
        if epoch > self._log.promised:
            original(self, epoch)

    return promise


def _promises_in_memory(self: ReplicaLog[Any], epoch: int) -> None:
    self.promised = self.durable_promised = epoch


def _active_at_once(self: Primary[Any], connected: Any, now_ms: int) -> None:
    if self.promise_durable_ms is None:
        self.promise_durable_ms = now_ms
        if not self.is_active:
            self.is_active = True
            self._outbox.events.append(Activated(self.epoch))
        self.open_streams(connected, now_ms)


def _acks_at_once(self: Replica[Any]) -> None:
    if self.ack_to is not None:
        log = self._log
        self._outbox.messages.append((self.ack_to, Ack(log.partition, self.synced_epoch, log.last_sequence)))
        self.ack_to = None


def _streams_at_once(self: Sender[Any], stream: ReplicaProgress, now_ms: int) -> None:
    stream.become(Mode.STREAM)
    stream.next_sequence = self._log.last_sequence
    stream.sync_sent_ms = now_ms


def _obeys(self: Replica[Any], message: Any) -> bool:
    if message.epoch > self._log.promised:
        self.promise(message.epoch)
        self.synced_epoch = message.epoch
    return bool(message.epoch == self._log.promised)


def _no_new_claim_entry(self: OpenEntry[Any], claimed_before: int) -> Token:
    return Token(self.epoch, self.sequence)


def _trims_covering(original: Any) -> Any:
    return lambda self, covering: original(self, covering + 1)


def _floor_without_barrier(barrier: int, committed: int) -> int:
    return committed


def _joins_without_floor(standing: Any, floor: int) -> bool:
    return bool(standing.is_up and standing.is_fit and not standing.lags)


def _stays_behind(self: Sender[Any], stream: ReplicaProgress, wanted: int, *, counts: bool) -> int:
    return wanted


def hand(schedule: Callable[[], None]) -> Callable[[int], None]:
    """The same for every seed."""
    return lambda _seed: schedule()


def rule(name: str, of: str, *patches: tuple[Any, str, Any], world: Callable[[int], None] = swarm) -> Mutation:
    return Mutation(name, of, patches, world)


_OLD_SNAPSHOTS = (Replica, "is_news", always(True))
_NO_BARRIER = (in_sync, "may_commit", always(True))
_COUNTS_ALL = (PartitionCore, "counts", always(True))
_COUNTS_CUT = (ReplicaLog, "forget_writes_after", always(None))
_TRIMS_ALL = (EpochTable, "trim", _trims_covering(EpochTable.trim))
_TOLD_ONCE = (Replica, "forget_received_commit", always(None))
_ONE_ENTRY = (OpenEntry, "claim_token", _no_new_claim_entry)
_NO_SYNC = ((Sender, "begin", _streams_at_once), (Replica, "is_synced", _obeys))
_RESUMES = (
    (PartitionCore, "may_begin", lambda self, epoch: epoch >= self.log.promised),
    (Replica, "promise", _promises_again(Replica.promise)),
)

MUTATIONS = (
    # --- what counts ---
    rule("proposed sets are not counted", "R9, F17", (in_sync, "effective_set", _counts_learned), world=pressed(SETS)),
    rule(
        "a set is acted on before it is learned",
        "R9, F17",
        (in_sync, "effective_set", _counts_proposed),
        (Commitment, "propose", _remembers_last),
        world=pressed(SETS),
    ),
    rule(
        "a timed-out proposal is forgotten (swarm)",
        "R9",
        (Commitment, "propose", _remembers_last),
        world=pressed(SETS),
    ),
    rule(
        "a timed-out proposal is forgotten (hand)",
        "R9",
        (Commitment, "propose", _remembers_last),
        world=hand(handmade.two_proposals),
    ),
    rule(
        "nobody resolves a lost proposal",
        "R9",
        (Primary, "_is_stuck", always(False)),
        world=schedules.run_lost_proposal,
    ),
    rule(
        "a primary counts itself before its own sync",
        "R8",
        (Commitment, "advance", _counts_itself(Commitment.advance)),
    ),
    rule("less than the barrier is committed (swarm)", "R8", _NO_BARRIER, world=pressed(CHANGES)),
    rule("less than the barrier is committed (hand)", "R8", _NO_BARRIER, world=hand(handmade.barrier)),
    rule("answers of other epochs count (swarm)", "R8, F23", _COUNTS_ALL, world=pressed(CHANGES)),
    rule("answers of other epochs count (hand)", "R8, F23", _COUNTS_ALL, world=hand(handmade.stale_ack)),
    rule("a write counts although it was cut (swarm)", "R16", _COUNTS_CUT, world=pressed(RESTARTS)),
    rule("a write counts although it was cut (hand)", "R16", _COUNTS_CUT, world=hand(handmade.write_that_was_cut)),
    # --- epochs ---
    rule("a primary goes on in its own epoch (swarm)", "R6, F20", *_RESUMES, world=pressed(RESTARTS)),
    rule("a primary goes on in its own epoch (hand)", "R6, F20", *_RESUMES, world=hand(handmade.own_epoch_again)),
    rule("an epoch is used before its promise is durable", "R6, F21", (Sender, "may_send", always(True))),
    rule("promises are kept in memory", "R13, F22", (ReplicaLog, "promise", _promises_in_memory)),
    rule(
        "older epochs are obeyed",
        "R13",
        (Replica, "is_stale", always(False)),
        (Replica, "is_synced", lambda self, message: message.epoch == self.synced_epoch),
        world=pressed(CHANGES),
    ),
    rule(
        "a refused primary goes on",
        "R12",
        (PartitionCore, "refused", always(None)),
        world=hand(handmade.higher_promise),
    ),
    rule("active before the barrier", "R7", (Primary, "promise_durable", _active_at_once), world=pressed(CHANGES)),
    # --- the set ---
    rule(
        "who lacks the barrier is let in",
        "R10, F18",
        (primary, "floor_to_join", _floor_without_barrier),
        world=pressed(SETS),
    ),
    rule("whoever streams is let in", "R10", (in_sync, "may_join", _joins_without_floor), world=pressed(SETS)),
    rule(
        "the set shrinks below min_isr",
        "R3, F16",
        (in_sync, "may_shrink", lambda record: len(record.isr) > 1),
        (rules_partitions, "is_enough", always(True)),
        world=pressed(SETS),
    ),
    rule("idle hides failure", "F45", (ReplicaProgress, "is_silent", always(False)), world=schedules.run_idle),
    rule("who lags stays", "6, shrink", (ReplicaProgress, "lags", always(False)), world=schedules.run_idle),
    # --- the log ---
    rule(
        "the log is cut by the commit mark",
        "R15, F19",
        (Replica, "agreed", _cuts_by_commit_mark),
        world=pressed(CHANGES),
    ),
    rule("the log is not cut", "R15, F19", (Replica, "agreed", _cuts_nothing), world=pressed(CHANGES)),
    rule("the epoch before the start is forgotten (swarm)", "R15, trim", _TRIMS_ALL, world=pressed(SNAPSHOTS)),
    rule(
        "the epoch before the start is forgotten (hand)",
        "R15, trim",
        _TRIMS_ALL,
        world=hand(handmade.epoch_before_the_start),
    ),
    rule("no Sync (swarm)", "R14", *_NO_SYNC, world=pressed(CHANGES)),
    rule("no Sync (hand)", "R14", *_NO_SYNC, world=hand(handmade.append_without_sync)),
    rule("acks leave before the sync", "R16", (Replica, "seal", _acks_at_once)),
    rule("all answers leave before the sync (driver)", "R16", world=pressed(None, "ack before the sync")),
    rule(
        "what is not announced as committed is applied",
        "R17",
        (Replica, "appliable", lambda self: self._log.durable_sequence),
    ),
    rule("what an earlier epoch announced is applied (swarm)", "R17", _TOLD_ONCE, world=pressed(CHANGES)),
    rule(
        "what an earlier epoch announced is applied (hand)",
        "R17",
        _TOLD_ONCE,
        world=hand(handmade.told_in_an_earlier_epoch),
    ),
    rule("clients hear before the commit (driver)", "R11", world=pressed(None, "answer before the commit")),
    # --- snapshots ---
    rule("an old snapshot is installed (swarm)", "6, catch-up", _OLD_SNAPSHOTS, world=pressed(SNAPSHOTS)),
    rule("an old snapshot is installed (hand)", "6, catch-up", _OLD_SNAPSHOTS, world=hand(handmade.old_snapshot)),
    rule("another history is kept", "Recovery", (ReplicaLog, "drop", always(None)), world=schedules.run_recovery),
    # --- reads, claims, leases ---
    rule(
        "a read is answered without a round", "7, F24", (core, "is_read_confirmed", always(True)), world=pressed(READS)
    ),
    rule(
        "a read joins the round in flight (driver)", "7, F24", world=pressed(READS, "a read joins the round in flight")
    ),
    rule(
        "a read joins the round in flight (hand)",
        "7, F24",
        (core, "is_read_confirmed", lambda confirmed, needed: confirmed >= needed - 1),
        world=hand(handmade.round_in_flight),
    ),
    rule("two claims of a task share an entry (swarm)", "8, F30a", _ONE_ENTRY),
    rule("two claims of a task share an entry (hand)", "8, F30a", _ONE_ENTRY, world=hand(handmade.same_turn_claims)),
    rule(
        "inherited attempts are queued again at once",
        "8",
        (core, "requeue_at_ms", lambda at, lease: at),
        world=pressed(CHANGES),
    ),
    rule(
        "a lease rests on nobody's word",
        "8",
        (Confirmations, "sent_ms", lambda self, others, now_ms: now_ms),
        world=pressed(READS),
    ),
    # --- streams ---
    rule(
        "the window of a replica has no bound",
        "I15",
        (ReplicaProgress, "has_room_for", always(True)),
        (ReplicaProgress, "room_bytes", always(1 << 30)),
    ),
    rule("chunks in flight have no bound", "I15", (Snapshots, "has_room", always(True)), world=pressed(SNAPSHOTS)),
    rule("what was lost is not sent again", "streams", (Sender, "is_stalled", always(False)), world=pressed(LOSSY)),
    # --- not caught, and why ---
    rule(
        "members of the set hold back the trim no more",
        "6, trim",
        (Sender, "trim_floor", _stays_behind),
        world=pressed(SNAPSHOTS),
    ),
    rule("nobody asks for a new epoch", "R6", (PartitionCore, "_ask_epoch", always(None)), world=pressed(RESTARTS)),
)

RARE = {
    "a timed-out proposal is forgotten (swarm)",
    "the epoch before the start is forgotten (swarm)",
    "no Sync (swarm)",
    "what an earlier epoch announced is applied (swarm)",
    "an old snapshot is installed (swarm)",
    "a read joins the round in flight (driver)",
}
"""Hundreds of seeds: each has a (hand) beside it, which is not rare."""
EXPLAINED = {
    "members of the set hold back the trim no more": (
        "what is trimmed is applied, so committed, so held by every member: the floor only saves reads"
    ),
    "nobody asks for a new epoch": "whoever restarts registers, and that alone brings a new choice (R2)",
}
