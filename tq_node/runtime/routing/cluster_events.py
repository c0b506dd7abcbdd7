"""Watching committed transitions: of this node alone, or of all nodes in one stream.

For the cluster, every other member is asked for what is new, again and again. A node that does not
answer is asked again; what happened there meanwhile may be lost, and then its part begins with
``reset``. Ids are this node's own numbering."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from tq_node.cluster.records import ACCESS_LEVEL
from tq_node.facade import EventBatch, Subscription
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.node_state import NodeState
from tq_node.runtime.tasks.event_log import FROM_NOW
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId

WAIT_S = 5.0
"""How long a node may keep the question when it has nothing new."""
AGAIN_S = 0.25
"""Between two looks for members that are not being asked."""


class LocalEvents:
    """Watches the partitions that this node leads, also from before its queue is open."""

    def __init__(self, state: NodeState, observer: Callable[[EventBatch], None], after_id: int | None = None) -> None:
        self._observer = observer
        self._after_id = after_id
        self._when_open = state.when_open
        self._subscription: Subscription | None = None
        if state.local is None:
            self._when_open.append(self._begin)
        else:
            self._begin(state.local)

    def _begin(self, local: LocalQueue) -> None:
        self._subscription = local.events.watch(self._observer, self._after_id)

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
        elif self._begin in self._when_open:
            self._when_open.remove(self._begin)


class ClusterEvents:
    """The stream of all nodes' events at this node; its first event has the id ``first_id``."""

    def __init__(self, state: NodeState, observer: Callable[[EventBatch], None], clock: Clock, first_id: int) -> None:
        self._state = state
        self._observer = observer
        self._clock = clock
        self._next_id = first_id
        self._after: dict[NodeId, int] = {}
        """The newest event that each member has answered with, by that member's numbering."""
        self._asking: set[NodeId] = set()
        """Members that have not answered yet."""
        self._calls: set[IDelayedCall] = set()
        self._closed = False
        self._local = LocalEvents(state, lambda batch: self._pass_on(batch, state.node_name))
        self._look()

    def close(self) -> None:
        self._closed = True
        self._local.close()
        for call in list(self._calls):
            call.cancel()
        self._calls.clear()

    def _pass_on(self, batch: EventBatch, node: str) -> None:
        if self._closed or not (batch.transitions or batch.reset):
            return
        first = self._next_id
        self._next_id += max(1, len(batch.transitions))
        self._observer(EventBatch(first, batch.transitions, batch.reset, node))

    def _look(self) -> None:
        """Ask every member that is not being asked; again in a while, for members come and go."""
        for node, name in self._state.others():
            if node not in self._asking:
                self._ask(node, name)
        self._later(self._look)

    def _later(self, call: Callable[[], None]) -> None:
        def now() -> None:
            self._calls.discard(delayed)
            call()

        delayed = self._clock.call_later(AGAIN_S, now)
        self._calls.add(delayed)

    def _ask(self, node: NodeId, name: str) -> None:
        self._asking.add(node)
        question = calls.EventsAfter(self._after.get(node, FROM_NOW), WAIT_S)

        def answered(told: EventBatch | calls.EarlierEvents) -> None:
            batch = calls.events_of(told)
            self._asking.discard(node)
            self._after[node] = batch.first_id + len(batch.transitions) - 1
            if not self._closed:
                self._pass_on(batch, name)
                self._ask(node, name)

        def failed(_: Failure) -> None:
            self._asking.discard(node)  # asked again in a while

        kind = calls.EVENTS if self._state.map.feature_level < ACCESS_LEVEL else calls.EVENTS_WITH_MAKERS
        self._state.client.call_alone(node, kind, question, WAIT_S + calls.CALL_S).addCallbacks(answered, failed)
