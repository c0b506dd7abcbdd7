"""How late the reactor is: a blocked loop is what every latency has in common."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from tq_node import limits
from tq_node.observe.log import EventLog
from tq_node.observe.metrics import Metrics

_log = EventLog("taskqueue.reactor")

WARN_DELAY_S = 1.0


class LoopLagService(Service):
    """Samples, every ``limits.LOOP_LAG_SAMPLE_S``, how much later than asked for the reactor ran the sample.

    :param clock: the reactor, or a ``Clock``. Its ``seconds`` should be monotonic; a step back counts as no delay.
    """

    def __init__(self, metrics: Metrics, clock: IReactorTime, *, sample_s: float = limits.LOOP_LAG_SAMPLE_S) -> None:
        self._metrics = metrics
        self._clock = clock
        self._sample_s = sample_s
        self._last_s = 0.0
        self._loop: LoopingCall | None = None
        self._loop_over: Deferred[Any] = succeed(None)

    def startService(self) -> None:
        super().startService()
        self._last_s = self._clock.seconds()
        self._loop = LoopingCall(self._sample)
        self._loop.clock = self._clock
        self._loop_over = self._loop.start(self._sample_s, now=False)

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        return self._loop_over

    def _sample(self) -> None:
        # Nothing in here can raise; a raised error would end a LoopingCall for good.
        now_s = self._clock.seconds()
        # A LoopingCall skips the beats it has missed and keeps to its grid: the time since the last sample, not since the
        # last beat, is what shows the whole of a long stall.
        delay_s = max(0.0, now_s - self._last_s - self._sample_s)
        self._last_s = now_s
        self._metrics.reactor_delay(delay_s)
        if delay_s >= WARN_DELAY_S:
            _log.warn("reactor_blocked", "the reactor was blocked for {delay_s:.2f} s", delay_s=delay_s)
