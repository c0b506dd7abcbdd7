"""Drives the cores of all partitions of a node: events in, messages and commits out.

Theory of operation
-------------------
A ``PartitionCore`` (``tq_node.partition``) holds the rules of one partition and does no IO. The
driver feeds the cores with events and does what they want. All cores share one store and one link
to peers, so that one sync and one box to each peer serve every partition that has something to
write or to send.

Three functions form the loop. What they do, and in which order, is what the promises rest on.

``_pump`` runs after each event, over the cores it touched, and empties their outboxes. Messages
go to the peers in this turn, committed entries to the applier. Stepping down is reported first, as
nothing may be proposed there any more (R12), then commits, then activations. The callers whose
entry is committed are returned: whoever entered fires them when every core is consistent again.

``_flush`` makes one commit of the store, and one sync: what the cores must persist, and a slice
of rows from the applier. Messages that need not wait for the disk leave before it, so a primary's
entries are on their way to the replicas while its own disk still writes. One commit is in flight at
a time; what is wanted meanwhile gathers for the next. Nothing waits for company, as an idle disk
is used in the next turn, but for a batch: its caller hands it in over turns and says so, and
what is led here waits for the rest, for ``BATCH_TURNS_GATHERED_MAX`` turns, unless somebody else
waits for the same commit. A busy node, where ``GATHER_CALLERS_MIN`` callers or more wait, sends
its entries and holds the write of them for ``GATHER_MS`` (``_hold``, R21): peers are about to send
theirs, and one sync then makes both durable.

``_durable`` runs when the sync is done. Each core learns what is persisted, and only then do
acknowledgements leave (R8, R16). The next commit leaves before any caller gets its answer: what
callers propose in their callbacks goes into the one after.

A submit passes like this. ``propose`` opens an entry. In the next turn ``_flush`` closes it, sends
it and commits it. ``_durable`` here and acknowledgements of the in-sync replicas (``receive``)
follow in any order, until the core commits the entry. Then ``_pump`` reports the news, and the
caller is fired.

Rows are written behind the log (see ``applier``), within ``APPLY_LAG_MS`` and bounded in size. So a
row may be older than what is committed; the tasks' layer has the newest in memory.

An exception inside the loop means that effects may be lost between a core and the store. Nothing is
retried: the driver stops for good and reports it, and the process ends (R18, R20)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
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
    """Runs every core of this node against one store; see the module's docstring.

    :param outbox: takes the messages to peers.
    :param events: what the node's tasks are told.
    :param owner: told of changes of leadership before ``events`` is, and what the controller is
        asked."""

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
        """Partitions with something to persist, or with messages that wait for the disk."""
        self._candidates: set[int] = set()
        """Partitions that are led here, or are to be: those that are ticked."""
        self._busy: set[int] = set()
        """Partitions that had anything to do since the last tick; only these are ticked each
        ``TICK_S``."""
        self._tick_timer = clock.timer(self._tick_busy)
        self.commits = 0
        """Commits begun so far. While it stays equal, what is proposed goes into one commit."""
        self._from = 0
        """The first partition that had no room in the last commit; the next one begins there."""
        self._gathers = False
        """A caller has said that it goes on in one of the next turns."""
        self._turns_left = limits.BATCH_TURNS_GATHERED_MAX
        """Turns for which the next commit may wait for that; 0 once another caller waits for it."""
        self._peers: set[NodeId] = set()
        """Those that are connected."""
        self._callers = 0
        """Callers whose commits are still open, those among them that no longer wait."""
        self._holds = False
        """The next commit is held: ``_flush_timer`` begins it (R21)."""
        self._in_flight = False
        self._flying_waits: list[Wait] = []
        self._flush_timer = clock.timer(self._flush_or_break)
        self._apply_timer = clock.timer(self._flush_or_break)
        self._idle_waits: list[Deferred[None]] = []
        self._broken = False
        self._stopped = False

    # --- events ---
    def follow(self, records: Iterable[tuple[int, Record]]) -> None:
        """Take over records of the cluster map that have changed, or whose set of nodes that are up
        has."""
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
        """Delete the partition's replica: it was moved to other nodes."""

        def drop() -> Collection[int]:
            self.cores[partition].drop()
            return (partition,)

        self._enter(drop)

    def connected(self, node: NodeId) -> None:
        """Restart the streams to a peer with a new connection: what an older one carried may be
        lost."""
        now_ms = self._clock.now_ms()
        self._peers.add(node)

        def connect_all() -> Collection[int]:
            for core in self.cores:
                core.connected(node, now_ms)
            return list(self._candidates)

        self._enter(connect_all)

    def disconnected(self, node: NodeId) -> None:
        """Stop the streams to a peer."""
        self._peers.discard(node)

        def disconnect_all() -> Collection[int]:
            for core in self.cores:
                core.disconnected(node)
            return list(self._candidates)

        self._enter(disconnect_all)

    def receive(self, source: NodeId, messages: Sequence[AnyMessage]) -> Unsound | None:
        """Step the cores with messages of a peer's present session, in the order sent.

        Returns why a message was refused (of the last one, if several were); the others had their
        effect."""
        if self._broken or self._stopped:
            return None
        now_ms = self._clock.now_ms()
        cores = self.cores
        refused: Unsound | None = None
        touched: dict[int, None] = {}
        try:
            for message in messages:
                if type(message) in OF_SNAPSHOTS and not self._chunk_check.is_sound(source, message):
                    continue
                try:
                    cores[message.partition].receive(source, message, now_ms)
                except Unsound as why:
                    refused = why
                else:
                    touched[message.partition] = None
            waits = self._pump(touched)
            if not (self._dirty and self._begin(now_ms)):
                self._outbox.send()
            if waits:
                self._fire(waits)
        except Exception:
            self._broke(Failure())
        return refused

    def confirmed(self, node: NodeId, led: Iterable[tuple[int, int]], number: int, sent_ms: int) -> None:
        """A peer has answered ping round ``number``: it follows this node in these (partition,
        epoch)."""

        def confirm_all() -> Collection[int]:
            for partition, epoch in led:
                self.cores[partition].confirmed(node, epoch, number, sent_ms)
            return ()

        self._enter(confirm_all)

    def refused(self, node: NodeId, refused: Iterable[tuple[int, int]]) -> None:
        """A peer has promised a higher epoch in these (partition, promised): this node may lead no
        more there."""
        pairs = list(refused)

        def refuse_all() -> Collection[int]:
            for partition, promised in pairs:
                self.cores[partition].refused(node, promised)
            return [partition for partition, _ in pairs]

        self._enter(refuse_all)

    def _granted(self, partition: int, event: Callable[[Core, int], object]) -> None:
        """Enter a core with the store's answer to a request."""

        def answer() -> Collection[int]:
            event(self.cores[partition], self._clock.now_ms())
            return (partition,)

        self._enter(answer)

    # --- proposing ---
    def propose(self, partition: int, effect: Effect, size: int, news: Change | None = None) -> int:
        """Append an effect to the partition's open entry, which leaves with the next commit.
        Returns its sequence."""
        self._dirty.add(partition)
        self._schedule_flush()
        return self.cores[partition].propose(effect, size, news)

    def when_committed(
        self, wait: Wait, places: Iterable[tuple[int, int]], *, has_more: bool = False
    ) -> Deferred[object]:
        """Fire ``wait`` once each (partition, sequence) is committed; ``wait.left`` must be their
        number.

        Some may be committed already: a claim that had to read rows in between waits for entries of
        earlier turns.

        :param has_more: the caller proposes more in one of the next turns, for the same commit."""
        if has_more:
            self._gathers = True
        else:
            self._turns_left = 0
        for partition, sequence in places:
            if sequence <= self.cores[partition].log.committed:
                wait.step()
            else:
                self._waiters[partition].add(sequence, wait)
        if wait.left > 0:
            self._callers += 1
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
        if self._broken or not (self._in_flight or self._dirty or self._applier.unapplied.has_any):
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._idle_waits.append(done)
        self._schedule_flush()
        return done

    def states(self) -> dict[int, list[int]]:
        """Committed rows of each partition that has any, by state."""
        return self._applier.unapplied.states

    def is_overloaded(self, *, is_large: bool) -> bool:
        """Whether new work is to be refused: too much waits for disks and peers (F46, I15). See
        ``Admission``."""
        waiting = self._budget.uncommitted_bytes
        return self._admission.is_full(waiting, is_large=is_large) or self._applier.is_overloaded

    @property
    def uncommitted_bytes(self) -> int:
        return self._budget.uncommitted_bytes

    @property
    def copied_bytes(self) -> int:
        """Bytes sent to replicas that were not in sync, since the process started."""
        return self._budget.copying.sent_bytes

    # --- the loop ---
    def _enter(self, event: Callable[[], Collection[int]]) -> None:
        """Run an event, which returns the partitions that it touched, then do what their cores
        want; what they have for the disk leaves in the next turn."""
        if self._broken or self._stopped:
            return
        try:
            waits = self._pump(event())
            self._outbox.send()
            if waits:
                self._fire(waits)
        except Exception:
            self._broke(Failure())

    def _pump(self, touched: Collection[int]) -> list[Wait]:
        """Do what the touched cores want. Returns the callers whose entry is committed; the caller
        of this sends what is gathered for peers, then fires them."""
        changes: list[Change] = []
        waits: list[Wait] = []
        events: list[tuple[int, Event]] = []
        steps: list[Step] = []
        busy, cores = self._busy, self.cores
        if not busy and touched:
            self._tick_timer.start(TICK_S)
        for partition in touched:
            busy.add(partition)
            core = cores[partition]
            if core.has_outbox:
                box = core.outbox()
                if box.messages:
                    self._outbox.gather(box.messages)
                if box.committed:
                    for entry in box.committed:
                        self._applier.unapplied.add(partition, entry.sequence, entry.effects)
                        changes += entry.news
                    waits += self._waiters[partition].committed(core.log.committed)
                if box.events:
                    events += [(partition, event) for event in box.events]
                steps += box.steps
                for request in box.requests:
                    self._store_requests.grant(partition, request)
            if core.has_ready:
                self._dirty.add(partition)
        if events:
            self._report_steps_down([partition for partition, event in events if isinstance(event, SteppedDown)])
        if changes:
            self._events.committed(changes)
        for partition, event in events:
            if isinstance(event, Activated) and cores[partition].epoch == event.epoch:
                self._owner.activated(partition, event.epoch)
                self._events.activated(partition, event.epoch)
        if steps:
            self._owner.wanted(steps)
        if self._dirty:
            self._schedule_flush()
        elif self._applier.unapplied.has_any:
            self._apply_timer.start(limits.APPLY_LAG_MS / 1000)
        return waits

    def _report_steps_down(self, stepped_down: list[int]) -> None:
        """All of them are reported before anything else is: nothing may be proposed there any more
        (R12)."""
        for partition in stepped_down:
            self._owner.stepped_down(partition)
            self._events.stepped_down(partition)
        for partition in stepped_down:
            self._abandon(partition)

    def _schedule_flush(self) -> None:
        if not (self._in_flight or self._broken or self._stopped):
            self._flush_timer.start()

    @property
    def _is_gathering(self) -> bool:
        """Whether what is led here waits for the rest of a batch."""
        return self._gathers and self._turns_left > 0

    def _flush_or_break(self) -> None:
        if self._holds:
            self._turns_left = 0  # what is held was sent: it waits for no batch (R21)
        elif self._gathers and self._is_gathering:
            self._turns_left -= 1
            self._schedule_flush()
            return
        try:
            now_ms = self._clock.now_ms()
            if self._holds:
                self._flush(now_ms)
            else:
                self._begin(now_ms)
        except Exception:
            self._broke(Failure())

    def _begin(self, now_ms: int) -> bool:
        """Begin the next commit, or hold it. False: one is in flight or held, or all that there is
        waits for the rest of a batch; nothing was sent."""
        if self._in_flight or self._holds or self._broken:
            return False
        is_gathering = self._gathers and self._is_gathering
        if is_gathering and self._dirty and all(self.cores[partition].is_leading for partition in self._dirty):
            return False
        if self._is_busy and not is_gathering:
            self._hold(now_ms)
        else:
            self._flush(now_ms)
        return True

    @property
    def _is_busy(self) -> bool:
        """Whether peers are likely to send entries soon: callers that wait come again, and where
        many wait here, many wait there (R21)."""
        return self._callers >= limits.GATHER_CALLERS_MIN and bool(self._peers)

    def _hold(self, now_ms: int) -> None:
        """Send the entries that are open, and begin the commit that writes them ``GATHER_MS``
        later (R21). None of them counts as durable before that (R8, R16)."""
        self._holds = True
        for partition in sorted(self._dirty):
            core = self.cores[partition]
            if core.is_leading:
                self._outbox.gather(core.spread(now_ms))
        self._outbox.send()
        self._flush_timer.restart(limits.GATHER_MS / 1000)

    def _flush(self, now_ms: int) -> None:
        if self._in_flight or self._broken:
            return
        self._holds = False
        self.commits += 1
        batch = Batch()
        readies: list[tuple[int, Ready]] = []
        settled: list[Wait] = []
        must_persist = False
        size = 0
        turns = self._turns()
        if self._gathers and self._is_gathering:  # what peers wait for leaves all the same
            turns = [partition for partition in turns if not self.cores[partition].is_leading]
        else:
            self._gathers = False
            self._turns_left = limits.BATCH_TURNS_GATHERED_MAX
        for partition in turns:
            core = self.cores[partition]
            if core.has_ready:
                if not self._busy:
                    self._tick_timer.start(TICK_S)
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
                # The rest goes into the next commit: a small entry must not wait for a large one's
                # sync.
                self._from = partition + 1
                break
        else:
            self._from = 0
        self._outbox.send()
        taken = self._applier.take(must_persist, bool(self._idle_waits))
        if not (must_persist or taken.applied):
            if readies:
                self._persisted(readies, now_ms)  # nothing is on its way to the disk, so nothing need wait for it
            elif not self._dirty:
                self._fire_idle()
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
        """Partitions with something for the disk, beginning with those that the last commit had no
        room for."""
        dirty = sorted(self._dirty)
        if self._from:
            at = bisect_left(dirty, self._from)
            dirty = dirty[at:] + dirty[:at]
        return dirty

    def _durable(self, _: None, readies: list[tuple[int, Ready]], taken: Slice, waits: list[Wait]) -> None:
        self._in_flight = False
        now_ms = self._clock.now_ms()
        self.disk_health.ended(now_ms)
        self._flying_waits = []
        for partition, sequence in taken.applied.items():
            core = self.cores[partition]
            if sequence <= core.log.committed:  # else the copy was dropped while this was on its way
                core.applied(sequence)
        waits += self._applier.durable(taken)
        committed = self._report_persisted(readies, now_ms)
        # The disk is free: the next commit leaves before any caller gets its answer, and with it
        # what the last one acknowledges.
        is_wanted = bool(self._dirty or self._applier.is_waited_for or self._idle_waits)
        if self._gathers and self._is_gathering:
            self._schedule_flush()
        if not (is_wanted and self._begin(now_ms)):
            self._outbox.send()
        for wait in waits:
            wait.step()
        if committed:
            self._fire(committed)

    def _fire(self, waits: list[Wait]) -> None:
        """Give callers their answers, in order."""
        for wait in waits:
            wait.step()
            if wait.left == 0:
                self._callers -= 1

    def _abandon(self, partition: int) -> None:
        """Fail the partition's callers: whether their entries will be committed is not known."""
        for wait in self._waiters[partition].abandon():
            if wait.left > 0:
                wait.left = 0
                self._callers -= 1
            wait.give_up()

    def _persisted(self, readies: list[tuple[int, Ready]], now_ms: int) -> None:
        waits = self._report_persisted(readies, now_ms)
        self._outbox.send()
        self._fire(waits)
        if self._idle_waits:
            self._schedule_flush()

    def _report_persisted(self, readies: list[tuple[int, Ready]], now_ms: int) -> list[Wait]:
        """Tell the cores that their writes are durable; gather what waited for that (R8, R16)."""
        for partition, ready in readies:
            self.cores[partition].persisted(ready.number, now_ms)
            if ready.messages_after:
                self._outbox.gather(ready.messages_after)
            if ready.write.install is not None:
                self._count_installed(partition)
        return self._pump([partition for partition, _ in readies])

    def _count_installed(self, partition: int) -> None:
        """Count the rows that a snapshot brought. Nothing of the partition is applied until they
        are counted."""

        def counted(found: list[tuple[int, str, int, int]]) -> None:
            states = [0] * len(State)
            for _, _, state, rows in found:
                states[state] += rows
            self._applier.unapplied.release(partition, states)
            self._schedule_flush()

        self._store.counts([partition]).addCallback(counted).addErrback(self._broke)

    def _fire_idle(self) -> None:
        waits, self._idle_waits = self._idle_waits, []
        for done in waits:
            done.callback(None)

    def leading(self) -> list[Core]:
        """The partitions that are led here."""
        return [core for partition in sorted(self._candidates) if (core := self.cores[partition]).is_leading]

    # --- time ---
    def tick_all(self) -> None:
        """Tick each partition that is led here or is to be. Called each ``read_index.LOOK_S``:
        silence alone may end a rest."""
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

        def tick() -> Collection[int]:
            return [partition for partition in due if self.cores[partition].tick(now_ms)]

        self._enter(tick)

    # --- trouble ---
    def _broke(self, why: Failure) -> None:
        """Stop and report: effects may be lost on the way to the rows, and going on would make that
        durable (R20)."""
        if not self._broken:
            self._failed(why)
            self._events.broken(cast("BaseException", why.value))

    def _failed(self, why: Failure) -> None:
        """Stop for good: the store is broken, so no message may leave (R18). The composition root
        ends the process."""
        self._broken = True
        self._in_flight = False
        _log.critical("the store failed: {why}", why=why.getTraceback(), event="store_broken")
        for partition in range(len(self._waiters)):
            self._abandon(partition)
        for wait in self._flying_waits:
            wait.give_up()
        self._flying_waits = []
        self._applier.give_up()
        self._fire_idle()

    def give_up_overdue(self) -> None:
        """Fail callers that have waited for ``COMMIT_WAIT_S`` with ``OutcomeUnknown``. Called each
        second."""
        before_ms = self._clock.now_ms() - int(limits.COMMIT_WAIT_S * 1000)
        for waiters in self._waiters:
            for wait in waiters.overdue(before_ms):
                wait.give_up()

    def stop(self) -> None:
        """Send and write nothing from now on. Callers that still wait fail with ``OutcomeUnknown``;
        see ``idle``."""
        self._stopped = True
        for timer in (self._flush_timer, self._apply_timer, self._tick_timer):
            timer.cancel()
        for partition in range(len(self._waiters)):
            self._abandon(partition)


def add_write(batch: Batch, partition: int, write: PendingWrite) -> int:
    """Add one partition's write to a commit. Returns the bytes of its entries.

    The store applies the parts of a batch in the order of the fields of ``PendingWrite``."""
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
