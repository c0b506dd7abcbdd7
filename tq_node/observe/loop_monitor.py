"""Measures the reactor: how late it runs timers, and which of its calls take how much CPU.

The delay is what callers feel, and depends on the machine. The CPU of one call depends on this
program only: one over ``limits.LOOP_HELD_MS`` is a fault, logged with the name of what ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall

from tq_node import limits
from tq_node.beats import until_beat
from tq_node.observe.log import EventLog
from tq_node.observe.metrics import Metrics

_log = EventLog("taskqueue.reactor")

WARN_DELAY_S = 1.0
LOG_EVERY_S = 1.0
"""Least time between two ``reactor_held`` lines; the next line counts those left out."""
_LOOK_S = limits.LOOP_LOOK_MS / 1000
_HELD_S = limits.LOOP_HELD_MS / 1000
_EVENT_METHODS = ("_doReadOrWrite", "_doWriteOrRead")
"""Methods that Twisted's reactors call for each ready socket (poll, epoll and select; kqueue)."""


class CallMeter:
    """Measures the CPU time of each call that a reactor makes: delayed calls, calls from threads,
    reads and writes.

    The CPU clock is expensive: it is read only after a call that ends ``limits.LOOP_LOOK_MS`` or
    more after the last reading: the CPU of a call may include up to that much of earlier calls.

    :param on_call: called with the CPU seconds of a call of ``limits.LOOP_LOOK_MS`` or more, and
        with what was called.
    :param cpu_s: CPU time of the thread that the reactor runs in."""

    def __init__(
        self,
        reactor: Any,
        on_call: Callable[[float, object], None],
        *,
        cpu_s: Callable[[], float] = time.thread_time,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        self._on_call = on_call
        self._cpu_s = cpu_s
        self._now_s = now_s
        self._read_s = 0.0
        self._read_cpu_s = 0.0
        self._hooked: list[tuple[str, object]] = []

    def start(self) -> None:
        """Wrap the methods of the reactor that make calls."""
        reactor = self._reactor
        self.forget()
        for name, wrapped in (("callLater", self._later), ("callFromThread", self._from_thread)):
            self._hook(name, wrapped(getattr(reactor, name)))
        for name in _EVENT_METHODS:
            if hasattr(reactor, name):
                self._hook(name, self._event(getattr(reactor, name)))

    def stop(self) -> None:
        """Restore the reactor's methods. Calls that are scheduled still pass through the meter."""
        for name, before in reversed(self._hooked):
            if before is None:
                delattr(self._reactor, name)
            else:
                setattr(self._reactor, name, before)
        self._hooked.clear()

    def forget(self) -> None:
        """Start anew: the CPU used until now counts for no call."""
        self._read_s = self._now_s()
        self._read_cpu_s = self._cpu_s()

    def _hook(self, name: str, function: object) -> None:
        # On the instance, over the class's own method, or over another meter's hook.
        self._hooked.append((name, vars(self._reactor).get(name)))
        setattr(self._reactor, name, function)

    def _later(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        run = self._run

        def call_later(seconds: float, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
            return inner(seconds, run, call, *args, **kw)

        return call_later

    def _from_thread(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        run = self._run

        def call_from_thread(call: Callable[..., Any], *args: Any, **kw: Any) -> None:
            inner(run, call, *args, **kw)

        return call_from_thread

    def _event(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        now_s, read_clocks = self._now_s, self._read_clocks

        def do_read_or_write(selectable: object, fd: object, event: object) -> None:
            inner(selectable, fd, event)
            ended_s = now_s()
            if ended_s - self._read_s >= _LOOK_S:
                read_clocks(ended_s, selectable)

        return do_read_or_write

    def _run(self, call: Callable[..., Any], /, *args: Any, **kw: Any) -> None:
        try:
            call(*args, **kw)
        finally:
            ended_s = self._now_s()
            if ended_s - self._read_s >= _LOOK_S:
                self._read_clocks(ended_s, call)

    def _read_clocks(self, ended_s: float, what: object) -> None:
        cpu_s = self._cpu_s()
        took_s = cpu_s - self._read_cpu_s
        self._read_s, self._read_cpu_s = ended_s, cpu_s
        if took_s >= _LOOK_S:
            self._on_call(took_s, what)


def name_of(what: object) -> str:
    """The name of a callable, or of the protocol that a socket serves."""
    prefix = getattr(what, "logPrefix", None)
    if prefix is not None:
        return str(prefix()).partition(",")[0]
    function = getattr(what, "func", what)  # of a partial
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


class LoopMonitor(Service):
    """Samples, every ``limits.LOOP_LAG_SAMPLE_S``, how much later than asked for the reactor ran
    the sample; measures its calls.

    :param reactor: or a ``Clock``. Its ``seconds`` should be monotonic; a step back counts as no
        delay."""

    def __init__(self, metrics: Metrics, reactor: Any, *, sample_s: float = limits.LOOP_LAG_SAMPLE_S) -> None:
        self._metrics = metrics
        self._clock = reactor
        self._sample_s = sample_s
        self._last_s = 0.0
        self._sample_call: IDelayedCall | None = None
        self._meter = CallMeter(reactor, self.took) if hasattr(reactor, "callFromThread") else None
        self._worst_s = 0.0
        """CPU of the longest call since the last sample."""
        self._worst_what: object = None
        self._logged_s = -LOG_EVERY_S
        self._unlogged = 0

    def startService(self) -> None:
        super().startService()
        if self._meter is not None:
            self._meter.start()
        self._last_s = self._clock.seconds()
        self._sample_call = self._clock.callLater(until_beat(self._clock, self._sample_s), self._sample)

    def stopService(self) -> None:
        super().stopService()
        if self._sample_call is not None:
            self._sample_call.cancel()
            self._sample_call = None
        if self._meter is not None:
            self._meter.stop()

    def took(self, cpu_s: float, what: object) -> None:
        """Count a call of the reactor that took ``cpu_s``, and log it if it is a fault."""
        self._metrics.reactor_held(cpu_s)
        if cpu_s > self._worst_s:
            self._worst_s, self._worst_what = cpu_s, what
        if cpu_s < _HELD_S + _LOOK_S:
            return
        now_s = self._clock.seconds()
        if now_s - self._logged_s < LOG_EVERY_S:
            self._unlogged += 1
            return
        self._logged_s = now_s
        unlogged, self._unlogged = self._unlogged, 0
        _log.warn(
            "reactor_held",
            "the reactor was held for {held_s:.2f} s of CPU by {what}, last at {route}; {unlogged} more since the last such line",
            held_s=cpu_s, what=name_of(what), route=self._metrics.doing, unlogged=unlogged,
        )  # fmt: skip

    def _sample(self) -> None:
        now_s = self._clock.seconds()
        self._sample_call = self._clock.callLater(until_beat(self._clock, self._sample_s), self._sample)
        # Missed beats are skipped; the delay counts from the last sample: a stall shows whole.
        delay_s = max(0.0, now_s - self._last_s - self._sample_s)
        self._last_s = now_s
        self._metrics.reactor_delay(delay_s)
        worst_s, what = self._worst_s, self._worst_what
        self._worst_s, self._worst_what = 0.0, None
        if delay_s >= WARN_DELAY_S:
            _log.warn(
                "reactor_blocked",
                "the reactor was blocked for {delay_s:.2f} s; of this {held_s:.2f} s are CPU of its longest call, by {what}",
                delay_s=delay_s, held_s=worst_s, what=name_of(what) if worst_s else "nothing of note",
            )  # fmt: skip
