"""Work stealing: a node with free slots claims tasks of a node that has more of them than it can
start (section 8).

Theory of operation. Each partition's tasks are claimed by its primary, so a node whose partitions
are idle would sit beside one whose line is long. It therefore claims there, in four steps:

1. *Offer.* A node with ready tasks beyond its own worker's free slots tells its peers how many
   (``WorkOffers``, on the other side), again and again while it is so. ``WorkStealer`` notes the
   offer and wakes its worker if a slot is free. A node that has offered nothing is never asked, so
   an idle cluster exchanges nothing.
2. *Request.* The worker claims as always. Where this node's own partitions have nothing for it,
   ``fill`` asks the node with the largest backlog, one request at a time to each, and the worker's
   claim waits for the answer for ``HELP_WAIT_MS`` at most.
3. *Grant.* The primary claims on the other's behalf, as for itself: an entry in its log, a token,
   an answer once committed. The attempt then runs here, and its lease is renewed at the primary
   (``LeaseRenewer``), as that of an attempt whose partition has moved away. The lease counts from
   when the request left, for the primary can't have confirmed it earlier.
4. *Give back.* What comes too late, or may not begin here any more (drained, paused, led here by
   now), is released at its primary at once; were that lost, the primary counts the attempt as lost
   when the lease expires.

Answers without a task are followed by pauses that double (``HELP_QUIET_MS_MAX`` at most), and an
offer is forgotten after ``HELP_OFFER_MS_MAX``: a backlog that others have taken costs little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.errors import TaskQueueError
from tq_node.facade import Claim, Worker, WorkerAsk
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.lease_renewal import LeaseRenewer
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId

_log = Logger(namespace="taskqueue.running")
Claims = Sequence[Claim]


class _Asked(msgspec.Struct):
    """What a peer was asked for on behalf of remote workers with the same types and queues."""

    tasks: int = 0
    """Asked for and not answered yet."""
    misses: int = 0
    """Answers in a row without a task, though there were some of their types: of other queues."""
    quiet_until_ms: int = 0
    """Not asked before then; monotonic."""


class _Loaded(msgspec.Struct):
    """A peer that has offered work."""

    backlog: int = 0
    """Ready tasks beyond what it can start, as it said last."""
    offered_ms: int = 0
    """When it said so last, or granted a claim; monotonic."""
    empty_answers: int = 0
    """Answers in a row without a task."""
    quiet_until_ms: int = 0
    """Not asked before then; monotonic."""
    is_asked: bool = False
    """A request for this node's own worker is on its way."""
    kinds: dict[object, _Asked] = {}
    """Of remote workers, by types and queues."""


class Claimant(Protocol):
    """The node that a ``WorkStealer`` claims for."""

    @property
    def worker(self) -> Worker | None:
        """None: it has not begun yet."""

    @property
    def may_help(self) -> bool:
        """Whether tasks of others may start here now."""

    def give_back(self, claims: Claims) -> None:
        """Give claims back to their primary: they are not run here."""

    def wake_waiting(self) -> None:
        """A peer has work: remote workers may wait for it here."""


class WorkStealer:
    """See the module's docstring."""

    def __init__(
        self, local: LocalQueue, client: PeerClient, leases: LeaseRenewer, clock: Clock, claimant: Claimant
    ) -> None:
        self.claimed = 0
        """Claims of other nodes' tasks that the worker here got."""
        self._local = local
        self._client = client
        self._leases = leases
        self._clock = clock
        self._claimant = claimant
        self._loaded: dict[NodeId, _Loaded] = {}
        self._was_refused_slot = False
        """A slot came free while all loaded peers were asked: the next grant wakes the worker."""
        self._waits: dict[Deferred[Claims], IDelayedCall] = {}
        self._stopped = False

    def offered(self, offer: calls.WorkOffer) -> None:
        """Note a peer's ready tasks beyond what it can start; wake the worker if a slot is free."""
        if self._stopped:
            return
        loaded = self._loaded.setdefault(offer.node, _Loaded())
        loaded.backlog, loaded.offered_ms = offer.backlog, self._clock.now_ms()
        self._claimant.wake_waiting()
        if self._clock.now_ms() < loaded.quiet_until_ms:
            return
        worker = self._claimant.worker
        if worker is not None and self._claimant.may_help and worker.slots_free > 0:
            worker.wake()

    def fill(self, own: Deferred[Claims], limit: int) -> Deferred[Claims]:
        """Return ``own``, claims of this node; if it has none, claims of the most loaded peer."""
        return own.addCallback(self._found, limit) if self._loaded else own

    def claim_for(self, ask: WorkerAsk, limit: int) -> Deferred[Claims] | None:
        """Claims for a remote worker at the most loaded peer, empty if it has none; None: there is
        no peer to ask. Several may be asked for at a time, for no more tasks than there are."""
        kind = ask.types, ask.queues
        node = None if self._stopped else self._most_loaded_for(kind)
        if node is None:
            return None
        loaded = self._loaded[node]
        asked = loaded.kinds.setdefault(kind, _Asked())
        asked.tasks += limit
        question = calls.ClaimFor(ask, limit)
        answer: Deferred[Any] = self._client.call_alone(node, calls.CLAIM_FOR, question, calls.CALL_S)

        def lent(grant: calls.ClaimGrant) -> Claims:
            asked.tasks -= limit
            self._settle_for(loaded, asked, len(grant.claims), grant.backlog)
            return grant.claims

        def refused(why: Failure) -> Claims:
            asked.tasks -= limit
            self._settle_for(loaded, asked, 0, loaded.backlog)
            why.trap(TaskQueueError)
            return ()

        return answer.addCallbacks(lent, refused)

    def _most_loaded_for(self, kind: object) -> NodeId | None:
        now_ms = self._clock.now_ms()
        best, most = None, 0
        for node, loaded in self._loaded.items():
            asked = loaded.kinds.get(kind)
            backlog = loaded.backlog if asked is None else loaded.backlog - asked.tasks
            is_heard = now_ms - loaded.offered_ms <= limits.HELP_OFFER_MS_MAX
            if backlog > most and is_heard and (asked is None or now_ms >= asked.quiet_until_ms):
                best, most = node, backlog
        return best

    def _settle_for(self, loaded: _Loaded, asked: _Asked, claims: int, backlog: int) -> None:
        """Note an answer. One without a task that says that there are none needs no pause: others
        were faster, and the next offer is news."""
        now_ms = self._clock.now_ms()
        loaded.backlog = backlog
        if claims:
            loaded.offered_ms, asked.misses = now_ms, 0
            if backlog > 0:
                self._claimant.wake_waiting()
        elif backlog > 0 and now_ms >= asked.quiet_until_ms:
            asked.misses += 1
            pause_ms = min(limits.WORKER_MISS_MS << min(asked.misses, 10), limits.HELP_QUIET_MS_MAX)
            asked.quiet_until_ms = now_ms + pause_ms

    def forget(self, node: NodeId) -> None:
        """Drop a peer's offer: it is gone, and another node leads its partitions by then."""
        self._loaded.pop(node, None)

    def stop(self) -> None:
        """Answer the claims that wait with nothing; what is granted later is given back."""
        self._stopped = True
        for out in list(self._waits):
            self._no_longer(out)

    # --- asking ---
    def _found(self, own: Claims, limit: int) -> Claims | Deferred[Claims]:
        worker = self._claimant.worker
        if worker is None or self._stopped or len(own) >= limit or not self._claimant.may_help:
            return own
        types = worker.types
        if types is not None and not types:
            return own
        node = self._most_loaded()
        if node is None:
            return own
        if own:
            worker.wake()  # its own begin now, and the slots that are left are asked for apart
            return own
        return self._ask(node, calls.ClaimRequest(self._local.node_name, limit, None if types is None else list(types)))

    def _most_loaded(self) -> NodeId | None:
        now_ms = self._clock.now_ms()
        best: NodeId | None = None
        for node, loaded in list(self._loaded.items()):
            if loaded.is_asked:
                self._was_refused_slot = True
            elif now_ms - loaded.offered_ms > limits.HELP_OFFER_MS_MAX and now_ms >= loaded.quiet_until_ms:
                del self._loaded[node]
            elif loaded.backlog <= 0 or now_ms < loaded.quiet_until_ms:
                continue
            elif best is None or loaded.backlog > self._loaded[best].backlog:
                best = node
        return best

    def _ask(self, node: NodeId, ask: calls.ClaimRequest) -> Deferred[Claims]:
        loaded = self._loaded[node]
        loaded.is_asked = True
        out: Deferred[Claims] = Deferred()
        self._waits[out] = self._clock.call_later(limits.HELP_WAIT_MS / 1000, self._no_longer, out)
        asked_ms = self._clock.now_ms()
        answer: Deferred[calls.ClaimGrant] = self._client.call_alone(node, calls.CLAIM, ask, calls.CALL_S)

        def lent(lent: calls.ClaimGrant) -> None:
            self._settle(loaded, len(lent.claims), lent.backlog)
            self._take(out, lent.claims, asked_ms)

        def refused(why: Failure) -> None:
            self._settle(loaded, 0, loaded.backlog)
            self._no_longer(out)
            why.trap(TaskQueueError)

        answer.addCallbacks(lent, refused).addErrback(_bug)
        return out

    def _settle(self, loaded: _Loaded, claims: int, backlog: int) -> None:
        now_ms = self._clock.now_ms()
        loaded.is_asked = False
        loaded.backlog = backlog
        if claims:
            loaded.offered_ms, loaded.empty_answers = now_ms, 0
        else:
            loaded.empty_answers += 1
            pause_ms = min(limits.HELP_OFFER_MS << min(loaded.empty_answers, 10), limits.HELP_QUIET_MS_MAX)
            loaded.quiet_until_ms = now_ms + pause_ms
        was_refused_slot, self._was_refused_slot = self._was_refused_slot, False
        worker = self._claimant.worker
        if claims and backlog > 0:
            self._claimant.wake_waiting()
            if was_refused_slot and worker is not None:
                worker.wake()

    def _take(self, out: Deferred[Claims], claims: Claims, asked_ms: int) -> None:
        """Answer the waiting claim with what may still begin here, and give back the rest. Since
        the request left, the wait may be over, a partition may have come here, a queue been paused,
        this node drained."""
        paused, paused_types = self._local.paused_queues(), self._local.paused_types()
        may_begin = out in self._waits and self._claimant.may_help
        taken: list[Claim] = []
        left: list[Claim] = []
        for claim in claims:
            is_held = claim.queue in paused or claim.task_type in paused_types
            fits = may_begin and not self._local.leads(claim.partition) and not is_held
            (taken if fits else left).append(claim)
        self._leases.granted(taken, asked_ms)
        self._local.claims.hold(taken)
        self.claimed += len(taken)
        self._no_longer(out, taken)
        if left:
            self._claimant.give_back(left)

    def _no_longer(self, out: Deferred[Claims], claims: Claims = ()) -> None:
        timer = self._waits.pop(out, None)
        if timer is None:
            return
        if timer.active():
            timer.cancel()
        out.callback(claims)


def _bug(why: Failure) -> None:
    _log.failure("claims at another node failed", failure=why, event="help_failed")
