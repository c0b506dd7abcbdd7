"""What holds for every test: no logged failure, no lost Deferred error, no delayed call left on the reactor."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import greenlet
import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.crowded import stretched
from tests.support.harness import Nodes
from tq_node import limits
from tq_node.observe.loop_monitor import CallMeter, name_of

EXAMPLES = 50
# From Hypothesis's own default: where CI is set it would begin with another profile.
settings.register_profile(
    "usual", settings.get_profile("default"), max_examples=EXAMPLES, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("long", settings.get_profile("usual"), max_examples=20 * EXAMPLES)
settings.register_profile("nightly", settings.get_profile("usual"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))

_TURNS_FOR_LEFTOVERS = 5
_HEADING = "Unhandled error in Deferred:"
"""Twisted logs this line first and the failure itself in a second event."""


@implementer(ILogObserver)
class LoggedErrors:
    """Failures and critical events logged during a test. What is still here at its end fails the test."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        failed = event.get("log_failure") is not None and level is not None and level >= LogLevel.error
        if failed or (level is LogLevel.critical and event.get("log_format") != _HEADING):
            self.events.append(event)

    def flush(self, *types: type[BaseException]) -> list[Failure | None]:
        """Take out the expected ones, of these types or all of them, and give their failures back in order."""
        gc.collect()
        expected = [event for event in self.events if not types or _is_of(event, types)]
        self.events = [event for event in self.events if not any(event is known for known in expected)]
        return [event.get("log_failure") for event in expected]


def _is_of(event: LogEvent, types: tuple[type[BaseException], ...]) -> bool:
    failure = event.get("log_failure")
    return isinstance(failure, Failure) and failure.check(*types) is not None


def _described(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return "\n".join(part for part in (formatEvent(event), failure and failure.getTraceback()) if part)


@pytest.fixture(autouse=True)
def logged_errors() -> Iterator[LoggedErrors]:
    """Fail the test for what it logged and did not expect; a test that provokes errors calls ``flush``."""
    from twisted.internet import reactor

    errors = LoggedErrors()
    before = set(reactor.getDelayedCalls())
    globalLogPublisher.addObserver(errors)
    try:
        yield errors
        left = _taken_off(reactor, before)
        gc.collect()  # an error that nobody handled is logged when its Deferred goes
        gc.freeze()  # what outlives a test, like its report, is not looked at again after each of the thousands to come
    finally:
        globalLogPublisher.removeObserver(errors)
    if errors.events:
        pytest.fail("logged, not expected:\n" + "\n\n".join(map(_described, errors.events)), pytrace=False)
    if left:
        pytest.fail("left on the reactor:\n" + "\n".join(left), pytrace=False)


def _taken_off(reactor: Any, before: set[Any]) -> list[str]:
    """Cancel the delayed calls that are new and stay; what is due now may still run."""
    left: list[Any] = []
    for _ in range(_TURNS_FOR_LEFTOVERS):
        left = [call for call in reactor.getDelayedCalls() if call not in before]
        if not left:
            break
        pytest_twisted.blockon(deferLater(reactor, 0.01))
    described = [str(call) for call in left if call.active()]
    for call in left:
        if call.active():
            call.cancel()
    return described


class ReactorCpu:
    """CPU time of the reactor's greenlet: a test that waits for a Deferred goes on within the call that fires it."""

    def __init__(self) -> None:
        self._left_s = 0.0
        self._elsewhere_s = 0.0
        greenlet.settrace(self._switched)

    def __call__(self) -> float:
        return time.thread_time() - self._elsewhere_s

    def _switched(self, event: str, pair: tuple[greenlet.greenlet, greenlet.greenlet]) -> None:
        reactors = pytest_twisted._instances.gr_twisted
        if pair[0] is reactors:
            self._left_s = time.thread_time()
        elif pair[1] is reactors:
            self._elsewhere_s += time.thread_time() - self._left_s


class Holds:
    """Calls of the reactor that took over ``limits.LOOP_HELD_MS`` of CPU, in this process."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def took(self, cpu_s: float, what: object) -> None:
        if getattr(what, "__module__", "") == pytest_twisted.__name__:
            return  # the test itself, up to where it waits for the first time
        if cpu_s >= stretched((limits.LOOP_HELD_MS + limits.LOOP_LOOK_MS) / 1000):
            self.found.append(f"{name_of(what)} held the reactor for {cpu_s * 1000:.0f} ms of CPU")


@pytest.fixture(scope="session")
def _holds() -> Iterator[tuple[Holds, CallMeter]]:
    from twisted.internet import reactor

    holds = Holds()
    meter = CallMeter(reactor, holds.took, cpu_s=ReactorCpu())
    meter.start()
    yield holds, meter
    meter.stop()
    greenlet.settrace(None)


@pytest.fixture(autouse=True)
def reactor_is_never_held(request: pytest.FixtureRequest, _holds: tuple[Holds, CallMeter]) -> Iterator[None]:
    """Fail a test in which one call held the loop for over 100 ms of CPU: of this process's reactor, or of a node's.

    What a test may do all the same it says with its reason: ``@pytest.mark.may_hold("why")``.
    """
    holds, meter = _holds
    holds.found.clear()
    meter.forget()
    yield
    started = request.node.stash.get(_NODES, None)
    found = holds.found + (started.holds() if started is not None else [])
    may = request.node.get_closest_marker("may_hold")
    if may is not None:
        assert any(may.args), "may_hold: say why"
    elif found:
        pytest.fail("the reactor was held:\n" + "\n".join(found), pytrace=False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported out of the collections that follow each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """Starts real nodes and kills them all at the end. Their logs stay in the test's directory."""
    started = Nodes(tmp_path)
    request.node.stash[_NODES] = started
    try:
        yield started
    finally:
        started.close()


_NODES = pytest.StashKey[Nodes]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    started = item.stash.get(_NODES, None)
    if report.failed and started is not None:
        for node in started.started:
            report.sections.append((f"log of {node}", node.log_tail()))
    return report
