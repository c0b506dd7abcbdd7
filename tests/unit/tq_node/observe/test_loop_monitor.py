"""Who holds the reactor is found: by the CPU that one of its calls takes, whatever kind of call it is."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tq_node import limits
from tq_node.observe.loop_monitor import CallMeter, LoopMonitor, name_of
from tq_node.observe.metrics import Metrics

HOLD_S = 0.15
ON_PURPOSE = pytest.mark.may_hold("it is held on purpose, to see that it is found")


def hold(cpu_s: float = HOLD_S) -> None:
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        pass


@pytest.fixture
def found() -> Iterator[list[tuple[float, object]]]:
    """What a meter of its own on the real reactor finds."""
    from twisted.internet import reactor

    calls: list[tuple[float, object]] = []
    before = {name: getattr(reactor, name) for name in ("callLater", "callFromThread")}
    meter = CallMeter(reactor, lambda cpu_s, what: calls.append((cpu_s, what)))
    meter.start()
    yield calls
    meter.stop()
    assert {name: getattr(reactor, name) for name in before} == before


def long_ones(found: list[tuple[float, object]]) -> list[str]:
    return [name_of(what) for cpu_s, what in found if cpu_s >= HOLD_S]


@ON_PURPOSE
@ensureDeferred  # type: ignore[untyped-decorator]  # untyped there
async def test_a_delayed_call(found: list[tuple[float, object]]) -> None:
    from twisted.internet import reactor

    done: Deferred[None] = Deferred()
    cast("IReactorTime", reactor).callLater(0, hold)
    cast("IReactorTime", reactor).callLater(0.001, done.callback, None)
    await done
    assert long_ones(found) == ["hold"]


@ON_PURPOSE
@ensureDeferred  # type: ignore[untyped-decorator]  # untyped there
async def test_a_call_from_a_thread(found: list[tuple[float, object]]) -> None:
    from twisted.internet import reactor

    done: Deferred[None] = Deferred()
    threaded = cast("Any", reactor)
    threaded.callFromThread(hold)
    threaded.callFromThread(done.callback, None)
    await done
    assert long_ones(found) == ["hold"]


@ON_PURPOSE
@ensureDeferred  # type: ignore[untyped-decorator]  # untyped there
async def test_a_read(found: list[tuple[float, object]]) -> None:
    from twisted.internet import reactor

    done: Deferred[None] = Deferred()

    class Slow(Protocol):
        def dataReceived(self, data: bytes) -> None:
            hold()
            assert self.transport is not None
            self.transport.loseConnection()

        def connectionLost(self, reason: object = None) -> None:
            done.callback(None)

    port = cast("Any", reactor).listenTCP(0, Factory.forProtocol(Slow), interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        client.sendall(b"x")
        await done
    await port.stopListening()
    assert long_ones(found) == ["Slow"]


@ensureDeferred  # type: ignore[untyped-decorator]  # untyped there
async def test_waiting_is_no_holding(found: list[tuple[float, object]]) -> None:
    """A call that sleeps is bad enough, but it is its CPU that is counted: load beside must not show."""
    from twisted.internet import reactor

    done: Deferred[None] = Deferred()
    cast("IReactorTime", reactor).callLater(0, time.sleep, HOLD_S)
    cast("IReactorTime", reactor).callLater(0.001, done.callback, None)
    await done
    assert long_ones(found) == []


@ON_PURPOSE
@ensureDeferred  # type: ignore[untyped-decorator]  # untyped there
async def test_a_call_that_raises_is_measured_too(found: list[tuple[float, object]], logged_errors: Any) -> None:
    from twisted.internet import reactor

    def hold_and_raise() -> None:
        hold()
        raise ZeroDivisionError

    done: Deferred[None] = Deferred()
    cast("IReactorTime", reactor).callLater(0, hold_and_raise)
    cast("IReactorTime", reactor).callLater(0.001, done.callback, None)
    await done
    assert len(long_ones(found)) == 1
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


# --- what the node makes of it ---
@pytest.fixture
def lines() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def note(event: LogEvent) -> None:
        if str(event.get("event", "")).startswith("reactor_"):
            events.append(event)

    globalLogPublisher.addObserver(note)
    yield events
    globalLogPublisher.removeObserver(note)


def test_a_hold_is_counted_and_logged_with_the_route(lines: list[LogEvent]) -> None:
    metrics, clock = Metrics(), Clock()
    monitor = LoopMonitor(metrics, clock)
    metrics.note_doing("/tasks/batch")
    monitor.took(0.02, hold)
    assert lines == []
    monitor.took(0.3, hold)
    assert [(line["event"], line["held_s"], line["what"], line["route"]) for line in lines] == [
        ("reactor_held", 0.3, "hold", "/tasks/batch")
    ]
    assert metrics.reactor_held_max_s == 0.3
    assert sum(metrics.reactor_held_s.counts) == 2


def test_lines_come_once_a_second_and_say_what_they_leave_out(lines: list[LogEvent]) -> None:
    clock = Clock()
    monitor = LoopMonitor(Metrics(), clock)
    for _ in range(5):
        monitor.took(0.3, hold)
    clock.advance(1.0)
    monitor.took(0.3, hold)
    assert [line["unlogged"] for line in lines] == [0, 4]


def test_what_may_belong_to_the_calls_before_is_no_fault(lines: list[LogEvent]) -> None:
    LoopMonitor(Metrics(), Clock()).took((limits.LOOP_HELD_MS + limits.LOOP_LOOK_MS) / 1000 - 0.001, hold)
    assert lines == []


def test_a_late_reactor_says_what_its_longest_call_was(lines: list[LogEvent]) -> None:
    clock = Clock()
    monitor = LoopMonitor(Metrics(), clock, sample_s=0.25)
    monitor.startService()
    monitor.took(0.08, hold)
    clock.advance(1.5)
    clock.advance(1.5)
    monitor.stopService()
    assert [(line["event"], line["held_s"], line["what"]) for line in lines] == [
        ("reactor_blocked", 0.08, "hold"),
        ("reactor_blocked", 0.0, "nothing of note"),
    ]
