"""The queue of one node in virtual time: the very classes that ``service.py`` wires, over the memory model of the store.

Clients submit, repeat, cancel, retry and read; workers claim, note, complete, fail, vanish and come back as zombies; the disk
syncs when it likes, reads arrive late, and the node crashes, losing what was not durable. After every step and at the end a
checker compares what was told with what is there. One seed, one world; ``replay_hint`` says how to see it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock as VirtualClock
from twisted.python.failure import Failure

from tests.support.model_store.store import MemoryStore
from tests.support.workers import AnyType
from tq_node import limits
from tq_node.errors import (
    AlreadyFinal,
    IdConflict,
    NoSuchTask,
    NotActive,
    NotConfirmed,
    NotFinal,
    NotPrimary,
    NotRetryable,
    OutcomeUnknown,
    StaleAttempt,
    TaskPurged,
    TaskQueueError,
)
from tq_node.facade import (
    Accepted,
    AttemptFailed,
    Claim,
    Completed,
    EventBatch,
    ListQuery,
    Lost,
    Notes,
    Outcome,
    Read,
    Released,
    Submission,
    TaskPage,
    TypeDefaults,
    WorkerSeen,
)
from tq_node.observe.metrics import Metrics
from tq_node.partition.effects import Step
from tq_node.partition.record import Record
from tq_node.runtime.clock import Clock, WallClock
from tq_node.runtime.peer_calls import ClaimsBefore, WorkerOrder
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.local_queue import LocalQueue, QueueHooks, open_local_queue
from tq_node.store.api import StoredRow, Tombstone
from tq_node.types import NodeId, State, TaskError, TaskRow, Token

ME = NodeId("a" * 32)
START_US = 1_700_000_000_000_000


class Violation(AssertionError):
    """A promise was broken; the text names it."""


class LateReads(MemoryStore):
    """Look-ups see the disk when they are asked and arrive when the world says so: the latest that the contract allows."""

    late: list[tuple[Deferred[Any], Any]]

    def lookup(self, ids: Any) -> Deferred[dict[str, StoredRow | Tombstone]]:
        if not hasattr(self, "late"):
            self.late = []
        out: Deferred[dict[str, StoredRow | Tombstone]] = Deferred()
        super().lookup(ids).addCallback(lambda found: self.late.append((out, found)))
        return out

    def deliver(self) -> None:
        late, self.late = getattr(self, "late", []), []
        for out, found in late:
            out.callback(found)

    def deliver_one(self) -> None:
        """The oldest alone, so that look-ups come apart."""
        if getattr(self, "late", []):
            out, found = self.late.pop(0)
            out.callback(found)


class FakeWorker(AnyType):
    """Counts wake-ups; the world claims and finishes by hand."""

    slots_free = 0

    def __init__(self) -> None:
        self.stopped: list[tuple[str, Token]] = []

    def wake(self) -> None: ...

    def stop_attempt(self, task_id: str, token: Token) -> None:
        self.stopped.append((task_id, token))


class NoPeers:
    """``Surroundings`` of a node that has no peers, and no controller but the test."""

    @property
    def link(self) -> NoPeers:
        return self

    def send_data(self, node: NodeId, body: bytes, /) -> bool:
        return False

    def send_confirm(self, node: NodeId, body: bytes, /) -> bool:
        return False

    def ask_controller(self, steps: Sequence[Step]) -> None: ...


class Nobody:
    """No remote worker speaks to the node."""

    def ordered(self, order: WorkerOrder) -> None: ...

    def claimed_here(self, worker: str, claim_id: str) -> Deferred[ClaimsBefore]:
        return succeed(ClaimsBefore([], []))

    def seen_here(self) -> Sequence[WorkerSeen]:
        return ()


class NodeWorld:
    """See the module's docstring. ``partitions`` few, so that tasks meet in one log."""

    def __init__(self, seed: int, *, partitions: int = 4, cache_bytes: int = 6_000, dedupe_ms: int = 10**10) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.partitions = partitions
        self.cache_bytes = cache_bytes
        self.dedupe_ms = dedupe_ms
        self.clock = VirtualClock()
        self.store = LateReads()
        self.incarnation = 0
        self.acknowledged: set[str] = set()
        self.contents: dict[str, bytes] = {}
        self.rev_seen: dict[str, int] = {}
        self.completed: set[str] = set()
        self.purged: set[str] = set()
        self.claims: list[Claim] = []
        self.zombies: list[Claim] = []
        self.started: dict[str, set[Token]] = {}
        self.states: dict[str, State] = {}
        self.crashes = self.answers = 0
        self.faults: list[str] = []
        self.open_answers = 0
        self.records: dict[int, Record] = {}
        self.boot()

    def replay_hint(self) -> str:
        return f"again: tests.support.node_world.run({self.seed})"

    # --- life and death ---
    def boot(self) -> None:
        self.incarnation += 1
        settings = QueueSettings(
            defaults_of=lambda task_type: TypeDefaults(),
            node_id=ME, node_name="node-1", incarnation=self.incarnation,
            seed=7, partition_count=self.partitions, born_us=START_US, retention_ms=600_000, dedupe_window_ms=self.dedupe_ms,
            random_bytes=self.random.randbytes, draw=self.random.random, counts_makers=lambda: True,
        )  # fmt: skip
        clock = self.clock

        def mono_ns() -> int:
            return int(clock.seconds() * 1e9)

        wall = WallClock(lambda: START_US * 1000 + mono_ns(), mono_ns)
        hooks = QueueHooks(
            surroundings=NoPeers(),
            stop_elsewhere=lambda *attempt: None,
            tell_worker=lambda worker: None,
            on_disk_floor=lambda: None,
            on_broken=self.broke,
            workers_are_gone=lambda: True,
        )
        opened: list[LocalQueue] = []
        opening = open_local_queue(self.store, Clock(self.clock, wall), settings, Metrics(), hooks)
        Deferred.fromCoroutine(opening).addCallbacks(opened.append, self.fault)
        self.until(lambda: bool(opened), "the node starts")
        self.queue = opened[0]
        self.queue.table.rows._bytes_max = self.cache_bytes
        self.worker = FakeWorker()
        self.queue.claims.attach(self.worker)
        incarnation = self.incarnation
        self.queue.events.watch(lambda batch: self.see_events(batch) if incarnation == self.incarnation else None, None)
        self.elect(range(self.partitions))
        self.until(lambda: not self.queue.activation.waiting(), "the node leads")

    def choose(self, partitions: Iterable[int], primary: NodeId | None) -> None:
        """The table chooses anew."""
        for partition in partitions:
            known = self.records.get(partition)
            epoch = 1 if known is None else known.epoch + 1
            self.records[partition] = Record(epoch, epoch, primary, (ME,), (ME,), 1, frozenset([ME]))
        self.queue.follow(self.records, {ME: "node-1"})

    def elect(self, partitions: Iterable[int]) -> None:
        self.choose(partitions, ME)

    def depose(self) -> None:
        """The table takes a partition away, and gives it back at once or later, in another epoch."""
        self.choose([self.random.randrange(self.partitions)], None)
        if self.random.random() < 0.5:
            self.restore()

    def restore(self) -> None:
        self.elect([p for p in range(self.partitions) if self.records[p].primary is None])

    def crash(self) -> None:
        self.crashes += 1
        pending = len(self.store._pending)
        found = self.store.crash(self.random.randint(0, pending))
        self.store.late = []
        self.store = LateReads()
        self.store._disk = found._disk
        # The dead node's timers stay with its clock.
        now = self.clock.seconds()
        self.clock = VirtualClock()
        self.clock.rightNow = now
        self.zombies += self.claims
        self.claims = []
        self.states.clear()
        self.open_answers = 0
        self.boot()

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(400):
            if condition():
                return
            self.store.deliver()
            self.store.sync()
            self.turn(0.01)
        raise Violation(f"{what}: not within 4 virtual seconds; {self.replay_hint()}")

    def broke(self, why: BaseException) -> None:
        self.faults.append(f"a promise is broken: {why!r}")

    def fault(self, why: Failure) -> None:
        self.faults.append(why.getTraceback())

    def heard(self, answer: Deferred[Any]) -> Any:
        """The result of a Deferred that has fired."""
        results: list[Any] = []
        answer.addCallback(results.append)
        return results[0]

    # --- what is told ---
    def see_events(self, batch: EventBatch) -> None:
        if batch.reset:
            self.states.clear()
        for event in batch.transitions:
            known = self.states.get(event.task_id)
            if known is not None and event.from_state is not known:
                raise Violation(f"events of {event.task_id} do not follow: {known} then {event}")
            self.states[event.task_id] = event.to_state

    def hear_accepted(self, accepted: Accepted) -> None:
        self.answers += 1
        self.acknowledged.add(accepted.task_id)

    def hearing(self) -> Callable[[TaskRow], None]:
        """A judge of rows that are read from now on: none may be older than what anybody has heard by now (I13)."""
        floor = dict(self.rev_seen)

        def hear(row: TaskRow) -> None:
            self.answers += 1
            if row.rev < floor.get(row.id, 0):
                raise Violation(f"{row.id} went back from rev {floor[row.id]} to {row.rev} (I13)")
            self.rev_seen[row.id] = max(row.rev, self.rev_seen.get(row.id, 0))

        return hear

    def hearing_read(self) -> Callable[[Read], None]:
        hear = self.hearing()
        return lambda read: hear(read.row)

    def expect(self, answer: Deferred[Any], hear: Callable[[Any], None], *allowed: type[Exception]) -> None:
        def refused(why: Failure) -> None:
            if why.check(TaskPurged):
                assert isinstance(why.value, TaskPurged)
                self.purged.add(str(why.value.task_id))
            elif not why.check(*allowed, OutcomeUnknown, NotConfirmed, StaleAttempt, NotPrimary, NotActive):
                self.fault(why)

        incarnation = self.incarnation
        self.open_answers += 1

        def answered(result: Any) -> Any:
            if incarnation == self.incarnation:
                self.open_answers -= 1
            return result

        answer.addBoth(answered)
        answer.addCallbacks(lambda value: hear(value) if incarnation == self.incarnation else None, refused)
        answer.addErrback(self.fault)

    # --- steps ---
    def step(self) -> None:
        steps = (
            (10, self.submit), (4, self.submit_many), (6, self.submit_own), (14, self.claim), (22, self.finish),
            (3, self.note), (3, self.zombie), (5, self.cancel), (4, self.retry), (1, self.purge), (8, self.read), (2, self.page),
            (12, self.store.sync), (6, self.store.deliver),
            (6, self.store.deliver_one), (10, self.wait), (1, self.crash), (1, self.pause),
            (1, self.depose), (3, self.restore),
        )  # fmt: skip
        weights, calls = zip(*steps, strict=True)
        self.random.choices(calls, weights)[0]()
        if self.random.random() < 0.8:
            self.turn()
        if self.faults:
            raise Violation(f"unexpected: {self.faults[0]}; {self.replay_hint()}")

    def submission(self, task_id: str | None = None, content: bytes = b"") -> Submission:
        r = self.random
        return Submission(
            type="email", payload=b'"%d"' % r.randrange(1000), id=task_id, priority=r.randrange(10),
            delay_us=r.choice([None, None, 0, 3_000_000, 90_000_000]), max_attempts=r.randint(1, 3),
            queue=r.choice([None, "mail", "slow"]), content_hash=content,
        )  # fmt: skip

    def submit(self) -> None:
        self.expect(self.queue.submitter.submit(self.submission()), self.hear_accepted)

    def submit_many(self) -> None:
        batch = [self.submission(*self.own() if self.random.random() < 0.3 else ()) for _ in range(5)]

        def hear(results: list[Accepted | TaskQueueError]) -> None:
            for result in results:
                if isinstance(result, Accepted):
                    self.hear_accepted(result)
                elif not isinstance(result, IdConflict | TaskPurged | NotPrimary | NotActive):
                    raise result

        self.expect(self.queue.submitter.submit_many(batch), hear)

    def own(self) -> tuple[str, bytes]:
        return f"own-{self.random.randrange(12)}", self.random.choice([b"a", b"a", b"a", b"b"])

    def submit_own(self) -> None:
        task_id, content = self.own()

        def hear(accepted: Accepted) -> None:
            known = self.contents.setdefault(task_id, content)
            if known != content:
                raise Violation(f"{task_id} was accepted with two contents")
            self.hear_accepted(accepted)

        self.expect(self.queue.submitter.submit(self.submission(task_id, content)), hear, IdConflict)

    def claim(self) -> None:
        def hear(claims: list[Claim]) -> None:
            for claim in claims:
                if claim.token in self.started.setdefault(claim.task_id, set()):
                    raise Violation(f"{claim.task_id} was started twice with one token")
                if any(other.task_id == claim.task_id for other in self.claims):
                    raise Violation(f"two handlers of {claim.task_id} run at once (I12)")
                self.started[claim.task_id].add(claim.token)
            self.claims += claims

        self.expect(self.queue.claims.claim(self.random.randint(1, 8)), hear)

    def finish(self, forced: Outcome | None = None) -> None:
        if not self.claims:
            return
        claim = self.claims.pop(self.random.randrange(len(self.claims)))
        outcomes: list[Outcome] = [
            Completed(b'"done"'),
            Completed(b'"done"'),
            AttemptFailed(TaskError("E", "no"), self.random.choice([None, 0])),
            AttemptFailed(TaskError("E", "no"), final=True),
            Released(),
            Lost(),
        ]
        drawn = self.random.choice(outcomes)
        outcome = drawn if forced is None else forced
        notes = self.random.choice([None, None, Notes()])
        incarnation = self.incarnation

        def not_here(why: Failure) -> Failure:
            if why.check(NotPrimary, NotActive) and incarnation == self.incarnation:
                self.claims.append(claim)  # the worker holds on to it, and says so again
            return why

        finished = self.queue.claims.finish(claim, outcome, notes).addErrback(not_here)
        self.expect(finished, lambda _: self.hear_end(claim, outcome))
        if self.random.random() < 0.1:
            self.expect(self.queue.claims.finish(claim, outcome), lambda _: None)  # says it again

    def hear_end(self, claim: Claim, outcome: Outcome) -> None:
        self.answers += 1
        if isinstance(outcome, Completed):
            self.completed.add(claim.task_id)

    def note(self) -> None:
        if self.claims:
            self.expect(self.queue.claims.note(self.random.choice(self.claims), Notes(dropped=1)), lambda _: None)

    def zombie(self) -> None:
        if self.zombies:
            claim = self.random.choice(self.zombies)

            def accepted(_: None) -> None:
                # Until the attempt is booked as lost its end is still welcome (section 8); after a new start it is not.
                if max(self.started[claim.task_id]) > claim.token:
                    raise Violation(f"a zombie's completion of {claim.task_id} was taken (F30)")

            self.expect(self.queue.claims.finish(claim, Completed(b'"zombie"')), accepted)

    def known(self) -> str | None:
        if self.random.random() < 0.1:
            return f"own-{self.random.randrange(12)}"  # which may never have been
        return self.random.choice(sorted(self.acknowledged)) if self.acknowledged else None

    def change(self, call: Callable[[str], Deferred[TaskRow]], refusal: type[Exception]) -> None:
        task_id = self.known()
        if task_id:
            self.expect(call(task_id), self.hearing(), refusal, NoSuchTask)

    def cancel(self) -> None:
        self.change(self.queue.cancel, AlreadyFinal)

    def retry(self) -> None:
        self.change(self.queue.retry, NotRetryable)

    def purge(self) -> None:
        self.change(self.queue.purge, NotFinal)

    def read(self) -> None:
        task_id = self.known()
        if task_id:
            wait_s = self.random.choice([0.0, 0.0, 5.0])
            self.expect(self.queue.reads.get(task_id, wait_s=wait_s), self.hearing_read(), NoSuchTask)

    def page(self) -> None:
        hear = self.hearing()

        def hear_page(page: TaskPage) -> None:
            for listed in page.tasks:
                hear(listed.row)

        self.expect(self.queue.reads.list(ListQuery(limit=1000)), hear_page)

    def pause(self) -> None:
        self.queue.set_paused(self.random.choice([[], ["mail"], ["mail", "slow"], ["slow"]]))

    def wait(self) -> None:
        self.turn(self.random.choice([0.01, 0.06, 1.0, 30.0, 400.0]))

    # --- the end ---
    def settle(self) -> None:
        """Let all that is under way arrive, without time passing for more to begin."""
        for _ in range(20):
            self.store.deliver()
            self.store.sync()
            self.turn(limits.APPLY_LAG_MS / 1000)

    def heal(self) -> None:
        """No more faults: every accepted task ends (P6), nothing acknowledged is missing (P1), the books are right."""
        self.queue.set_paused([])
        self.restore()
        self.until(lambda: not self.queue.activation.waiting(), "the node leads again")

        def all_ended() -> bool:
            self.claim()
            self.turn()
            while self.claims:
                self.finish(Completed(b'"done"'))
            self.turn(30.0)
            stats = self.queue.reads.stats().primary
            return sum(stats[: State.COMPLETED]) == 0

        self.until(all_ended, "every accepted task ends")
        self.settle()
        present: dict[str, TaskRow] = {}
        stats: list[int] = []

        def hear(page: TaskPage) -> None:
            present.update({t.row.id: t.row for t in page.tasks})
            stats.extend(self.queue.reads.stats().primary)

        self.expect(self.queue.reads.list(ListQuery(limit=10_000)), hear)
        for task_id in sorted(self.acknowledged):
            self.expect(self.queue.reads.get(task_id), self.hearing_read())
        self.settle()
        missing = self.acknowledged - set(present) - self.purged
        if missing:
            raise Violation(f"acknowledged and not there: {sorted(missing)} (P1)")
        for task_id in sorted(self.completed & set(present)):
            if present[task_id].state is not State.COMPLETED or present[task_id].result is None:
                raise Violation(f"{task_id} was completed, acknowledged, and is {present[task_id].state.label} (P2)")
        counted = [0] * len(State)
        for row in present.values():
            counted[row.state] += 1
        if counted != stats:
            raise Violation(f"stats say {stats}, the rows {counted}")
        if self.open_answers:
            raise Violation(f"{self.open_answers} callers never heard")
        if self.queue.table.open_tasks or self.queue.table.open_queues or self.queue.claims.held:
            raise Violation("tasks or attempts are left in the books")
        if self.faults:
            raise Violation(f"unexpected: {self.faults[0]}")


def run(seed: int, steps: int = 250) -> NodeWorld:
    """:raises Violation: with how to see it again."""
    world = NodeWorld(seed)
    assert limits.COMMIT_WAIT_S > 0
    try:
        for _ in range(steps):
            world.step()
        world.heal()
    except Violation as why:
        raise Violation(f"{why} [{world.replay_hint()}]") from why
    return world
