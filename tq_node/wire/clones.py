"""Detects a copied data directory: two runs of one node that live at once (F14).

A copy introduces itself with a higher incarnation than the original, so by numbers alone it would
take the original's place. But a node's next run begins only after the process before it has ended.
So if the earlier run answers a ping that was sent after the later one connected, two runs live.
Nothing less proves it: late packets of a dead run may arrive at any time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from tq_node.errors import TaskQueueError
from tq_node.wire import bounds
from tq_node.wire.errors import EarlierRun, StaleSession
from tq_node.wire.handshake import Dialled, PeerIdentity

STEPS = 30
"""Parts of the wait: after a pause of this process, sockets are read before the next part (F40)."""


class Connected(Protocol):
    """An open connection with a run of the node, accepted or dialled."""

    peer: PeerIdentity | None
    ended: TaskQueueError | None
    heard_at_s: float


class CloneCheck:
    """Refuses a later run of a node while an earlier one is connected and not silent."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._steps: dict[Deferred[None], IDelayedCall] = {}
        self._is_stopped = False

    async def wait(self, peer: PeerIdentity, accepted: Iterable[Connected], dialled: Sequence[Dialled]) -> None:
        """Wait until no earlier run of ``peer`` is connected, or none was heard from for
        ``bounds.EARLIER_RUN_S``.

        :param accepted, dialled: open connections with any run of that node.
        :raises StaleSession: an earlier run answered: this is a copy.
        :raises EarlierRun: one is connected and may live."""
        asked = [one for one in dialled if _is_earlier(one, peer)]
        earlier: list[Connected] = [*asked, *(one for one in accepted if _is_earlier(one, peer))]
        if not earlier:
            return
        began_s = self._reactor.seconds()
        answers: list[bool] = []
        for connection in asked:
            Deferred.fromCoroutine(connection.ping()).addCallback(answers.append)
        for _ in range(STEPS):
            await self._step()
            if any(answers):
                raise StaleSession(
                    f"an earlier run of node {peer.name} lives, and answers: the data directory of this one is a copy of its"
                )
            earlier = [one for one in earlier if one.ended is None]
            if not earlier:
                return
            if self._is_stopped or max(one.heard_at_s for one in earlier) > began_s:
                raise EarlierRun(f"an earlier run of node {peer.name} is still connected")

    def stop(self) -> None:
        """Refuse all that wait in ``wait``."""
        self._is_stopped = True
        for step, timer in list(self._steps.items()):
            timer.cancel()
            self._end(step)

    def _step(self) -> Deferred[None]:
        step: Deferred[None] = Deferred()
        self._steps[step] = self._reactor.callLater(bounds.EARLIER_RUN_S / STEPS, self._end, step)
        return step

    def _end(self, step: Deferred[None]) -> None:
        del self._steps[step]
        step.callback(None)


def _is_earlier(connection: Connected, peer: PeerIdentity) -> bool:
    return connection.peer is not None and connection.peer.incarnation < peer.incarnation
