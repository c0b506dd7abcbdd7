"""The simulated handlers of the contract, on a clock in hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tq_node import Context, Reject
from tq_node.work import simulated
from tq_node.work.registry import Registry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(simulated, "clock", lambda: clock)
    return clock


def start(task_type: str, payload: object, context: Context) -> Deferred[Any]:
    handler = Registry.load(["simulated"]).resolve(task_type)
    assert handler is not None
    return Deferred.fromCoroutine(handler.function(payload, context))


@pytest.mark.parametrize(
    ("task_type", "seconds", "text"),
    [
        ("email", 1, "Email sent: "),
        ("image", 3, "Image processed: "),
        ("report", 5, "Report generated: "),
        ("x", 2, "Task completed: "),
    ],
)
def test_they_take_their_time_and_say_so(clock: Clock, task_type: str, seconds: int, text: str) -> None:
    context = Context()
    result = start(task_type, "user@example.com", context)
    clock.pump([0.05] * (seconds * 20 - 1))
    assert not result.called
    clock.pump([0.05, 0.05])
    assert result.result == text + "user@example.com"
    noted = context._notebook.take()
    assert noted is not None
    assert noted.progress is not None
    assert 0 < noted.progress.fraction <= 1
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("payload", [None, 7, {"a": [1, "ü"]}, True])
def test_other_payloads_are_shown_as_compact_json(clock: Clock, payload: object) -> None:
    result = start("email", payload, Context())
    clock.pump([0.1] * 11)
    shown = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    assert result.result == f"Email sent: {shown}"


def test_they_look_at_cancelled_and_deadline_after_each_step(clock: Clock) -> None:
    context = Context()
    result = start("report", "x", context)
    clock.advance(0.1)
    context._cancelled = True
    clock.advance(0.1)
    result.addErrback(lambda why: why.trap(Reject))
    assert result.result is Reject
    result = start("report", "x", Context(deadline=1.0))
    clock.advance(0.1)
    result.addErrback(lambda why: why.trap(TimeoutError))
    assert result.result is TimeoutError
    assert clock.getDelayedCalls() == []
