"""Remote workers that speak to this node, their *gateway*: which wait for work, and what operators
want of them.

Theory of operation. A remote worker may ask any node, and another one each time, so a gateway keeps
nothing that matters: claims and leases are the primaries' (``tasks.worker_attempts``).

1. *Claim.* A request waits in a line, one for each set of types and queues. Where there is work of
   partitions led here the first in line gets a share of it, so that all that wait get some; else a
   node is asked that has offered work (``WorkStealer.claim_for``), as for this node's own worker.
2. *Again.* A request may be repeated, by its claim id, at another node too: all nodes are asked
   what that id was granted before anything is claimed for it, and those leases are extended.
3. *Extend and end* go to the primary of each task's partition.
4. *Orders* (quiet, stop) and the news that an attempt was cancelled go to all nodes: the worker
   waits at one of them, and is answered at once.

What is announced of this node's handlers includes the types of the remote workers that were here
lately, so that work is offered to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.handlers import ANY
from tq_node.cluster.records import WORKERS_LEVEL
from tq_node.errors import Busy, Draining, NotPrimary, TaskQueueError, Upgrading
from tq_node.facade import Claim, Extended, HeldAttempt, WorkerAsk, WorkerGrant, WorkerSeen
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.deadlines import Deadlines
from tq_node.runtime.routing.node_state import NodeState
from tq_node.runtime.routing.scatter import Covered, Entry
from tq_node.runtime.routing.work_stealing import WorkStealer
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import Announced, HandledType, HandlerKind, NodeId, Token

_log = Logger(namespace="taskqueue.running")
T = TypeVar("T")
RUN, STOP = "run", "stop"
STATES = (RUN, "quiet", STOP)
Kind = tuple[tuple[str, ...] | None, tuple[tuple[str, int], ...] | None]
"""Types and queues of a request."""


class _Wait(msgspec.Struct, eq=False):
    """A request for work that waits."""

    ask: WorkerAsk
    limit: int
    until_ms: int
    """When it is answered empty, monotonic."""
    answer: Deferred[Sequence[Claim]]
    asked_ms: int
    """When work was last asked for on its behalf, monotonic."""
    is_asking: bool = False
    is_gone: bool = False
    """Whoever sent it has gone without an answer."""
    looks: int = 0
    """How often it had been looked for work when it last asked for some."""
    is_overdue: bool = False
    is_called: bool = False
    """It is to be answered as soon as nothing is asked on its behalf."""
    heirs: list[Deferred[Sequence[Claim]]] = []
    """Repeats of the request: they get what it is still granted."""

    @property
    def kind(self) -> Kind:
        return self.ask.types, self.ask.queues

    @property
    def id(self) -> tuple[str, str]:
        return self.ask.worker, self.ask.claim_id


class RemoteWorkers:
    """See the module.

    :param changed: the types of the remote workers here may have changed."""

    def __init__(self, state: NodeState, clock: Clock, changed: Callable[[], None]) -> None:
        self._state = state
        self._clock = clock
        self._changed = changed
        self._lines: OrderedDict[Kind, OrderedDict[_Wait, None]] = OrderedDict()
        """Those that wait and for whom nothing is asked now, the first in line first; the line that
        was served last is the last one."""
        self._waits: dict[str, dict[_Wait, None]] = {}
        """All that wait, by worker."""
        self._ids: dict[tuple[str, str], _Wait] = {}
        """Requests by worker and claim id, from when they come until they are answered."""
        self._until: Deadlines[_Wait] = Deadlines()
        self._requests = 0
        """How many are not answered yet."""
        self._looks = 0
        """How often it was looked for work, for any of them."""
        self._known: OrderedDict[str, WorkerSeen] = OrderedDict()
        """Workers by name, the one not seen for longest first."""
        self._orders: OrderedDict[str, calls.WorkerOrder] = OrderedDict()
        """The latest by worker."""
        self._stealer: WorkStealer | None = None
        self._give_back: Callable[[Sequence[Claim]], None] = lambda _: None
        self._dispatch_call: IDelayedCall | None = None
        self._loop: Loop | None = None
        self._types: frozenset[str] | None = frozenset()
        self._has_stopped = False

    # --- life ---
    def begin(self, local: LocalQueue, stealer: WorkStealer, give_back: Callable[[Sequence[Claim]], None]) -> None:
        """The queue of this node is open. ``give_back``: claims that nobody runs, to their
        primaries."""
        self._stealer = stealer
        self._give_back = give_back
        local.claims.attach_waiting(self)
        self._loop = self._clock.every(limits.WORKER_LOOK_S, self._look, "looking at waiting workers")

    def connected(self, node: NodeId) -> None:
        """It may have been started anew, and know no orders."""
        if self._state.map.feature_level >= WORKERS_LEVEL:
            for order in self._orders.values():
                self._state.client.call(node, calls.WORKER_ORDER, order).addErrback(lambda _: None)

    def refuse(self) -> None:
        """Answer all that wait, with nothing; who asks from now on hears that the node stops."""
        self._has_stopped = True
        for waits in list(self._waits.values()):
            for wait in list(waits):
                self._finish(wait, ())

    async def stop(self) -> None:
        """Look at nothing any more."""
        self.refuse()
        if self._dispatch_call is not None:
            self._dispatch_call.cancel()
            self._dispatch_call = None
        if self._loop is not None:
            self._loop.stop()
            await self._loop.ended

    # --- claiming ---
    def claim_for(
        self, ask: WorkerAsk, limit: int, wait_s: float, *, slots: int = 0, version: str = ""
    ) -> Deferred[WorkerGrant]:
        """See ``facade.TaskQueue.claim_for``."""
        try:
            self._must_know_workers()
            self._state.must_serve()
        except TaskQueueError as why:
            return fail(why)
        if self._has_stopped or self._state.is_stopping:
            return fail(Draining())
        if self._requests >= limits.WORKER_WAITS_MAX:
            return fail(Busy("too many workers wait for work"))
        self._seen(ask, slots, version)
        begun_ms = self._clock.now_ms()
        if self._state_of(ask.worker) == STOP:
            wait_s = min(wait_s, limits.WORKER_STOP_WAIT_S)  # it is to hear of it soon
        wait = _Wait(ask, limit, begun_ms + int(wait_s * 1000), Deferred(), begun_ms)
        return Deferred.fromCoroutine(self._claim_for(wait, begun_ms))

    async def _claim_for(self, wait: _Wait, begun_ms: int) -> WorkerGrant:
        self._requests += 1
        try:
            earlier = self._withdrawn(wait.id)  # nobody reads its answer
            self._ids[wait.id] = wait
            self._waits.setdefault(wait.ask.worker, {})[wait] = None
            if wait.ask.claim_id:
                claims = await self._claimed_before(wait.ask, earlier)
                if claims:
                    return WorkerGrant(self._state_of(wait.ask.worker), claims)
            if not wait.answer.called:
                self._begin_to_wait(wait)
            granted = await wait.answer
        except CancelledError:
            wait.is_gone = True
            raise
        finally:
            self._requests -= 1
            self._leave(wait)
        return WorkerGrant(self._state_of(wait.ask.worker), granted, (wait.asked_ms - begun_ms) / 1000)

    def _begin_to_wait(self, wait: _Wait) -> None:
        self._until.set(wait, wait.until_ms)
        self._stand_in_line(wait)
        self.wake()
        if wait.until_ms <= self._clock.now_ms():
            # Nobody waits for what may come: one look, and what it finds.
            self._clock.call_later(0, self._give_up, wait)

    def _give_up(self, wait: _Wait) -> None:
        if not wait.is_asking:
            self._finish(wait, ())

    def _stand_in_line(self, wait: _Wait, *, is_first: bool = False) -> None:
        if self._state_of(wait.ask.worker) == RUN:
            line = self._lines.setdefault(wait.kind, OrderedDict())
            line[wait] = None
            if is_first:
                line.move_to_end(wait, last=False)

    def _leave_line(self, wait: _Wait) -> None:
        line = self._lines.get(wait.kind)
        if line is not None and wait in line:
            del line[wait]
            if not line:
                del self._lines[wait.kind]

    def wake(self) -> None:
        """See ``claims.RemoteDemand``."""
        if self._dispatch_call is None and self._waits and not self._has_stopped:
            lines = len(self._lines)
            after_s = lines * limits.WORKER_LINE_S if lines > limits.WORKER_LINES_AT_ONCE else 0
            self._dispatch_call = self._clock.call_later(after_s, self._dispatch)

    def _dispatch(self) -> None:
        """Give what is ready here to those that wait, as many as there are tasks for."""
        self._dispatch_call = None
        self._looks += 1
        local = self._state.local
        if local is None or self._has_stopped:
            return
        for kind in list(self._lines):
            types, queues = kind
            named = None if queues is None else frozenset(queue for queue, _ in queues)
            ready = local.claims.ready_for(None if types is None else frozenset(types), named)
            shares: list[tuple[_Wait, int]] = []
            line = self._lines[kind]
            while ready > 0 and line:
                wait = next(iter(line))
                share = min(wait.limit, max(1, -(-ready // len(line))))
                ready -= share
                shares.append((wait, share))
                del line[wait]
            if not line:
                del self._lines[kind]
            elif shares:
                self._lines.move_to_end(kind)
            for wait, share in shares:
                self._ask(wait, local.claims.claim_for(wait.ask, share))
        self._steal()

    def _steal(self) -> None:
        """Ask nodes that have offered work, each for one of those that still wait."""
        if self._stealer is None:
            return
        for kind in list(self._lines):
            while kind in self._lines:
                wait = next(iter(self._lines[kind]))
                asked = self._stealer.claim_for(wait.ask, wait.limit)
                if asked is None:
                    break
                self._leave_line(wait)
                self._ask(wait, asked)

    def is_waited_for(self, queue: str, task_type: str) -> bool:
        """Whether a worker waits here that takes such a task."""
        return any(
            (types is None or task_type in types) and (queues is None or any(name == queue for name, _ in queues))
            for types, queues in self._lines
        )

    def _ask(self, wait: _Wait, claims: Deferred[Sequence[Claim]]) -> None:
        wait.is_asking, wait.asked_ms, wait.looks = True, self._clock.now_ms(), self._looks
        claims.addCallbacks(self._claimed, self._not_claimed, (wait,), {}, (wait,)).addErrback(_bug)

    def _claimed(self, claims: Sequence[Claim], wait: _Wait) -> None:
        wait.is_asking = False
        heirs, wait.heirs = wait.heirs, []
        for heir in heirs:
            heir.callback(claims)
        if wait.answer.called:
            self._leave(wait)
            # Who has gone may come again for them, with its claim id.
            if claims and not heirs and not (wait.is_gone and wait.ask.claim_id):
                self._give_back(claims)
        elif claims or wait.is_called or self._clock.now_ms() >= wait.until_ms:
            self._finish(wait, claims)
        else:
            self._stand_in_line(wait, is_first=True)
            if self._looks > wait.looks:
                self.wake()  # something came meanwhile, and this one was not thought of

    def _not_claimed(self, why: Failure, wait: _Wait) -> None:
        self._claimed((), wait)
        why.trap(TaskQueueError, CancelledError)

    def _finish(self, wait: _Wait, claims: Sequence[Claim]) -> None:
        self._leave(wait)
        if not wait.answer.called:
            wait.answer.callback(claims)

    def _leave(self, wait: _Wait) -> None:
        """Forget a request that is answered, or gone."""
        if self._ids.get(wait.id) is wait and not wait.is_asking:
            del self._ids[wait.id]
        self._until.discard(wait)
        self._leave_line(wait)
        waits = self._waits.get(wait.ask.worker)
        if waits is not None and waits.pop(wait, self) is None and not waits:
            del self._waits[wait.ask.worker]

    def _look(self) -> None:
        now_ms = self._clock.now_ms()
        for wait in self._until.pop_due(now_ms):
            if wait.is_asking and not wait.is_overdue:
                wait.is_overdue = True
                self._until.set(wait, now_ms + int(limits.WORKER_ANSWER_S * 1000))
            else:
                self._finish(wait, ())
        self._forget(self._clock.wall_us() - int(limits.WORKER_FORGOTTEN_S * 1_000_000))

    # --- the same claim id again ---
    async def _claimed_before(self, ask: WorkerAsk, earlier: Deferred[Sequence[Claim]]) -> list[Claim]:
        """What the id was granted at any node, with leases extended from now on. A partition that
        nobody answers for is waited for."""
        found: dict[tuple[str, Token], Claim] = {_key(claim): claim for claim in await earlier}
        question = calls.ClaimedBefore(ask.worker, ask.claim_id)
        give_up_ms = self._clock.now_ms() + int(limits.WORKER_AGAIN_S * 1000)
        while True:
            covered = Covered(self._entries)
            local = self._state.must_serve()
            asked: list[tuple[NodeId, Deferred[Any]]] = [(self._state.node_id, _booked(local, question))]
            for node, _ in self._others_up():
                asked.append((node, self._state.client.call(node, calls.CLAIMED_BEFORE, question)))
            for _, answer in asked:
                answer.addErrback(_is_refused)
            for node, answer in asked:
                known: calls.ClaimsBefore | None = await answer
                if known is not None:
                    covered.add(known.led, node)
                    found.update((_key(claim), claim) for claim in known.claims)
            if not covered.missing() or self._clock.now_ms() >= give_up_ms or self._has_stopped:
                break
            await self._clock.pause(limits.WORKER_AGAIN_LOOK_S)
        return await self._extended(ask.worker, list(found.values()))

    def _entries(self) -> Sequence[Entry]:
        return [(entry.primary, int(entry.epoch)) for entry in self._state.map.partitions]

    async def _extended(self, worker: str, claims: list[Claim]) -> list[Claim]:
        """Those of the claims that hold still, their leases extended."""
        if not claims:
            return claims
        held = [HeldAttempt(claim.task_id, claim.partition, claim.attempt, claim.token) for claim in claims]
        extended = await self.extend(worker, held)
        return [
            claim
            for claim, result in zip(claims, extended, strict=True)
            if isinstance(result, Extended) and result.lease_ms > 0
        ]

    def claimed_here(self, worker: str, claim_id: str) -> Deferred[calls.ClaimsBefore]:
        """See ``peer_server.Workers``."""
        return Deferred.fromCoroutine(self._claimed_here(calls.ClaimedBefore(worker, claim_id)))

    async def _claimed_here(self, asked: calls.ClaimedBefore) -> calls.ClaimsBefore:
        claims = await self._withdrawn((asked.worker, asked.claim_id))
        known = await _booked(self._state.must_serve(), asked)
        return calls.ClaimsBefore([*claims, *known.claims], known.led)

    def _withdrawn(self, id_: tuple[str, str]) -> Deferred[Sequence[Claim]]:
        """Answer a request that has been sent again, maybe at another node; returns what is being
        claimed for it."""
        wait = self._ids.pop(id_, None)
        if wait is None:
            return succeed(())
        claims: Deferred[Sequence[Claim]] = succeed(())
        if wait.is_asking and wait.ask.claim_id:
            claims = Deferred()
            wait.heirs.append(claims)
        self._finish(wait, ())
        return claims

    def _others_up(self) -> list[tuple[NodeId, str]]:
        return [(node, name) for node, name in self._state.others() if self._state.map.nodes[node].is_up]

    # --- extending ---
    def extend(self, worker: str, held: Sequence[HeldAttempt]) -> Deferred[Sequence[Extended | TaskQueueError]]:
        """See ``facade.TaskQueue.extend``."""
        try:
            self._must_know_workers()
            self._state.must_serve()
        except TaskQueueError as why:
            return fail(why)
        seen = self._known.get(worker)
        if seen is not None:
            self._known[worker] = msgspec.structs.replace(seen, seen_us=self._clock.wall_us())
            self._known.move_to_end(worker)
        results: list[Extended | TaskQueueError] = [NotPrimary("the task's partition has no primary for now")] * len(
            held
        )
        places: dict[int, list[int]] = {}
        for place, one in enumerate(held):
            if one.partition == self._state.partition_of(one.task_id):
                places.setdefault(one.partition, []).append(place)
            else:
                results[place] = Extended(0)  # the token is of another task
        asked = [self._extend_of(worker, number, held, of_it, results) for number, of_it in places.items()]
        return _all_of(asked).addCallback(lambda _: results)

    def _extend_of(
        self,
        worker: str,
        partition: int,
        held: Sequence[HeldAttempt],
        places: Sequence[int],
        results: list[Extended | TaskQueueError],
    ) -> Deferred[None]:
        """Extend the attempts of one partition, and note the outcome of each."""
        mine = [held[place] for place in places]

        def extended(found: Sequence[Extended]) -> None:
            for place, result in zip(places, found, strict=True):
                results[place] = result

        def refused(why: Failure) -> None:
            error = why.value
            if not isinstance(error, TaskQueueError):
                why.raiseException()
            for place in places:
                results[place] = calls.for_task(error, held[place].task_id)

        try:
            done = self._extend_at_primary(worker, partition, mine)
        except TaskQueueError as why:
            done = fail(why)
        return done.addCallbacks(extended, refused)

    def _extend_at_primary(self, worker: str, partition: int, held: list[HeldAttempt]) -> Deferred[list[Extended]]:
        """:raises TaskQueueError: there is nobody to ask."""
        local = self._state.must_serve()
        primary = self._state.primary_of(held[0].task_id, partition)
        if primary == self._state.node_id:
            return local.extend(partition, worker, held)
        return self._state.client.call(primary, calls.EXTEND, calls.Extend(partition, worker, held))

    # --- orders, and who there is ---
    def order(self, worker: str, state: str) -> Deferred[None]:
        """See ``facade.TaskQueue.order_worker``."""
        try:
            self._must_know_workers()
        except TaskQueueError as why:
            return fail(why)
        return self.tell(worker, state)

    def tell(self, worker: str, state: str = "") -> Deferred[None]:
        """Have a worker that waits at any node be answered, and be told ``state`` from now on."""
        order = calls.WorkerOrder(worker, state, self._clock.wall_us())
        self.ordered(order)
        told = [
            self._state.client.call(node, calls.WORKER_ORDER, order).addErrback(lambda _: None)
            for node, _ in self._others_up()
        ]
        return _all_of(told).addCallback(lambda _: None)

    def ordered(self, order: calls.WorkerOrder) -> None:
        """Take an order of another node's, or of this one."""
        if order.state in STATES:
            known = self._orders.get(order.worker)
            if known is not None and known.at_us >= order.at_us:
                return
            self._orders[order.worker] = order
            self._orders.move_to_end(order.worker)
            if len(self._orders) > limits.WORKERS_KNOWN_MAX:
                self._orders.popitem(last=False)
        for wait in list(self._waits.get(order.worker, ())):
            if wait.is_asking:
                wait.is_called = True
            else:
                self._finish(wait, ())

    def workers(self) -> Deferred[Sequence[WorkerSeen]]:
        """See ``facade.TaskQueue.remote_workers``."""
        try:
            self._must_know_workers()
            own = self.seen_here()
        except TaskQueueError as why:
            return fail(why)
        asked: list[Deferred[Sequence[WorkerSeen]]] = [succeed(own)]
        for node, _ in self._others_up():
            asked.append(self._state.client.call(node, calls.REMOTE_WORKERS, calls.NOTHING).addErrback(lambda _: ()))
        return _all_of(asked).addCallback(_merged)

    def seen_here(self) -> Sequence[WorkerSeen]:
        """The remote workers that this node knows."""
        counts = self._state.must_serve().claims.of_workers.counts()
        known = {
            name: msgspec.structs.replace(seen, state=self._state_of(name), busy=counts.pop(name, 0))
            for name, seen in self._known.items()
        }
        return [*known.values(), *(WorkerSeen(name, self._state_of(name), busy=busy) for name, busy in counts.items())]

    def _state_of(self, worker: str) -> str:
        order = self._orders.get(worker)
        return RUN if order is None else order.state

    def _seen(self, ask: WorkerAsk, slots: int, version: str) -> None:
        queues = None if ask.queues is None else tuple(queue for queue, _ in ask.queues)
        self._known[ask.worker] = WorkerSeen(
            ask.worker, RUN, slots, 0, ask.types, queues, version, self._clock.wall_us(), self._state.node_name
        )
        self._known.move_to_end(ask.worker)
        if len(self._known) > limits.WORKERS_KNOWN_MAX:
            self._known.popitem(last=False)
        if not self._takes_all_of(ask):
            self._follow_types()

    def _takes_all_of(self, ask: WorkerAsk) -> bool:
        return self._types is None or (ask.types is not None and self._types.issuperset(ask.types))

    def _forget(self, before_us: int) -> None:
        forgotten = []
        for name, seen in self._known.items():
            if seen.seen_us >= before_us:
                break
            if name not in self._waits:
                forgotten.append(name)
        for name in forgotten:
            del self._known[name]
        if forgotten:
            self._follow_types()

    # --- their types ---
    def _follow_types(self) -> None:
        types: set[str] = set()
        takes_any = False
        for seen in self._known.values():
            takes_any = takes_any or seen.types is None
            types.update(seen.types or ())
        now = None if takes_any else frozenset(sorted(types)[: limits.HANDLED_TYPES_MAX])
        if now != self._types:
            self._types = now
            self._changed()

    @property
    def types(self) -> frozenset[str] | None:
        """Types that remote workers here take; None: any."""
        return self._types

    def announced_with(self, own: Announced) -> Announced:
        """The handlers of this node's own worker, and the types of remote ones."""
        if self._types is not None and not self._types:
            return own
        more = (ANY,) if self._types is None else sorted(self._types)
        # Stand-ins run nothing where a remote worker has handlers.
        kept = own.handled if own.kind is HandlerKind.OWN else ()
        known = {handled.type for handled in kept}
        handled = (*kept, *(HandledType(name) for name in more if name not in known))
        return Announced(HandlerKind.OWN, handled[: limits.HANDLED_TYPES_MAX])

    def _must_know_workers(self) -> None:
        if self._state.map.feature_level < WORKERS_LEVEL:
            raise Upgrading("workers: not every node of the cluster knows remote workers yet")


def _merged(seen: Sequence[Sequence[WorkerSeen]]) -> Sequence[WorkerSeen]:
    """Each worker once: as the node knows it that saw it last, with all that it holds."""
    merged: dict[str, WorkerSeen] = {}
    for one in (worker for of_node in seen for worker in of_node):
        known = merged.get(one.worker)
        if known is None:
            merged[one.worker] = one
            continue
        newer = one if one.seen_us > known.seen_us else known
        merged[one.worker] = msgspec.structs.replace(newer, busy=one.busy + known.busy)
    return [merged[name] for name in sorted(merged)]


def _all_of(parts: Sequence[Deferred[T]]) -> Deferred[list[T]]:
    """The results of parts that don't fail. A caller that goes away cancels none of them."""
    done: Deferred[list[T]] = Deferred()
    gatherResults(parts).addCallbacks(done.callback, lambda why: done.errback(why.value.subFailure))
    return done


def _key(claim: Claim) -> tuple[str, Token]:
    return claim.task_id, claim.token


def _booked(local: LocalQueue, asked: calls.ClaimedBefore) -> Deferred[calls.ClaimsBefore]:
    """What was granted of partitions led here."""
    attempts = local.claims.of_workers
    led = attempts.known_of()
    found = attempts.claimed_before(asked.worker, asked.claim_id)
    return found.addCallback(lambda claims: calls.ClaimsBefore(claims, led))


def _is_refused(why: Failure) -> None:
    """It is asked again, or its partitions are led by another node soon."""
    why.trap(TaskQueueError)


def _bug(why: Failure) -> None:
    _log.failure("claims for a remote worker failed", failure=why, event="claim_for_failed")
