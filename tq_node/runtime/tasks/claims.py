"""Attempts of tasks led here: scheduled tasks become pending, pending are claimed, claims end."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import NotPrimary, StaleAttempt, TaskQueueError
from tq_node.facade import AttemptFailed, Claim, Completed, Lost, Notes, Outcome, Released, Worker, WorkerAsk
from tq_node.partition.lifecycle import Complete, Due, Event, Fail, Lose, Note, Release
from tq_node.partition.ready_queue import ReadySet
from tq_node.runtime.clock import Clock
from tq_node.runtime.replication.commit_waiters import Wait
from tq_node.runtime.settings import QueueSettings
from tq_node.runtime.tasks.handler_timeout import HandlerTimeout
from tq_node.runtime.tasks.remote_attempts import RemoteAttempts
from tq_node.runtime.tasks.submit import NodeStatus
from tq_node.runtime.tasks.task_table import Elsewhere, Found, Slot, TaskTable, existing
from tq_node.runtime.tasks.worker_attempts import TIMEOUT, WorkerAttempts, claim_of
from tq_node.types import State, TaskRow, Token, WorkerLease

_log = Logger(namespace="taskqueue.running")
_LETTER_BYTES = 4
"""At most, in UTF-8."""
DUE_ROUND_MAX = 1_000
"""Scheduled tasks made pending in one turn of the reactor; the rest follow in the next."""
FOREVER_S = 86_400.0
LEASE_AGAIN_S = 0.05
SET_BACK_MAX = 64
"""Tasks that one claim meets and can't start now; then it looks no further: there may be many."""


class _ClaimRound(msgspec.Struct):
    """One round of claiming, for the worker of ``node``, or for a remote one of that name."""

    node: str
    is_lent: bool = False
    """That worker is not this node's."""
    lease: WorkerLease | None = None
    """Of a remote worker; None: it is a node's."""
    queues: Sequence[tuple[str, ...] | None] = (None,)
    """Of which queues, one after the other; None: of all."""
    is_weighted: bool = False
    """Each task begins with the next of ``queues``, in turn."""
    turn: int = 0
    types: Collection[str] | None = None
    """What the worker runs; None: any."""
    payload_bytes_left: int = sys.maxsize
    """How many bytes of payloads the round may still take."""
    claims: list[Claim] = []
    """Proposed so far."""
    places: dict[int, int] = {}
    """By partition, the sequence of the last entry that holds one of the claims."""
    leased: set[int] = set()
    """Partitions in which an attempt that is claimed in this turn may run."""
    unfit: list[TaskRow] = []
    """Tasks that the round met and that are not for this worker."""

    def pop(self, ready: ReadySet) -> tuple[str, int] | None:
        """The next task of the first of the queues that has one."""
        if not self.is_lent:
            return ready.pop()
        first = self.turn % len(self.queues) if self.is_weighted else 0
        self.turn += 1
        for queues in (*self.queues[first:], *self.queues[:first]):
            if (found := ready.pop_for(self.types, queues)) is not None:
                return found
        return None

    def takes(self, pending: TaskRow) -> bool:
        return self.payload_bytes_left > 0 and (self.types is None or pending.spec.type in self.types)


def _turns(ask: WorkerAsk) -> Sequence[tuple[str, ...] | None]:
    """The queues in the order in which a remote worker wants them served."""
    if ask.queues is None:
        return (None,)
    if not ask.is_weighted:
        return [(queue,) for queue, _ in ask.queues]
    return [(queue,) for queue, weight in ask.queues for _ in range(weight)]


class RemoteDemand(Protocol):
    """Remote workers that wait for work at this node (``routing.remote_workers``)."""

    def wake(self) -> None:
        """There may be something for one of them. Called for each task, so it must be cheap."""


class Claims:
    """Claims tasks for this node's worker and others', and books what workers report of them."""

    def __init__(self, table: TaskTable, clock: Clock, settings: QueueSettings, status: NodeStatus) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings
        self._status = status
        self._worker: Worker | None = None
        self._claims: dict[str, Claim] = {}
        """Attempts that the worker holds, by task id."""
        self._ending: dict[str, Token] = {}
        """Attempts that hold their task no more but whose handler may still run, by task id: no
        other starts beside it (I12)."""
        self._ending_elsewhere: dict[str, tuple[Token, int]] = {}
        """Those of ``_ending`` at other nodes, each with its lease's latest end (monotonic ms)."""
        self._seen_to: dict[tuple[int, int], set[str]] = {}
        """Tasks that lost their attempt under this primary, by partition and epoch: ``_ending``
        knows when it has ended. Kept for the longest lease after the promise."""
        self._set_aside: set[str] = set()
        """Tasks met while an earlier attempt of theirs was ending; put back once it has ended."""
        self._set_back: list[TaskRow] = []
        """Tasks met while their partition took no claims; the next safety net puts them back."""
        self.giving_up = HandlerTimeout(table, clock)
        self.remote = RemoteAttempts(table, clock, settings, self._claims)
        self.of_workers = WorkerAttempts(table, clock, settings, self.end_elsewhere)
        self._waiting: RemoteDemand | None = None
        self._stopped = False
        self._put_back_call: IDelayedCall | None = None
        self._due_call: IDelayedCall | None = None
        self._due_at_us = 0
        """When ``_due_call`` fires (wall clock, microseconds)."""

    @property
    def held(self) -> int:
        return len(self._claims)

    def attach(self, worker: Worker) -> None:
        self._worker = worker

    def attach_waiting(self, waiting: RemoteDemand) -> None:
        """Remote workers that wait for work at this node."""
        self._waiting = waiting

    def wake(self) -> None:
        if self._status.is_active:
            if self._worker is not None:
                self._worker.wake()
            if self._waiting is not None:
                self._waiting.wake()

    # --- due ---
    def schedule_due(self) -> None:
        """Set the timer to the earliest due time."""
        due_us = self._table.due.next_us()
        if due_us is None or not self._status.is_active or self._stopped:
            return
        if self._due_call is not None:
            if self._due_at_us <= due_us:
                return
            self._due_call.cancel()
        self._due_at_us = due_us
        wait_s = min(max(0.0, (due_us - self._clock.wall_us()) / 1e6), FOREVER_S)
        self._due_call = self._clock.call_later(wait_s, self._due_now)

    def _due_now(self) -> None:
        self._due_call = None
        self.find_due()

    def find_due(self) -> None:
        """Make every scheduled task pending whose time has come; also called by the safety net."""
        if not self._status.is_active:
            return
        now_us = self._clock.wall_us()
        due = self._table.due.pop_due(now_us, DUE_ROUND_MAX)
        if due:
            self._table.load([task_id for task_id, _ in due]).addCallbacks(self._make_pending, self._not_loaded)
        else:
            self.schedule_due()

    def _make_pending(self, found: dict[str, Found]) -> None:
        if not self._status.is_active or self._stopped:
            return
        now_us = self._clock.wall_us()
        for slot in found.values():
            # The heap is a hint: what was cancelled, or is scheduled for later, is left alone.
            if not isinstance(slot, Slot) or slot.row is None or slot.row.state is not State.SCHEDULED:
                continue
            if slot.row.run_at_us <= now_us:
                self._table.change(slot, Due(now_us), now_us)
        self.schedule_due()

    # --- claim ---
    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        """See ``facade.TaskQueue.claim``."""
        worker = self._worker
        types = None if worker is None else worker.types
        return self._take(limit, _ClaimRound(self._settings.node_name, types=types))

    def backlog(self, types: Collection[str] | None = None) -> int:
        """Ready tasks of these types (None: any) beyond what this node's worker could start now."""
        if not self._status.is_active or self._status.is_stopping:
            return 0
        own = 0 if self._worker is None else self._worker.slots_free
        waiting, shared = self._table.ready.waiting_for(types)
        return waiting - min(own, shared)

    def ready_for(self, types: Collection[str] | None, queues: Collection[str] | None) -> int:
        """Ready tasks of these types and queues; None: of any. Of types that nobody has named yet:
        none for now, and who waits is woken once their tasks have been found."""
        if types is not None and self._table.know(types):
            self._rebuild_heaps()
        return self._table.ready.waiting_for(types, queues)[0]

    def lend(self, limit: int, node: str, types: Collection[str] | None) -> Deferred[Sequence[Claim]]:
        """Claim for the worker of another node what this one's own has no slots for (section 8).

        The claim's own commit is the confirmation that the lease rests on: all of the effective set
        acknowledged it in this epoch after the question came, so no later primary promised before
        that."""
        if types is not None and self._table.know(types):
            self._rebuild_heaps()
        limit = min(limit, limits.HELP_CLAIMS_MAX, self.backlog(types))
        return self._take(limit, _ClaimRound(node, True, types=types, payload_bytes_left=limits.HELP_BYTES_MAX))

    def claim_for(self, ask: WorkerAsk, limit: int) -> Deferred[Sequence[Claim]]:
        """Claim for a remote worker; as with ``lend``, the claim's commit confirms its lease."""
        types = None if ask.types is None else frozenset(ask.types)
        if types is not None and self._table.know(types):
            self._rebuild_heaps()
        round_ = _ClaimRound(
            ask.worker, True, WorkerLease(ask.lease_ms, ask.claim_id), _turns(ask), ask.is_weighted,
            types=types, payload_bytes_left=limits.HELP_BYTES_MAX,
        )  # fmt: skip
        return self._take(min(limit, limits.WORKER_CLAIMS_MAX), round_)

    def _take(self, limit: int, round_: _ClaimRound) -> Deferred[Sequence[Claim]]:
        if not self._status.is_active or self._status.is_stopping or limit <= 0:
            return succeed([])
        cold = self._claim_resident(limit, round_)
        if not cold:
            return self._when_claimed(round_.claims, round_.places)
        done: Deferred[Sequence[Claim]] = Deferred()
        self._claim_cold(cold, round_, done)
        return done

    def _claim_resident(self, limit: int, round_: _ClaimRound) -> list[str]:
        """Claim what is in memory, by rank; returns the ids that are not."""
        ready = self._table.ready
        find = self._table.find
        cold: list[str] = []
        now_us = self._clock.wall_us()
        known = len(self._set_back)
        while len(round_.claims) + len(cold) < limit and round_.payload_bytes_left > 0:
            if len(self._set_back) - known >= SET_BACK_MAX:
                self._put_back_soon()
                break
            if len(round_.unfit) >= SET_BACK_MAX:
                break
            next_one = round_.pop(ready)
            if next_one is None:
                break
            slot = find(next_one[0])
            if slot is None:
                cold.append(next_one[0])
            else:
                self._claim_one(slot, now_us, round_)
        self._leave_unfit(round_)
        return cold

    def _leave_unfit(self, round_: _ClaimRound) -> None:
        unfit, round_.unfit = round_.unfit, []
        for pending in unfit:
            self._table.enqueue(pending)

    def _claim_one(self, slot: Slot, now_us: int, round_: _ClaimRound) -> None:
        pending = slot.row
        if pending is None or pending.state is not State.PENDING:
            return
        if pending.spec.id in self._ending:
            self._set_aside.add(pending.spec.id)
            return
        if self._table.ready.is_paused(pending.spec.queue, pending.spec.type):
            self._table.enqueue(pending)  # paused while its row was being read, or its heap made anew
            return
        if slot.partition in self._table.refusals:
            self._set_back.append(pending)  # no claims while it is handed over, or can't commit
            return
        if slot.partition not in round_.leased and self.lease_ms(slot.partition) > 0:
            round_.leased.add(slot.partition)
        if slot.partition not in round_.leased or self._may_be_ending(pending):
            # Nobody confirmed this primary yet: the attempt would be given back; or see there.
            self._set_back.append(pending)
            self._put_back_soon()
            return
        if not round_.takes(pending):
            round_.unfit.append(pending)
            return
        row = self._table.claim(slot, round_.node, now_us, round_.lease)
        if row is None:
            return
        spec = row.spec
        assert row.token is not None
        claim = claim_of(row)
        round_.claims.append(claim)
        if round_.is_lent:
            round_.payload_bytes_left -= len(spec.payload)
            if spec.tags:
                round_.payload_bytes_left -= _LETTER_BYTES * sum(map(len, (*spec.tags, *spec.tags.values())))
            if round_.lease is None:
                self.remote.grant(spec.id, row.token)
            else:
                self.of_workers.grant(row)
        else:
            self._claims[spec.id] = claim
        round_.places[slot.partition] = slot.sequence

    def _claim_cold(self, cold: list[str], round_: _ClaimRound, done: Deferred[Sequence[Claim]]) -> None:
        claims, places = round_.claims, round_.places

        def loaded(found: dict[str, Found]) -> None:
            now_us = self._clock.wall_us()
            round_.leased.clear()
            for slot in found.values():
                if isinstance(slot, Slot):
                    self._claim_one(slot, now_us, round_)
            self._leave_unfit(round_)
            # What there is goes out now; the worker asks again for the rest.
            if self._table.ready.has_any:
                self.wake()
            # While the rows were read a partition may have been lost, and led again: its log goes
            # on without those claims.
            leading = self._table.leading
            cut = [claim for claim in claims if leading.get(claim.partition) != claim.token.epoch]
            if cut:
                self._let_go_of_unstarted(cut)
                claims[:] = [claim for claim in claims if leading.get(claim.partition) == claim.token.epoch]
                kept = {claim.partition for claim in claims}
                for partition in set(places).difference(kept):
                    del places[partition]
            self._when_claimed(claims, places, done)

        self._table.load(cold).addCallbacks(loaded, done.errback)

    def _may_be_ending(self, pending: TaskRow) -> bool:
        """Ended under an earlier primary though its handler may still run, and to be tried again:
        only that one knew. Until then its lease may last, whose length the row keeps (section
        8)."""
        place = pending.partition, self._table.leading[pending.partition]
        if not pending.attempts or pending.spec.id in self._seen_to.get(place, ()):
            return False
        last, lease = pending.attempts[-1], pending.lease
        timed_out = lease is not None and last.error is not None and last.error.type == TIMEOUT
        if last.outcome != "cancelled" and not timed_out:
            return False
        over_ms = self._table.driver.cores[pending.partition].requeue_at_ms
        if over_ms is None:
            return True
        if lease is not None:
            over_ms += lease.lease_ms - limits.LEASE_MS
        return self._clock.now_ms() < over_ms

    def _when_claimed(
        self, claims: list[Claim], places: dict[int, int], out: Deferred[Sequence[Claim]] | None = None
    ) -> Deferred[Sequence[Claim]]:
        if out is None:
            out = Deferred()
        if not claims:
            if not out.called:
                out.callback(claims)
            return out
        wait = Wait(claims, self._clock.now_ms(), len(places), patient=True)
        deferred = out

        def committed(claims: Sequence[Claim]) -> None:
            if deferred.called:
                # Whoever asked has gone meanwhile; an attempt that nobody runs is given back.
                for claim in claims:
                    self.finish(claim, Released()).addErrback(lambda _: None)
            else:
                # One that was cancelled before its claim was committed is not even started.
                wanted = [claim for claim in claims if self._is_held(claim)]
                for claim in claims if len(wanted) < len(claims) else ():
                    if not self._is_held(claim):
                        self._ended(claim)
                deferred.callback(wanted)

        def stepped_down(why: Failure) -> None:
            self._let_go_of_unstarted(claims)
            if not deferred.called:
                deferred.callback([])

        waiting: Deferred[Any] = self._table.driver.when_committed(wait, places.items())
        waiting.addCallbacks(committed, stepped_down)
        return out

    def _let_go_of_unstarted(self, claims: Sequence[Claim]) -> None:
        """This node is no longer primary of one of theirs (R12). None of the attempts has begun."""
        for claim in claims:
            if self._is_held(claim):
                self._forget(claim)
                self.finish(claim, Released()).addErrback(lambda _: None)
            self._ended(claim)

    def _is_held(self, claim: Claim) -> bool:
        """Whether this node's worker still holds the claim, or one elsewhere does."""
        task_id, token = claim.task_id, claim.token
        is_elsewhere = self.remote.has_granted(task_id, token) or self.of_workers.holds(task_id, token)
        return self._claims.get(task_id) is claim or is_elsewhere

    def _forget(self, claim: Claim) -> None:
        held = self._claims.get(claim.task_id)
        if held is not None and held.token == claim.token:
            del self._claims[claim.task_id]
        self.remote.ended(claim.task_id, claim.token)
        self.of_workers.ended(claim.task_id, claim.token)

    # --- what a worker reports ---
    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        """See ``facade.TaskQueue.note``."""
        return self._report(claim, [Note(claim.token, notes.progress, notes.lines, notes.dropped)])

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        """As ``TaskQueue.finish``; the worker holds the attempt until its partition is active."""
        now_us = self._clock.wall_us()
        event: Event
        if isinstance(outcome, Completed):
            event = Complete(now_us, claim.token, outcome.result)
        elif isinstance(outcome, AttemptFailed):
            event = Fail(now_us, claim.token, outcome.error, outcome.retry_in_ms, outcome.final, self._settings.draw())
        elif isinstance(outcome, Lost):
            event = Lose(now_us, claim.token, self._settings.draw())
        else:
            event = Release(now_us, claim.token)
        if notes is None:
            return self._report(claim, (event,), is_end=True)
        return self._report(claim, (Note(claim.token, notes.progress, notes.lines, notes.dropped), event), is_end=True)

    def let_go(self, claim: Claim) -> None:
        """Forget an ended attempt of the worker here: its partition's primary has the report."""
        self._ended(claim)
        self._forget(claim)

    def _ended(self, claim: Claim) -> None:
        """The handler of a stopped attempt runs no more: its task may start again."""
        self._end_of(claim.task_id, claim.token)

    def _end_of(self, task_id: str, token: Token) -> None:
        if self._ending_elsewhere.get(task_id, (None, 0))[0] == token:
            del self._ending_elsewhere[task_id]
        if self._ending.get(task_id) != token:
            return
        del self._ending[task_id]
        if task_id in self._set_aside:
            self._set_aside.discard(task_id)
            self._table.load([task_id]).addCallbacks(self._enqueue_again, self._not_loaded)

    def _enqueue_again(self, found: dict[str, Found]) -> None:
        for slot in found.values():
            if isinstance(slot, Slot) and slot.row is not None:
                self._table.enqueue(slot.row)

    def _report(self, claim: Claim, events: Sequence[Event], *, is_end: bool = False) -> Deferred[None]:
        led = self._table.leading.get(claim.partition)
        if led is not None and led < claim.token.epoch:
            # A later primary granted the claim, so this node is deposed, and does not know yet.
            return fail(NotPrimary("a later primary granted this attempt", task_id=claim.task_id))
        slot = self._table.find(claim.task_id)
        if slot is None:
            return self._table.load([claim.task_id]).addCallback(self._report_found, claim, events, is_end)
        if is_end:
            self.let_go(claim)
        try:
            return self._change_found(slot, events)
        except TaskQueueError as why:
            return fail(why)

    def _report_found(
        self, found: dict[str, Found], claim: Claim, events: Sequence[Event], is_end: bool
    ) -> Deferred[None]:
        one = found[claim.task_id]
        if is_end and not isinstance(one, Elsewhere):
            self.let_go(claim)
        return self._change_found(existing(one, claim.task_id), events)

    def _change_found(self, slot: Slot, events: Sequence[Event]) -> Deferred[None]:
        if slot.row is None:
            raise StaleAttempt("the task has been purged")
        now_us = self._clock.wall_us()
        before = slot.row
        for event in events:
            if isinstance(event, Note) and before.state.is_final:
                continue  # the same news again: the ending below says whether it still counts
            self._table.change(slot, event, now_us)
        after = slot.row
        wait = Wait(None, self._clock.now_ms(), 1, after.spec.id)
        committed: Deferred[Any] | None = self._table.committed_wait(slot, wait)
        return succeed(None) if committed is None else committed

    def end_elsewhere(self, task_id: str, token: Token, lease_ms: int | None = None) -> None:
        """An attempt elsewhere no longer holds its task: nothing starts beside it until it has
        ended, or its lease has, in ``lease_ms`` at the latest."""
        self._see_to(task_id, token)
        self._ending_elsewhere[task_id] = (
            token,
            self._clock.now_ms() + (limits.LEASE_MS if lease_ms is None else lease_ms),
        )
        self.remote.ended(task_id, token)
        self.of_workers.ended(task_id, token)

    def _see_to(self, task_id: str, token: Token) -> None:
        """Let nothing of the task start until this attempt has ended."""
        self._ending[task_id] = token
        partition = self._table.partition_of(task_id)
        epoch = self._table.leading.get(partition)
        if epoch is not None and self._asks_for_earlier(partition, self._clock.now_ms()):
            self._seen_to.setdefault((partition, epoch), set()).add(task_id)

    def _asks_for_earlier(self, partition: int, now_ms: int) -> bool:
        """Whether an attempt of an earlier primary may still run."""
        over_ms = self._table.driver.cores[partition].requeue_at_ms
        return over_ms is None or now_ms < over_ms + limits.WORKER_LEASE_MS_MAX - limits.LEASE_MS

    def _forget_seen_to(self, now_ms: int) -> None:
        for partition, epoch in list(self._seen_to):
            if self._table.leading.get(partition) != epoch or not self._asks_for_earlier(partition, now_ms):
                del self._seen_to[partition, epoch]

    def stop_attempt(self, task_id: str, token: Token) -> None:
        """Tell the worker that the attempt no longer holds its task."""
        held = self._claims.get(task_id)
        if self._worker is not None:
            if held is not None and held.token == token:
                del self._claims[task_id]
                self._see_to(task_id, token)
            self._worker.stop_attempt(task_id, token)

    # --- attempts that run elsewhere (section 8) ---
    def hold(self, claims: Sequence[Claim]) -> None:
        """Take over claims that another node, their primary, has made for this node's worker."""
        for claim in claims:
            self._claims[claim.task_id] = claim

    def held_claims(self) -> list[Claim]:
        """The attempts that this node's worker runs, those of partitions led elsewhere too."""
        return list(self._claims.values())

    def _not_loaded(self, why: object) -> None:
        # The store is broken, the process about to end (R18); who waits hears it from the driver.
        _log.error("could not load rows: {why}", why=str(why), event="load_failed")

    # --- the safety net ---
    def safety_net(self) -> None:
        """Finds what an event missed: due tasks, and ready ones that nobody was woken for (F32)."""
        self.find_due()
        now_ms = self._clock.now_ms()
        for task_id, (token, until_ms) in list(self._ending_elsewhere.items()):
            if now_ms >= until_ms:
                self._end_of(task_id, token)
        self.remote.lose_overdue(now_ms)
        self._forget_seen_to(now_ms)
        self._enqueue_set_back()
        if self._table.ready.has_any or self._waiting is not None:
            self.wake()
        if self._table.has_stale_entries:
            self._rebuild_heaps()

    def _rebuild_heaps(self) -> None:
        Deferred.fromCoroutine(self._table.rebuild_heaps()).addErrback(self._not_loaded)

    def follow_handlers(self, own: Collection[str] | None, known: Collection[str]) -> None:
        """See ``LocalQueue.follow_handlers``."""
        self._table.follow_handlers(own, known)
        if self._table.ready.is_misplaced:
            self._rebuild_heaps()
        self.wake()

    def pause_types(self) -> None:
        """The types that are paused are others than before."""
        if self._table.pause_types():
            self._rebuild_heaps()
        self.wake()

    def _put_back_soon(self) -> None:
        if self._put_back_call is None and not self._stopped:
            self._put_back_call = self._clock.call_later(LEASE_AGAIN_S, self._put_back)

    def _put_back(self) -> None:
        self._put_back_call = None
        self._enqueue_set_back()
        if self._table.ready.has_any:
            self.wake()

    def _enqueue_set_back(self) -> None:
        set_back, self._set_back = self._set_back, []
        for row in set_back:
            if row.partition in self._table.leading:
                self._table.enqueue(row)

    def stop(self) -> None:
        self._stopped = True
        if self._due_call is not None:
            self._due_call.cancel()
            self._due_call = None
        if self._put_back_call is not None:
            self._put_back_call.cancel()
            self._put_back_call = None

    def lease_ms(self, partition: int) -> int:
        """How long an attempt claimed here may run from now, in ms (section 8); 0: no more."""
        now_ms = self._clock.now_ms()
        return max(0, self._table.driver.cores[partition].runs_until_ms(now_ms) - now_ms)
