"""What handlers say, and what is said of them: the task's log, the node's log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.unit.tq_node.work import sample_handlers
from tests.unit.tq_node.work.conftest import ClockRig, Rig, asynchronous
from tq_node.facade import Claim
from tq_node.types import TaskError, Token
from tq_node.work.failure_log import FailureLog
from tq_node.work.handler_output import Wrapped, unwrap_streams, wrap_streams


@contextmanager
def as_in_a_node() -> Iterator[None]:
    """The runner of tests puts streams of its own there for each phase of a test, and a handler for logging."""
    before, logging.root.handlers = logging.root.handlers, []
    wrap_streams()
    yield
    unwrap_streams()
    logging.root.handlers = before


@pytest.fixture
def said() -> Iterator[list[dict[str, Any]]]:
    """Events of the node's log, with ``line`` as a person reads it."""
    events: list[dict[str, Any]] = []

    @implementer(ILogObserver)
    def observe(event: dict[str, Any]) -> None:
        if event.get("event") in ("attempt_failed", "attempts_failed", "handler_said"):
            events.append({**event, "line": event["log_format"].format(**event)})

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@asynchronous
async def test_what_both_kinds_of_handlers_print_and_log_is_the_tasks_log(rig: Rig) -> None:
    claim, _ = await rig.run("say", "process")
    assert rig.queue.lines_of(claim) == ["printed process", "to stderr", "logged process", "unfinished"]
    with as_in_a_node():
        claim, _ = await rig.run("a_say", "reactor")
    assert rig.queue.lines_of(claim) == ["printed reactor", "to stderr", "logged reactor", "unfinished"]


def test_each_says_its_own_lines_however_they_take_turns(clock_rig: ClockRig) -> None:
    with as_in_a_node():
        one, two = clock_rig.put("a_say_twice", "one"), clock_rig.put("a_say_twice", "two")
        for waiting in list(sample_handlers.waiting):
            waiting.callback(None)
        clock_rig.turn()
    assert clock_rig.queue.lines_of(one) == ["one before", "one after"]
    assert clock_rig.queue.lines_of(two) == ["two before", "two after"]


def test_what_the_node_prints_itself_goes_where_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    wrap_streams()
    wrap_streams()
    print("for the terminal")
    logging.getLogger("x").warning("a warning")
    assert isinstance(sys.stdout, Wrapped)
    assert sys.stdout.encoding == before.encoding
    unwrap_streams()
    assert sys.stdout is before
    assert capsys.readouterr().out == "for the terminal\n"


@asynchronous
async def test_an_attempt_that_fails_is_one_line(rigs: Any, said: list[dict[str, Any]]) -> None:
    rig = rigs()
    await rig.run("raise", "é\n\x1b]52;c;x\x07")
    await rig.run("a_raise", "so")
    await rig.run("echo")
    assert [event["line"] for event in said] == [
        "attempt 1 of task t1 (raise) failed: ValueError: no good: é\\n\\x1b]52;c;x\\x07",
        "attempt 1 of task t2 (a_raise) failed: ValueError: no good: so",
    ]
    assert {event["log_level"] for event in said} == {LogLevel.info}


def test_a_cancelled_attempt_is_no_failure(clock_rig: ClockRig, said: list[dict[str, Any]]) -> None:
    claim = clock_rig.put("a_wait")
    clock_rig.worker.stop_attempt(claim.task_id, claim.token)
    clock_rig.turn()
    assert clock_rig.queue.outcome_of(claim) is not None
    assert said == []


def test_failures_are_counted_where_there_are_too_many_to_read(said: list[dict[str, Any]]) -> None:
    clock = Clock()
    log = FailureLog(clock)
    claim = Claim("t", "x", b"null", 0, 1, Token(1, 1), None)
    for _ in range(1_000):
        log.failed(claim, TaskError("ValueError", "m" * 10_000))
    assert len(said) == 20
    assert max(len(event["line"]) for event in said) < 400
    log.look()
    assert len(said) == 20
    clock.advance(1)
    log.look()
    assert said[-1]["line"] == "980 more attempts failed and are not in the log"
    clock.advance(60)
    log.look()
    assert len(said) == 21
    log.failed(claim, TaskError("ValueError", "m"))
    assert len(said) == 22


@asynchronous
async def test_handlers_are_echoed_where_that_was_asked_for(rigs: Any, said: list[dict[str, Any]]) -> None:
    rig = rigs(echo=True)
    with as_in_a_node():
        for task_type in ("say", "a_say", "a_log"):
            await rig.run(task_type, 1 if task_type == "a_log" else "\x1b[31m")
    assert [event["line"] for event in said] == [
        *(f"{task} | {line}" for task in ("t1", "t2") for line in (
            "printed \\x1b[31m", "to stderr", "logged \\x1b[31m", "unfinished"
        )),
        "t3 | line 0",
    ]  # fmt: skip
    said.clear()
    await rigs().run("say", "quiet")
    assert said == []
