"""An honest ``facade.TaskQueue`` in memory, for the side that HTTP sees: nothing durable, nothing run.

It is one node, and holds all tasks; others can be put beside it (``nodes``), of which ``members`` knows status and partitions.
Faults: ``fail_next`` makes the next call of a method fail (``item``: the next item of a batch); ``hold`` keeps calls from being
answered until ``release``. Tasks are moved by hand: ``start_task``, ``finish_task``, ``fail_task``, ``purge_task``;
``tell_elsewhere`` is what another node tells.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime

from tests.support.memory_cluster import CHALLENGE, MemoryCluster
from tests.support.memory_events import MemoryEvents
from tq_node import limits
from tq_node.errors import (
    AlreadyFinal,
    IdConflict,
    NoSuchTask,
    NoSuchToken,
    NoSuchType,
    NotFinal,
    NotRetryable,
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
    Extended,
    HandlersReloaded,
    HeldAttempt,
    Invitation,
    ListedTask,
    ListQuery,
    NodeHandlers,
    Notes,
    NotReadyReason,
    OpenOfMaker,
    Outcome,
    Read,
    ReadyNote,
    Stats,
    Submission,
    Subscription,
    TaskPage,
    TokenTable,
    TypeTable,
    Worker,
    WorkerAsk,
    WorkerGrant,
    WorkerSeen,
)
from tq_node.tokens import Asker, TokenEntry
from tq_node.types import (
    AttemptRecord,
    Backoff,
    ClusterView,
    HandledType,
    LogLine,
    PartitionView,
    PauseEntry,
    Progress,
    State,
    TaskError,
    TaskId,
    TaskRow,
    TaskSpec,
    Token,
    Transition,
    WaitsFor,
)

T = TypeVar("T")
_replace = msgspec.structs.replace


class MemoryQueue:
    def __init__(
        self,
        reactor: IReactorTime,
        node_name: str = "node-1",
        *,
        nodes: Sequence[str] | None = None,
        keep: int | None = None,
    ) -> None:
        """:param nodes: the cluster, this one among it; alone by default.
        :param keep: forget the oldest tasks beyond this number, for benchmarks.
        """
        self._reactor = reactor
        self._name = node_name
        self._keep = keep
        self.members = MemoryCluster(node_name, nodes or [node_name])
        self._numbers = itertools.count(1)
        self.rows: dict[str, TaskRow] = {}
        self.purged: dict[str, bytes] = {}
        self.unled: set[int] = set()
        """Partitions that nobody answers for."""
        self.paused: set[str] = set()
        self.paused_with: list[PauseEntry] = []
        self.types = TypeTable()
        self.reasons: list[NotReadyReason] = []
        self.queues_of_types: dict[str, str] = {}
        """What handlers say of types."""
        self.ready_notes: list[ReadyNote] = []
        self.node_handlers: list[NodeHandlers] = []
        self.tokens = TokenTable()
        self.waits: dict[str, list[WaitsFor]] = {}
        self.workers: dict[str, WorkerSeen] = {}
        self.worker_orders: dict[str, str] = {}
        self.calls: deque[str] = deque(maxlen=1_000)
        self.orders: deque[tuple[str, str]] = deque(maxlen=1_000)
        """What was ordered, and by which token."""
        self.held: list[Deferred[Any]] = []
        self.holding = False
        self.cancelled_calls = 0
        self._faults: dict[str, deque[Exception]] = {}
        self._own_events = MemoryEvents()
        self._all_events = MemoryEvents()
        self._waiters: dict[str, list[Deferred[Read]]] = {}

    @property
    def node_name(self) -> str:
        return self._name

    # --- faults ---
    def fail_next(self, method: str, *failures: Exception) -> None:
        self._faults.setdefault(method, deque()).extend(failures)

    def hold(self) -> None:
        self.holding = True

    def release(self) -> None:
        self.holding = False
        held, self.held = self.held, []
        for waiting in held:
            waiting.callback(None)

    def _fault(self, method: str) -> Exception | None:
        """Called by every method but ``node_name`` and ``paused_queues``, which ask nobody."""
        self.calls.append(method)
        faults = self._faults.get(method)
        return faults.popleft() if faults else None

    def _answer_now(self, method: str, work: Callable[[], T]) -> T:
        fault = self._fault(method)
        if fault is not None:
            raise fault
        return work()

    def _answer(self, method: str, work: Callable[[], Any]) -> Deferred[Any]:
        fault = self._fault(method)
        if fault is not None:
            return fail(fault)
        if self.holding:

            def cancelled(waiting: Deferred[Any]) -> None:
                self.cancelled_calls += 1
                self.held.remove(waiting)

            gate: Deferred[Any] = Deferred(cancelled)
            self.held.append(gate)
            return gate.addCallback(lambda _: work())
        return maybeDeferred(work)

    # --- submit ---
    def submit(self, submission: Submission) -> Deferred[Accepted]:
        return self._answer("submit", lambda: self._submit(submission))

    def submit_many(
        self, submissions: Sequence[Submission], *, has_more: bool = False
    ) -> Deferred[list[Accepted | TaskQueueError]]:
        def work() -> list[Accepted | TaskQueueError]:
            results: list[Accepted | TaskQueueError] = []
            for submission in submissions:
                try:
                    results.append(self._answer_now("item", partial(self._submit, submission)))
                except TaskQueueError as error:
                    results.append(error)
            return results

        return self._answer("submit_many", work)

    def _submit(self, sent: Submission) -> Accepted:
        now_us = self._now_us()
        task_id = sent.id
        if task_id is None:
            task_id = f"task-{next(self._numbers):032x}"
        elif task_id in self.rows:
            row = self.rows[task_id]
            if row.spec.content_hash != sent.content_hash:
                raise IdConflict("another task has this id", task_id=task_id)
            if (sent.own_only and row.spec.made_by != sent.made_by) or (
                sent.queue_only and row.spec.queue != sent.queue
            ):
                raise IdConflict("another token's task has this id", task_id=task_id)
            return Accepted(task_id, row.state, self._name, False)
        elif task_id in self.purged:
            if self.purged[task_id] != sent.content_hash:
                raise IdConflict("another task had this id", task_id=task_id)
            return Accepted(task_id, State.COMPLETED, self._name, False)
        run_at_us = now_us if sent.run_at_us is None else sent.run_at_us
        if sent.delay_us is not None:
            run_at_us = now_us + sent.delay_us
        spec = TaskSpec(
            TaskId(task_id),
            sent.type,
            sent.payload,
            sent.queue or "default",
            limits.PRIORITY_DEFAULT if sent.priority is None else sent.priority,
            sent.max_attempts or limits.MAX_ATTEMPTS_DEFAULT,
            sent.timeout_ms,
            sent.backoff or Backoff(),
            sent.tags,
            now_us,
            sent.content_hash,
            sent.made_by,
        )
        state = State.SCHEDULED if run_at_us > now_us else State.PENDING
        self._put(TaskRow(spec, 0, 1, state, run_at_us), None)
        if self._keep is not None and len(self.rows) > self._keep:
            del self.rows[next(iter(self.rows))]
        return Accepted(task_id, state, self._name, True)

    # --- moving tasks by hand ---
    def start_task(self, task_id: str) -> None:
        row = self.rows[task_id]
        self._move(
            row,
            State.PROCESSING,
            attempt=row.attempt + 1,
            started_us=self._now_us(),
            worker=self._name,
            token=Token(1, row.rev),
        )

    def finish_task(self, task_id: str, result: bytes = b'"done"') -> None:
        self._end(task_id, State.COMPLETED, result=result, error=None)

    def fail_task(self, task_id: str, error: TaskError) -> None:
        self._end(task_id, State.FAILED, result=None, error=error)

    def note_task(self, task_id: str, progress: Progress, lines: tuple[LogLine, ...], dropped: int) -> None:
        row = self.rows[task_id]
        self.rows[task_id] = _replace(
            row, progress=progress, log=row.log + lines, log_dropped=row.log_dropped + dropped
        )

    def purge_task(self, task_id: str) -> None:
        self.purged[task_id] = self.rows.pop(task_id).spec.content_hash

    def _end(self, task_id: str, state: State, *, result: bytes | None, error: TaskError | None) -> None:
        row, now_us = self.rows[task_id], self._now_us()
        record = AttemptRecord(row.attempt, self._name, row.started_us or now_us, now_us, state.label, error)
        self._move(row, state, ended_us=now_us, result=result, error=error, attempts=(*row.attempts, record))

    def _move(self, row: TaskRow, state: State, **changes: Any) -> TaskRow:
        return self._put(_replace(row, state=state, rev=row.rev + 1, **changes), row.state)

    def _put(self, row: TaskRow, before: State | None) -> TaskRow:
        self.rows[row.id] = row
        change = Transition(
            row.id, row.spec.type, row.spec.queue, before, row.state, row.attempt, row.partition, self._now_us(),
            row.spec.made_by,
        )  # fmt: skip
        self._own_events.tell(change)
        self._all_events.tell(change)
        if row.state.is_final:
            for waiter in self._waiters.pop(row.id, []):
                waiter.callback(Read(row, self._name))
        return row

    # --- one task ---
    def queue_of(self, task_type: str) -> str:
        return self.queues_of_types.get(task_type, "default")

    def open_of(self, maker: str) -> OpenOfMaker:
        queues = [row.spec.queue for row in self.rows.values() if row.spec.made_by == maker and not row.state.is_final]
        return OpenOfMaker(len(queues), tuple(set(queues)))

    def get(
        self, task_id: str, *, wait_s: float = 0.0, local: bool = False, asker: Asker | None = None
    ) -> Deferred[Read]:
        def work() -> Any:
            row = self._row(task_id, asker)
            if wait_s <= 0.0 or row.state.is_final:
                return Read(row, self._name, 0.0 if local else None, tuple(self.waits.get(row.id, ())))
            return self._wait(task_id, wait_s)

        return self._answer("get", work)

    def _wait(self, task_id: str, wait_s: float) -> Deferred[Read]:
        waiters = self._waiters.setdefault(task_id, [])

        def cancelled(waiter: Deferred[Read]) -> None:
            self.cancelled_calls += 1
            waiters.remove(waiter)

        waiter: Deferred[Read] = Deferred(cancelled)
        waiters.append(waiter)

        def late() -> None:
            waiters.remove(waiter)
            waiter.callback(Read(self._row(task_id), self._name))

        timer = self._reactor.callLater(wait_s, late)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return waiter.addBoth(over)

    def _row(self, task_id: str, asker: Asker | None = None) -> TaskRow:
        row = self.rows.get(task_id)
        if row is None and task_id in self.purged and not (asker is not None and asker.is_restricted):
            raise TaskPurged("the task ended long ago", task_id=task_id)
        if row is None or (asker is not None and not asker.may_know(row.spec.queue, row.spec.made_by)):
            raise NoSuchTask(f"there is no task {task_id}", task_id=task_id)
        return row

    def cancel(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        def work() -> TaskRow:
            row = self._row(task_id, asker)
            if row.state.is_final:
                raise AlreadyFinal(f"the task is {row.state.label}", task_id=task_id)
            return self._move(row, State.CANCELLED, ended_us=self._now_us())

        return self._answer("cancel", work)

    def retry(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        def work() -> TaskRow:
            row = self._row(task_id, asker)
            if row.state not in (State.FAILED, State.CANCELLED):
                raise NotRetryable(f"the task is {row.state.label}", task_id=task_id)
            return self._move(row, State.PENDING, attempt=0, ended_us=None, started_us=None, error=None, worker=None)

        return self._answer("retry", work)

    def purge(self, task_id: str, asker: Asker | None = None) -> Deferred[TaskRow]:
        def work() -> TaskRow:
            row = self._row(task_id, asker)
            if not row.state.is_final:
                raise NotFinal(f"the task is {row.state.label}", task_id=task_id)
            self.purge_task(task_id)
            return row

        return self._answer("purge", work)

    # --- many tasks ---
    def list(self, query: ListQuery) -> Deferred[TaskPage]:
        return self._answer("list", lambda: self._list(query))

    def _list(self, query: ListQuery) -> TaskPage:
        def wanted(value: object, among: frozenset[Any] | None, inverse: bool) -> bool:
            return among is None or (value in among) is not inverse

        def matches(row: TaskRow) -> bool:
            text = (query.text or "").lower()
            return (
                wanted(row.state, query.states, query.states_not)
                and wanted(row.spec.type, query.types, query.types_not)
                and wanted(row.spec.queue, query.queues, query.queues_not)
                and wanted(self._name, query.nodes, query.nodes_not)
                and query.role != "replica"
                and (text in row.id.lower() or text in row.spec.type.lower())
            )

        def place(row: TaskRow) -> tuple[int, str]:
            value = {"id": 0, "created_at": row.spec.created_us, "run_at": row.run_at_us, "priority": row.spec.priority}
            return value[query.sort], row.id

        def waits(row: TaskRow) -> bool:
            if query.waiting is None:
                return True
            kind, name = query.waiting
            return any(one.kind == kind and name in ("", one.name) for one in self.waits.get(row.id, ()))

        rows = sorted(
            (row for row in self.rows.values() if matches(row) and waits(row)), key=place, reverse=query.descending
        )
        after = query.cursor
        if after is not None:
            rows = [row for row in rows if (place(row) < after if query.descending else place(row) > after)]
        page = rows[: query.limit]
        more = place(page[-1]) if len(rows) > len(page) else None
        missing = self.members.missing() if query.cluster else []
        unled = sorted(self.unled) if query.cluster else []
        listed = [ListedTask(row, "primary", self._name, tuple(self.waits.get(row.id, ()))) for row in page]
        return TaskPage(listed, more, missing, unled)

    def stats(self, *, cluster: bool = False, queues: Collection[str] | None = None) -> Deferred[Stats]:
        def work() -> Stats:
            counts = [0] * len(State)
            for row in self.rows.values():
                counts[row.state] += queues is None or row.spec.queue in queues
            missing, unled = (self.members.missing(), sorted(self.unled)) if cluster else ([], [])
            return Stats(counts, [0] * len(State), missing, unled)

        return self._answer("stats", work)

    # --- queues, node, cluster ---
    def _order(self, order: str, by: str, work: Callable[[], Any]) -> Deferred[Any]:
        self.orders.append((order, by))
        return self._answer(order, work)

    def paused_queues(self) -> frozenset[str]:
        return frozenset(self.paused)

    def pause(self, entry: PauseEntry) -> Deferred[None]:
        def work() -> None:
            if entry.target == "queue":
                self.paused.add(entry.name)
            self.paused_with.append(entry)

        return self._order("pause", entry.by, work)

    def resume(self, target: str, name: str, by: str = "") -> Deferred[None]:
        def work() -> None:
            if target == "queue":
                self.paused.discard(name)
            self.paused_with = [one for one in self.paused_with if one.place != (target, name)]

        return self._order("resume", by, work)

    def pauses(self) -> Sequence[PauseEntry]:
        known = {one.place for one in self.paused_with}
        return [*(PauseEntry("queue", name) for name in self.paused if ("queue", name) not in known), *self.paused_with]

    def type_table(self) -> TypeTable:
        return self._answer_now("type_table", lambda: self.types)

    def put_type(self, entry: HandledType, by: str = "") -> Deferred[None]:
        def work() -> None:
            others = [known for known in self.types.put if known.type != entry.type]
            self.types = _replace(self.types, put=(*others, entry))

        return self._order("put_type", by, work)

    def delete_type(self, task_type: str, by: str = "") -> Deferred[None]:
        def work() -> None:
            left = tuple(known for known in self.types.put if known.type != task_type)
            if left == self.types.put:
                raise NoSuchType
            self.types = _replace(self.types, put=left)

        return self._order("delete_type", by, work)

    def announce_types(self, types: tuple[HandledType, ...], by: str = "") -> Deferred[None]:
        def work() -> None:
            self.types = _replace(self.types, announced=types)

        return self._order("announce_types", by, work)

    def watch(
        self, observer: Callable[[EventBatch], None], *, after_id: int | None = None, cluster: bool = False
    ) -> Subscription:
        events = self._all_events if cluster else self._own_events
        return self._answer_now("watch", lambda: events.watch(observer, after_id))

    def tell_elsewhere(self, change: Transition) -> None:
        """A transition of another node's primary."""
        self._all_events.tell(change)

    def tell_here(self, *changes: Transition) -> None:
        """Transitions of one commit of this node, without their rows."""
        self._own_events.tell(*changes)

    @property
    def watchers(self) -> int:
        return len(self._own_events.observers) + len(self._all_events.observers)

    def cluster(self) -> ClusterView:
        return self._answer_now("cluster", self.members.view)

    def partition_views(self) -> Sequence[PartitionView]:
        return self._answer_now("partition_views", lambda: list(self.members.partitions))

    def invite(self) -> Invitation:
        return self._answer_now("invite", self.members.invite)

    def challenge(self) -> str:
        return self._answer_now("challenge", lambda: CHALLENGE)

    def peers_for(self, challenge: bytes, proof: bytes) -> Sequence[str]:
        return self._answer_now("peers_for", lambda: self.members.peers_for(challenge, proof))

    def put_invitation(self, hash_: bytes, by: str = "") -> Deferred[int]:
        return self._order("put_invitation", by, lambda: self.members.put_invitation(hash_))

    def take_invitation(self, hash_: bytes) -> Deferred[Invitation]:
        return self._answer("take_invitation", lambda: self.members.take_invitation(hash_))

    def token_table(self) -> TokenTable:
        return self.tokens

    def put_token(self, entry: TokenEntry) -> Deferred[None]:
        return self._order("put_token", entry.created_by, lambda: self._put_token(entry))

    def _put_token(self, entry: TokenEntry) -> None:
        others = [known for known in self.tokens.tokens if known.name != entry.name]
        self.set_tokens(*others, entry)

    def revoke_token(self, name: str, by: str = "") -> Deferred[None]:
        def work() -> None:
            others = [known for known in self.tokens.tokens if known.name != name]
            if len(others) == len(self.tokens.tokens):
                raise NoSuchToken
            self.set_tokens(*others)

        return self._order("revoke_token", by, work)

    def set_tokens(self, *entries: TokenEntry) -> None:
        """From the first one on tokens are checked, as in a cluster."""
        known = self.tokens
        in_order = tuple(sorted(entries, key=lambda entry: entry.name))
        self.tokens = _replace(known, tokens=in_order, is_checked=True, is_fresh=True, version=known.version + 1)

    def drain(self, node: str, by: str = "") -> Deferred[None]:
        return self._order("drain", by, lambda: self.members.drain(node))

    def undrain(self, node: str, by: str = "") -> Deferred[None]:
        return self._order("undrain", by, lambda: self.members.undrain(node))

    def remove(self, node: str, by: str = "") -> Deferred[None]:
        return self._order("remove", by, lambda: self.members.remove(node))

    def rebalance(self, by: str = "") -> Deferred[None]:
        return self._order("rebalance", by, self.members.rebalance)

    def unsafe_recover(self, partition: int, node: str, by: str = "") -> Deferred[None]:
        return self._order("unsafe_recover", by, lambda: self.members.unsafe_recover(partition, node))

    def shutdown(self, node: str, by: str = "") -> Deferred[None]:
        return self._order("shutdown", by, lambda: self.members.shutdown(node))

    def not_ready(self) -> Sequence[NotReadyReason]:
        return self._answer_now("not_ready", lambda: self.reasons)

    def handlers(self) -> Sequence[NodeHandlers]:
        return self._answer_now("handlers", lambda: self.node_handlers)

    def reload_handlers(self) -> Deferred[HandlersReloaded]:
        return self._answer("reload_handlers", lambda: HandlersReloaded(["email"], ["email"], []))

    def handlers_changed(self) -> None: ...

    def notes(self) -> Sequence[ReadyNote]:
        return self._answer_now("notes", lambda: self.ready_notes)

    def backup(self) -> Deferred[Sequence[str]]:
        return self._answer("backup", lambda: ["/data/node-1/backups/1"])

    def oldest_pending_age_s(self) -> Deferred[dict[str, float]]:
        def work() -> dict[str, float]:
            ages: dict[str, float] = {}
            now_us = self._now_us()
            for row in self.rows.values():
                age = (now_us - row.run_at_us) / 1e6 if row.state is State.PENDING else 0.0
                ages[row.spec.queue] = max(ages.get(row.spec.queue, 0.0), age)
            return ages

        return self._answer("oldest_pending_age_s", work)

    # --- for work/: nothing runs here ---
    def attach(self, worker: Worker) -> None:
        raise NotImplementedError

    def claim(self, limit: int) -> Deferred[Sequence[Claim]]:
        raise NotImplementedError

    def finish(self, claim: Claim, outcome: Outcome, notes: Notes | None = None) -> Deferred[None]:
        def work() -> None:
            self._attempt(claim.task_id, claim.token)
            if notes is not None:
                self.note_task(claim.task_id, notes.progress or Progress(0), notes.lines, notes.dropped)
            if isinstance(outcome, Completed):
                self.finish_task(claim.task_id, outcome.result)
            elif isinstance(outcome, AttemptFailed):
                self.fail_task(claim.task_id, outcome.error)
            else:
                self._move(self.rows[claim.task_id], State.PENDING, token=None, worker=None)

        return self._answer("finish", work)

    def note(self, claim: Claim, notes: Notes) -> Deferred[None]:
        def work() -> None:
            self._attempt(claim.task_id, claim.token)
            self.note_task(claim.task_id, notes.progress or Progress(0), notes.lines, notes.dropped)

        return self._answer("note", work)

    def _attempt(self, task_id: str, token: Token) -> TaskRow:
        row = self.rows.get(task_id)
        if row is None or row.state is not State.PROCESSING or row.token != token:
            raise StaleAttempt(task_id=task_id)
        return row

    def lease_ms(self, claim: Claim) -> int:
        raise NotImplementedError

    def claim_for(
        self, ask: WorkerAsk, limit: int, wait_s: float, *, slots: int = 0, version: str = ""
    ) -> Deferred[WorkerGrant]:
        """Answers at once, whatever ``wait_s`` says."""
        queues = None if ask.queues is None else {name for name, _ in ask.queues}

        def is_wanted(row: TaskRow) -> bool:
            is_of_queue = queues is None or row.spec.queue in queues
            return row.state is State.PENDING and is_of_queue and (ask.types is None or row.spec.type in ask.types)

        def work() -> WorkerGrant:
            self.workers[ask.worker] = WorkerSeen(ask.worker, slots=slots, types=ask.types, version=version)
            state = self.worker_orders.get(ask.worker, "run")
            wanted = [row.id for row in self.rows.values() if is_wanted(row)] if state == "run" else []
            for task_id in wanted[:limit]:
                self.start_task(task_id)
            return WorkerGrant(state, [_claim_of(self.rows[task_id]) for task_id in wanted[:limit]])

        return self._answer("claim_for", work)

    def extend(self, worker: str, held: Sequence[HeldAttempt]) -> Deferred[Sequence[Extended | TaskQueueError]]:
        def one(attempt: HeldAttempt) -> Extended:
            row = self.rows.get(attempt.task_id)
            holds = row is not None and row.state is State.PROCESSING and row.token == attempt.token
            return Extended(15_000 if holds else 0, row is not None and row.state is State.CANCELLED)

        return self._answer("extend", lambda: [one(attempt) for attempt in held])

    def remote_workers(self) -> Deferred[Sequence[WorkerSeen]]:
        return self._answer("remote_workers", lambda: list(self.workers.values()))

    def order_worker(self, worker: str, state: str) -> Deferred[None]:
        return self._answer("order_worker", lambda: self.worker_orders.update({worker: state}))

    def _now_us(self) -> int:
        return int(self._reactor.seconds() * 1_000_000)


def _claim_of(row: TaskRow) -> Claim:
    assert row.token is not None
    return Claim(
        row.id, row.spec.type, row.spec.payload, row.partition, row.attempt, row.token, row.spec.timeout_ms, row.spec.queue,
        row.spec.max_attempts, 0, row.spec.created_us, row.spec.tags,
    )  # fmt: skip
