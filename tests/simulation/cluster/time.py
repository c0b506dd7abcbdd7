"""Virtual time of a world of whole nodes: one heap of events, one reactor for each run of a node.

A node's events carry its run: those of a run that is over never happen, those of a node that is paused wait until it goes on.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from tests.support.world import SECOND_US

if TYPE_CHECKING:
    from tests.simulation.cluster.net import Net

TIMER, SOCKET, DISK = range(3)
"""What wakes a process; one that was paused may look at its timers first, or at its sockets."""
Event = tuple[int, int, "NodeReactor | None", int, Callable[..., Any], tuple[Any, ...]]


class Timeline:
    """``now_us`` moves only from event to event.

    :param stepped: called after each event of a node, with its reactor.
    """

    def __init__(self, stepped: Callable[[NodeReactor], None]) -> None:
        self.now_us = 0
        self.events = 0
        self._heap: list[Event] = []
        self._sequence = 0
        self._stepped = stepped

    def at(self, due_us: int, action: Callable[..., Any], *arguments: Any) -> None:
        self.node_at(due_us, None, TIMER, action, *arguments)

    def after(self, delay_us: int, action: Callable[..., Any], *arguments: Any) -> None:
        self.node_at(self.now_us + delay_us, None, TIMER, action, *arguments)

    def node_at(
        self, due_us: int, reactor: NodeReactor | None, kind: int, action: Callable[..., Any], *arguments: Any
    ) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (max(due_us, self.now_us), self._sequence, reactor, kind, action, arguments))

    def run_until(self, until_us: int, is_over: Callable[[], bool] | None = None) -> bool:
        """Whether ``is_over`` said so before ``until_us``; looked at after each event."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            event = heapq.heappop(heap)
            self.now_us = event[0]
            reactor = event[2]
            if reactor is None:
                event[4](*event[5])
            elif reactor.is_over:
                reactor.never.append(event)
                continue
            elif reactor.frozen is not None:
                reactor.frozen.append(event)
                continue
            else:
                event[4](*event[5])
                self._stepped(reactor)
            self.events += 1
            if is_over is not None and is_over():
                return True
        self.now_us = max(self.now_us, until_us)
        return False


@implementer(IReactorTime)
class NodeReactor:
    """What one run of a node takes for its reactor: timers, and (through ``net``) sockets.

    :param rate: of its monotonic clock, which runs on while the node is paused. :param offset_s: where that clock begins.
    """

    def __init__(self, timeline: Timeline, host: str, rate: float, offset_s: float) -> None:
        self.timeline = timeline
        self.host = host
        self.net: Net
        self.is_over = False
        self.never: list[Event] = []
        """What would have happened after its end: kept, for what is collected early runs its ``finally``."""
        self.stopped_s: float | None = None
        """The node has stopped in order: no timer may be left."""
        self.frozen: list[Event] | None = None
        """While it is paused: what would have happened."""
        self._rate = rate
        self._offset_s = offset_s
        self._floor_s = 0.0
        """No timer fires before its time by the clock that it was set with, whatever floats do."""

    def seconds(self) -> float:
        return max(self._floor_s, self._offset_s + self._rate * self.timeline.now_us / SECOND_US)

    def world_us(self, seconds: float) -> int:
        """When this clock says so."""
        return math.ceil((seconds - self._offset_s) / self._rate * SECOND_US)

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> DelayedCall:  # noqa: A002 (IReactorTime)
        assert delay >= 0, f"a timer in the past: {delay}"
        call = DelayedCall(self.seconds() + delay, callable, args, kw, _ignore, self._set, self.seconds)
        self._set(call)
        return call

    def getDelayedCalls(self) -> list[Any]:
        return []  # nobody but ``make_reactor_monotonic`` asks

    def _set(self, call: DelayedCall) -> None:
        self.timeline.node_at(self.world_us(call.time), self, TIMER, self._fire, call, call.time)

    def _fire(self, call: DelayedCall, set_for_s: float) -> None:
        if call.cancelled or call.called or call.time != set_for_s:
            return
        if call.delayed_time > 0:
            call.activate_delay()
            self._set(call)
            return
        if self.stopped_s is not None and call.time > self.stopped_s:
            raise AssertionError(f"a timer is left by a node that has stopped: {call}")
        self._floor_s = max(self._floor_s, call.time)
        call.called = 1
        call.func(*call.args, **call.kw)

    def soon(self, delay_us: int, kind: int, action: Callable[..., Any], *arguments: Any) -> None:
        self.timeline.node_at(self.timeline.now_us + delay_us, self, kind, action, *arguments)

    def pause(self) -> None:
        if self.frozen is None:
            self.frozen = []

    def go_on(self, timers_first: bool) -> None:
        """All that waited happens now."""
        frozen, self.frozen = self.frozen or [], None
        if timers_first:
            frozen.sort(key=lambda event: event[3] != TIMER)
        for event in frozen:
            self.timeline.node_at(self.timeline.now_us, self, event[3], event[4], *event[5])


def _ignore(call: DelayedCall) -> None:
    """A cancelled call stays in the heap and does nothing."""
