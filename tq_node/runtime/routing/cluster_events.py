"""The events of all nodes in one stream: every other member is asked for what is new, again and again.

A node that does not answer is asked again; what it said meanwhile may be lost, and then its part begins with ``reset``. Ids are
this node's own numbering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from tq_node.facade import EventBatch, Subscription
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.event_log import FROM_NOW
from tq_node.types import NodeId

WAIT_S = 5.0
"""How long a node may keep the question when it has nothing new."""
AGAIN_S = 0.25


class ClusterEvents:
    """:param members: ids and names of the other members, as they are now.

    :param local: watches this node's own events.
    """

    def __init__(
        self,
        observer: Callable[[EventBatch], None],
        local: Callable[[Callable[[EventBatch], None]], Subscription],
        forwarding: PeerClient,
        clock: Clock,
        node_name: str,
        members: Callable[[], Iterable[tuple[NodeId, str]]],
        first_id: int,
    ) -> None:
        self._observer = observer
        self._forwarding = forwarding
        self._clock = clock
        self._members = members
        self._next_id = first_id
        self._after: dict[NodeId, int] = {}
        self._asking: set[NodeId] = set()
        self._calls: set[IDelayedCall] = set()
        self._is_closed = False
        self._local = local(lambda batch: self._tell(batch, node_name))
        self._look()

    def close(self) -> None:
        self._is_closed = True
        self._local.close()
        for call in list(self._calls):
            call.cancel()
        self._calls.clear()

    def _tell(self, batch: EventBatch, node: str) -> None:
        if self._is_closed or not (batch.transitions or batch.reset):
            return
        first = self._next_id
        self._next_id += max(1, len(batch.transitions))
        self._observer(EventBatch(first, batch.transitions, batch.reset, node))

    def _look(self) -> None:
        """Ask every member that is not being asked; again in a while, for members come and go."""
        for node, name in self._members():
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

        def answered(batch: EventBatch) -> None:
            self._asking.discard(node)
            self._after[node] = batch.first_id + len(batch.transitions) - 1
            if not self._is_closed:
                self._tell(batch, name)
                self._ask(node, name)

        def failed(_: Failure) -> None:
            self._asking.discard(node)  # asked again in a while

        self._forwarding.call_alone(node, calls.EVENTS, question, WAIT_S + calls.CALL_S).addCallbacks(answered, failed)
