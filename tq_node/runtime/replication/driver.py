"""Every copy that this node keeps: one store with one group commit, one stream to each peer, whatever partitions they share.

Events of the cores' outer world go in (the table, peers, proposals, the disk, time); what the cores want done is done here.
All that is wanted while the last sync runs goes into the next one, and a batch never waits for company. A primary's
entries leave for the replicas before its own disk has them. Committed effects are folded and written to the rows behind the
log, a slice with each commit (``applying``). Rules in brackets are those of ``replication.md``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import StoreBroken, Unsound
from tq_node.partition.apply_queue import Slice
from tq_node.partition.effects import Activated, Event, Ready, Step, SteppedDown
from tq_node.partition.entries import Effect
from tq_node.partition.messages import AnyMessage
from tq_node.partition.record import Record
from tq_node.partition.replica_log import PendingWrite
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.applier import Applier
from tq_node.runtime.replication.commit_waiters import CommitWaiters, Wait
from tq_node.runtime.replication.overload import Admission, DiskHealth
from tq_node.runtime.replication.ports import Core, DriverEvents, Outbox, ReplicaEvents, Replicas
from tq_node.runtime.replication.snapshot_check import OF_SNAPSHOTS, ChunkCheck
from tq_node.runtime.replication.store_requests import StoreRequests
from tq_node.store.api import Batch, Install, StagedChunk, Store
from tq_node.types import Change, NodeId, State

_log = Logger(namespace="taskqueue.log")
TICK_S = 0.05
"""How often partitions that have anything to do are ticked; the others are with each ping round."""


class ReplicaDriver:
    """Runs every ``PartitionCore`` of this node against one store and one link to peers; see the module's docstring.

    :param owner: notified of changes of leadership before ``events`` is.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        replicas: Replicas,
        outbox: Outbox,
        events: ReplicaEvents,
        owner: DriverEvents,
    ) -> None:
        self.cores = cores = replicas.cores
        self._store = store
        self._clock = clock
        self._applier = Applier(clock, replicas.unapplied, events)
        self._budget = replicas.budget
        self._outbox = outbox
        self._admission = Admission()
        self.disk_health = DiskHealth()
        self._events = events
        self._owner = owner
        self._chunk_check = ChunkCheck()
        self._store_requests = StoreRequests(store, self._granted)
        self._waiters = [CommitWaiters() for _ in cores]
        self._dirty: set[int] = set()
        """Cores that have something for the disk, or that waits for it."""
        self._candidates: set[int] = set()
        """Partitions that are led here, or are to be: those that are ticked."""
        self._busy: set[int] = set()
        """Those that had anything to do since the last tick; the others rest."""
        self._tick_timer = clock.timer(self._tick_busy)
        self.commits = 0
        """Gathered so far: while it stays, what is proposed goes into the same one."""
        self._from = 0
        """The first partition that the last commit had no room for."""
        self._in_flight = False
        self._flying_waits: list[Wait] = []
        self._flush_timer = clock.timer(self._flush_or_break)
        self._apply_timer = clock.timer(self._flush_or_break)
        self._idle_waits: list[Deferred[None]] = []
        self._broken = False
        self._stopped = False

    # --- events ---
    def follow(self, records: Iterable[tuple[int, Record]]) -> None:
        """Records of the table that are new, or whose ``up`` is."""
        now_ms = self._clock.now_ms()

        def follow_all() -> list[int]:
            touched = []
            for partition, record in records:
                core = self.cores[partition]
                core.follow(record, now_ms)
                if core.is_leading or core.primary == core.me:
                    self._candidates.add(partition)
                else:
                    self._candidates.discard(partition)
                touched.append(partition)
            return touched

        self._enter(follow_all)

    def drop(self, partition: int) -> None:
        """What is here of it is a leftover of a move."""

        def drop() -> Iterable[int]:
            self.cores[partition].drop()
            return (partition,)

        self._enter(drop)

    def connected(self, node: NodeId) -> None:
        """There is a new connection with the peer; whatever was on its way over an older one never arrives."""
        now_ms = self._clock.now_ms()

        def connect_all() -> Iterable[int]:
            for core in self.cores:
                core.connected(node, now_ms)
            return list(self._candidates)

        self._enter(connect_all)

    def disconnected(self, node: NodeId) -> None:
        def disconnect_all() -> Iterable[int]:
            for core in self.cores:
                core.disconnected(node)
            return list(self._candidates)

        self._enter(disconnect_all)

    def receive(self, source: NodeId, messages: Sequence[AnyMessage]) -> Unsound | None:
        """From the present session of a peer, in the order sent. Returns why the last was refused that was."""
        now_ms = self._clock.now_ms()
        cores = self.cores
        refused: Unsound | None = None

        def receive_all() -> Iterable[int]:
            nonlocal refused
            touched: dict[int, None] = {}
            for message in messages:
                if type(message) in OF_SNAPSHOTS and not self._chunk_check.is_sound(source, message):
                    continue
                try:
                    cores[message.partition].receive(source, message, now_ms)
                except Unsound as why:
                    refused = why
                else:
                    touched[message.partition] = None
            return touched

        self._enter(receive_all, at_once=True)
        return refused

    def confirmed(self, node: NodeId, led: Iterable[tuple[int, int]], number: int, sent_ms: int) -> None:
        """The peer stands behind this node in these (partition, epoch): a ping round's answer."""

        def confirm_all() -> Iterable[int]:
            for partition, epoch in led:
                self.cores[partition].confirmed(node, epoch, number, sent_ms)
            return ()

        self._enter(confirm_all)

    def refused(self, node: NodeId, refused: Iterable[tuple[int, int]]) -> None:
        """The peer has promised more in these (partition, promised)."""
        pairs = list(refused)

        def refuse_all() -> Iterable[int]:
            for partition, promised in pairs:
                self.cores[partition].refused(node, promised)
            return [partition for partition, _ in pairs]

        self._enter(refuse_all)

    def _granted(self, partition: int, event: Callable[[Core, int], object]) -> None:
        """The store has answered a wish of a core."""

        def tell() -> Iterable[int]:
            event(self.cores[partition], self._clock.now_ms())
            return (partition,)

        self._enter(tell)

    # --- proposing ---
    def propose(self, partition: int, effect: Effect, size: int, news: Change | None = None) -> int:
        """Append ``effect`` to the partition's open entry; it leaves with the next commit. Returns its sequence."""
        self._dirty.add(partition)
        self._schedule_flush()
        return self.cores[partition].propose(effect, size, news)

    def when_committed(self, wait: Wait, places: Iterable[tuple[int, int]]) -> Deferred[object]:
        """Fire ``wait`` once each (partition, sequence) is committed; ``wait.left`` must be their number.

        Some may be committed already: a claim that had to read rows in between waits for entries of earlier turns.
        """
        for partition, sequence in places:
            if sequence <= self.cores[partition].committed:
                wait.step()
            else:
                self._waiters[partition].add(sequence, wait)
        return wait.deferred

    def settle(self) -> Deferred[None]:
        """Fire once the rows in the store show everything that is committed now."""
        if self._broken:
            return fail(StoreBroken("the store is broken"))
        settled = self._applier.settle()
        if self._applier.is_waited_for:
            self._schedule_flush()
        return settled

    def idle(self) -> Deferred[None]:
        """Fire once nothing is proposed, in flight or unapplied any more: for an orderly stop."""
        if self._broken or not (self._in_flight or self._dirty or self._applier.has_any):
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._idle_waits.append(done)
        self._schedule_flush()
        return done

    def states(self) -> dict[int, list[int]]:
        """Committed rows of each partition that has any, by state."""
        return self._applier.unapplied.states

    def is_overloaded(self, *, is_large: bool) -> bool:
        """Whether more waits for disks and peers than may wait: new work is to be refused (F46, I15). See ``Admission``."""
        waiting = self._budget.uncommitted_bytes
        return self._admission.is_full(waiting, is_large=is_large) or self._applier.is_overloaded

    @property
    def uncommitted_bytes(self) -> int:
        return self._budget.uncommitted_bytes

    @property
    def copied_bytes(self) -> int:
        """Sent to copies that did not count, in this run of the process."""
        return self._budget.copying.sent_bytes

    # --- the loop ---
    def _enter(self, event: Callable[[], Iterable[int]], *, at_once: bool = False) -> None:
        """``event`` says which cores it has touched. ``at_once``: what they have for the disk does not wait for the next turn."""
        if self._broken or self._stopped:
            return
        try:
            waits = self._pump(event())
            if at_once and self._dirty:
                self._flush()
            for wait in waits:
                wait.step()
        except Exception:
            self._broke(Failure())

    def _pump(self, touched: Iterable[int]) -> list[Wait]:
        """Do what the cores want; returns who hears that an entry is committed."""
        changes: list[Change] = []
        waits: list[Wait] = []
        events: list[tuple[int, Event]] = []
        steps: list[Step] = []
        busy = self._busy
        for partition in touched:
            busy.add(partition)
            core = self.cores[partition]
            while core.has_outbox:
                box = core.outbox()
                if box.messages:
                    self._outbox.gather(box.messages)
                if box.committed:
                    for entry in box.committed:
                        self._applier.unapplied.add(partition, entry.sequence, entry.effects)
                        changes += entry.news
                    waits += self._waiters[partition].committed(core.committed)
                events += [(partition, event) for event in box.events]
                steps += box.steps
                for request in box.requests:
                    self._store_requests.grant(partition, request)
            if core.has_ready:
                self._dirty.add(partition)
        self._outbox.send()
        left = [partition for partition, event in events if isinstance(event, SteppedDown)]
        for partition in left:
            # All of them before anybody hears of anything: nothing may be proposed there any more (R12).
            self._owner.stepped_down(partition)
            self._events.stepped_down(partition)
        for partition in left:
            for wait in self._waiters[partition].abandon():
                wait.give_up()
        if changes:
            self._events.committed(changes)
        for partition, event in events:
            if isinstance(event, Activated) and self.cores[partition].epoch == event.epoch:
                self._owner.activated(partition, event.epoch)
                self._events.activated(partition, event.epoch)
        if steps:
            self._owner.wanted(steps)
        if busy:
            self._tick_timer.start(TICK_S)
        if self._dirty:
            self._schedule_flush()
        elif self._applier.has_any:
            self._apply_timer.start(limits.APPLY_LAG_MS / 1000)
        return waits

    def _schedule_flush(self) -> None:
        if not (self._in_flight or self._broken or self._stopped):
            self._flush_timer.start()

    def _flush_or_break(self) -> None:
        try:
            self._flush()
        except Exception:
            self._broke(Failure())

    def _flush(self) -> None:
        if self._in_flight or self._broken:
            return
        self.commits += 1
        now_ms = self._clock.now_ms()
        batch = Batch()
        readies: list[tuple[int, Ready]] = []
        settled: list[Wait] = []
        must_persist = False
        size = 0
        for partition in self._turns():
            core = self.cores[partition]
            if core.has_ready:
                self._busy.add(partition)
                ready = core.ready(now_ms)
                must_persist = must_persist or not ready.write.is_empty
                readies.append((partition, ready))
                if ready.messages:
                    self._outbox.gather(ready.messages)
                size += add_write(batch, partition, ready.write)
                if ready.write.drop or ready.write.install is not None:
                    settled += self._applier.forget(partition)
                if ready.write.install is not None:
                    self._applier.unapplied.horizons[partition] = ready.write.install.horizon_us
                    self._applier.unapplied.hold(partition)
            self._dirty.discard(partition)
            if size > limits.COMMIT_BYTES_AIM:
                # What is left goes into the next one: who waits for a little must not wait for all of it.
                self._from = partition + 1
                break
        else:
            self._from = 0
        self._outbox.send()
        taken = self._applier.take(must_persist, bool(self._idle_waits))
        if not (must_persist or taken.applied):
            if readies:
                self._persisted(readies)  # nothing is on its way to the disk: what waited for it need not wait
            else:
                self._tell_idle()
            for wait in settled:
                wait.step()
            return
        self._applier.add_to(batch, taken)
        for partition, sequence in taken.applied.items():
            trim = self.cores[partition].trim_to(sequence)
            if trim:
                batch.trim[partition] = trim
        self._in_flight = True
        self.disk_health.began(now_ms)
        self._flying_waits = settled
        self._store.commit(batch).addCallbacks(
            self._durable, self._failed, callbackArgs=(readies, taken, settled)
        ).addErrback(self._broke)

    def _turns(self) -> list[int]:
        """Cores with something to do, first those that were left the last time."""
        dirty = sorted(self._dirty)
        if self._from:
            at = bisect_left(dirty, self._from)
            dirty = dirty[at:] + dirty[:at]
        return dirty

    def _durable(self, _: None, readies: list[tuple[int, Ready]], taken: Slice, waits: list[Wait]) -> None:
        self._in_flight = False
        self.disk_health.ended(self._clock.now_ms())
        self._flying_waits = []
        for partition, sequence in taken.applied.items():
            core = self.cores[partition]
            if sequence <= core.committed:  # else the copy was dropped while this was on its way
                core.applied(sequence)
        waits += self._applier.durable(taken)
        heard = self._told_persisted(readies)
        # The disk is free: the next batch leaves before anybody hears, and what the hearers propose goes into the one after.
        if self._dirty or self._applier.is_waited_for or self._idle_waits:
            self._flush()
        for wait in waits:
            wait.step()
        for wait in heard:
            wait.step()

    def _persisted(self, readies: list[tuple[int, Ready]]) -> None:
        for wait in self._told_persisted(readies):
            wait.step()
        if self._idle_waits:
            self._schedule_flush()

    def _told_persisted(self, readies: list[tuple[int, Ready]]) -> list[Wait]:
        now_ms = self._clock.now_ms()
        for partition, ready in readies:
            self.cores[partition].persisted(ready.number, now_ms)
            if ready.messages_after:
                self._outbox.gather(ready.messages_after)
            if ready.write.install is not None:
                self._count_installed(partition)
        return self._pump([partition for partition, _ in readies])

    def _count_installed(self, partition: int) -> None:
        """How many rows a snapshot has brought. Nothing of the partition is applied meanwhile."""

        def counted(found: list[tuple[int, str, int, int]]) -> None:
            states = [0] * len(State)
            for _, _, state, rows in found:
                states[state] += rows
            self._applier.unapplied.release(partition, states)
            self._schedule_flush()

        self._store.counts([partition]).addCallback(counted).addErrback(self._broke)

    def _tell_idle(self) -> None:
        waits, self._idle_waits = self._idle_waits, []
        for done in waits:
            done.callback(None)

    # --- time ---
    def tick_all(self) -> None:
        """Tick each partition that is led here or is to be. Called with each ping round: silence alone may end a rest."""
        self._tick(self._candidates)

    def _tick_busy(self) -> None:
        self._tick(self._candidates & self._busy)

    def _tick(self, partitions: Iterable[int]) -> None:
        now_ms = self._clock.now_ms()
        self._budget.copying.refill(now_ms)
        is_much = self._budget.uncommitted_bytes > limits.UNCOMMITTED_BYTES_FREE
        since_ms = min(waiters.since_ms(now_ms) for waiters in self._waiters) if is_much else now_ms
        self._admission.waited(now_ms - since_ms)
        due = sorted(partitions)
        self._busy.clear()

        def tick() -> Iterable[int]:
            return [partition for partition in due if self.cores[partition].tick(now_ms)]

        self._enter(tick)

    # --- trouble ---
    def _broke(self, why: Failure) -> None:
        """Effects may be lost on the way to the rows: going on would make that durable."""
        if not self._broken:
            self._failed(why)
            self._events.broken(cast("BaseException", why.value))

    def _failed(self, why: Failure) -> None:
        """The store is broken: no further message (R18). The composition root ends the process."""
        self._broken = True
        self._in_flight = False
        _log.critical("the store failed: {why}", why=why.getTraceback(), event="store_broken")
        for waiters in self._waiters:
            for wait in waiters.abandon():
                wait.give_up()
        for wait in self._flying_waits:
            wait.give_up()
        self._flying_waits = []
        self._applier.give_up()
        self._tell_idle()

    def give_up_overdue(self) -> None:
        """Callers that have waited for ``COMMIT_WAIT_S`` hear that the outcome is not known. Called each second."""
        before_ms = self._clock.now_ms() - int(limits.COMMIT_WAIT_S * 1000)
        for waiters in self._waiters:
            for wait in waiters.overdue(before_ms):
                wait.give_up()

    def stop(self) -> None:
        """Nothing leaves any more; ``idle`` comes before. Who still waits for other nodes' disks hears that nobody knows."""
        self._stopped = True
        for timer in (self._flush_timer, self._apply_timer, self._tick_timer):
            timer.cancel()
        for waiters in self._waiters:
            for wait in waiters.abandon():
                wait.give_up()


def add_write(batch: Batch, partition: int, write: PendingWrite) -> int:
    """One partition's share; the store keeps to the order that ``PendingWrite`` has its fields in.

    Returns the bytes of its entries.
    """
    if write.promise:
        batch.promises[partition] = write.promise
    if write.drop:
        batch.drops.append(partition)
    if write.unstage:
        batch.unstage.append(partition)
    for number, data in write.stage:
        batch.stage.append(StagedChunk(partition, number, data))
    if write.install is not None:
        install = write.install
        batch.installs.append(
            Install(
                partition, install.applied, list(install.epochs), install.horizon_us, install.chunks, install.digest
            )
        )
    if write.cut_after is not None:
        batch.cuts[partition] = write.cut_after
    for epoch, first_sequence in write.epochs:
        batch.epochs.append((partition, epoch, first_sequence))
    entries = write.entries
    batch.entries += entries
    size = 0
    for entry in entries:
        size += len(entry.payload)
    return size
