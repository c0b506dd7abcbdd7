"""What a token has open in the whole cluster: counted here, and asked of the other nodes.

A quota of open tasks is kept where the call comes in, and no call waits for other nodes. So they
are asked once a second for the tokens that somebody wanted to know of lately. Meanwhile counts what
this node has sent to them since. What several nodes take in within that second may exceed a quota;
it is known to all a second later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node import limits
from tq_node.cluster.records import ACCESS_LEVEL, ClusterMap
from tq_node.facade import OpenOfMaker
from tq_node.runtime import peer_calls as calls
from tq_node.runtime.clock import Clock, Loop
from tq_node.runtime.routing.peer_client import PeerClient
from tq_node.runtime.tasks.local_queue import LocalQueue
from tq_node.types import NodeId

_NOTHING = OpenOfMaker(0, ())


class OpenTasksHost(Protocol):
    """The node, as far as it is needed here."""

    client: PeerClient
    local: LocalQueue | None

    @property
    def map(self) -> ClusterMap: ...

    def others(self) -> Sequence[tuple[NodeId, str]]: ...


class OpenTasks:
    """See the module."""

    def __init__(self, host: OpenTasksHost, clock: Clock) -> None:
        self._host = host
        self._clock = clock
        self._wanted_ms: dict[str, int] = {}
        """When somebody wanted to know of a token last."""
        self._elsewhere: dict[NodeId, tuple[int, dict[str, OpenOfMaker]]] = {}
        """What each other node said last, and when."""
        self._sent: dict[str, int] = {}
        """Tasks sent to other nodes since the last round of questions began, ..."""
        self._sent_before: dict[str, int] = {}
        """... and in the round before, whose answers may not know of them."""
        self._loop: Loop | None = None

    def of(self, maker: str) -> OpenOfMaker:
        """What the token has open, as far as it is known here."""
        if maker not in self._wanted_ms and len(self._wanted_ms) >= limits.OPEN_MAKERS_MAX:
            self._wanted_ms.pop(next(iter(self._wanted_ms)))
        self._wanted_ms[maker] = self._clock.now_ms()
        if self._loop is None:
            self._loop = self._clock.every(limits.OPEN_TASKS_ASK_S, self._ask, "asking for open tasks")
        local = self._host.local
        here = _NOTHING if local is None else local.table.made.of(maker)
        tasks, queues = here.tasks + self._sent.get(maker, 0) + self._sent_before.get(maker, 0), set(here.queues)
        for _, known in self._elsewhere.values():
            there = known.get(maker)
            if there is not None:
                tasks += there.tasks
                queues.update(there.queues)
        return OpenOfMaker(tasks, tuple(queues))

    def sent(self, maker: str, tasks: int) -> None:
        """Tasks of the token were sent to another node."""
        if maker in self._wanted_ms:
            self._sent[maker] = self._sent.get(maker, 0) + tasks

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def _ask(self) -> None:
        now_ms = self._clock.now_ms()
        oldest_ms = now_ms - int(limits.OPEN_TASKS_WANTED_S * 1_000)
        self._wanted_ms = {maker: at_ms for maker, at_ms in self._wanted_ms.items() if at_ms >= oldest_ms}
        self._sent, self._sent_before = {}, self._sent
        others = self._host.others()
        members = {node for node, _ in others}
        # What a dead node led is soon counted by others, and must not count twice.
        told_ms = now_ms - int(limits.OPEN_TASKS_TOLD_S * 1_000)
        self._elsewhere = {node: it for node, it in self._elsewhere.items() if node in members and it[0] > told_ms}
        if self._host.map.feature_level < ACCESS_LEVEL:
            return
        if not self._wanted_ms:
            self.stop()
            self._elsewhere = {}
            return
        makers = list(self._wanted_ms)
        for node, _ in others:
            asked: Deferred[list[OpenOfMaker]] = self._host.client.call(node, calls.OPEN_OF, calls.OpenOf(makers))
            asked.addCallbacks(self._told, self._not_told, callbackArgs=(node, makers))

    def _told(self, found: list[OpenOfMaker], node: NodeId, makers: list[str]) -> None:
        self._elsewhere[node] = self._clock.now_ms(), dict(zip(makers, found, strict=False))

    def _not_told(self, _: Failure) -> None:
        """The node will be asked again; what it said last counts for a while."""
