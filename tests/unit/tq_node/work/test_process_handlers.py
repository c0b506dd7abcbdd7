"""``def`` handlers in real worker processes: what each way of ending means. One attempt is the most that any may cost."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
import pytest

from tests.unit.tq_node.work.conftest import Rig, asynchronous, gone, until, within
from tq_node import limits
from tq_node.facade import AttemptFailed, Completed, Released


async def failure_of(rig: Rig, task_type: str, payload: object = None, **claim: Any) -> AttemptFailed:
    _, outcome = await rig.run(task_type, payload, **claim)
    assert isinstance(outcome, AttemptFailed)
    # Whatever it was, the node goes on.
    _, after = await rig.run("echo", "still here")
    assert after == Completed(b'"still here"')
    return outcome


@asynchronous
async def test_the_result_is_compact_json(rig: Rig) -> None:
    for value in (None, True, "ü\u2028", 1.5, 2**64 - 1, [1, {"a": [None]}], "x" * 200_000):
        _, outcome = await rig.run("echo", value)
        assert isinstance(outcome, Completed)
        assert msgspec.json.decode(outcome.result) == value
        assert b": " not in outcome.result


@asynchronous
async def test_the_context_and_the_process_are_as_promised(rig: Rig) -> None:
    before_s = time.time()
    claim, outcome = await rig.run("about", timeout_ms=5000, attempt=3)
    assert isinstance(outcome, Completed)
    about = msgspec.json.decode(outcome.result)
    assert about["task_id"] == claim.task_id
    assert about["attempt"] == 3
    assert about["token"] == list(claim.token)
    assert before_s + 4 < about["deadline"] < time.time() + 5
    assert about["cancelled"] is False
    assert about["session"] is True
    assert about["stdin"] == ""
    # 0-2, the five of frames.py, two for waking the control thread, and the one that lists them.
    assert about["fds"] == list(range(11))
    assert about["pythonpath"] == os.environ.get("PYTHONPATH")


@asynchronous
async def test_an_exception_is_kept_with_its_traceback(rig: Rig) -> None:
    outcome = await failure_of(rig, "raise", "x")
    assert outcome.error.type == "ValueError"
    assert outcome.error.message == "no good: x"
    assert outcome.error.traceback is not None
    assert "in raises" in outcome.error.traceback
    assert "main/tq_node/work" not in outcome.error.traceback
    assert (outcome.retry_in_ms, outcome.final) == (None, False)


@asynchronous
async def test_an_exception_without_a_message_of_its_own(rig: Rig) -> None:
    outcome = await failure_of(rig, "rude")
    assert outcome.error.type.endswith("RudeError")


@asynchronous
async def test_retry_and_reject(rig: Rig) -> None:
    outcome = await failure_of(rig, "retry", 2.5)
    assert (outcome.error.type, outcome.retry_in_ms, outcome.final) == ("Retry", 2500, False)
    outcome = await failure_of(rig, "reject")
    assert (outcome.error.type, outcome.error.message, outcome.final) == ("Reject", "never", True)


@asynchronous
@pytest.mark.parametrize(
    ("task_type", "payload", "said"),
    [
        ("exit", 3, "SystemExit: 3"),
        ("interrupt", None, "KeyboardInterrupt"),
        ("os_exit", 7, "exited with code 7"),
        ("os_exit", 0, "exited with code 0"),
        ("kill_self", None, "killed by SIGKILL"),
        ("segfault", None, "killed by SIGSEGV"),
        ("close_fds", None, "worker process"),
    ],
)
async def test_a_process_that_ends_is_a_failed_attempt(rig: Rig, task_type: str, payload: object, said: str) -> None:
    outcome = await failure_of(rig, task_type, payload)
    assert outcome.error.type == "worker_died"
    assert said in outcome.error.message
    assert not outcome.final


@asynchronous
@pytest.mark.parametrize(("task_type", "payload"), [("sleep", 60), ("spin", None), ("hold_gil", 60)])
async def test_a_handler_that_hangs_is_killed_at_its_timeout(rig: Rig, task_type: str, payload: object) -> None:
    await rig.run("echo")
    start_s = time.monotonic()
    claim, outcome = await rig.run(task_type, payload, timeout_ms=150)
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "timeout"
    assert "0.15 s" in outcome.error.message
    assert time.monotonic() - start_s < 30, "it would have gone on for a minute"
    assert rig.queue.lines_of(claim) == (["sleeping"] if task_type == "sleep" else [])
    assert (await rig.run("echo", 1))[1] == Completed(b"1")


@asynchronous
async def test_a_result_over_the_bound(rig: Rig) -> None:
    _, outcome = await rig.run("big_result", limits.RESULT_BYTES_MAX - 2)
    assert isinstance(outcome, Completed)
    for size in (limits.RESULT_BYTES_MAX - 1, 3 * limits.RESULT_BYTES_MAX):
        assert (await failure_of(rig, "big_result", size)).error.type == "result_too_large"


@asynchronous
@pytest.mark.parametrize("value", ["set", "nan", "bytes", "object"])
async def test_a_result_that_is_not_json(rig: Rig, value: str) -> None:
    failure = await failure_of(rig, "not_json", value)
    assert (failure.error.type, failure.final) == ("result_not_json", True)


@asynchronous
@pytest.mark.parametrize(
    "garbage", ["ffffffff", "00000003ffffff", "00000001ff", "00000003920d01", "00000005940e0990c0"]
)
async def test_a_frame_that_is_none_costs_the_attempt(rig: Rig, garbage: str) -> None:
    assert (await failure_of(rig, "garbage", garbage)).error.type == "bad_frame"


@asynchronous
async def test_what_is_printed_becomes_log_lines_in_order(rig: Rig) -> None:
    claim, outcome = await rig.run("print")
    assert isinstance(outcome, Completed)
    assert rig.queue.lines_of(claim) == ["one", "two", "three", "four"]
    assert len(rig.queue.finished) == 1
    assert rig.queue.noted == []


@asynchronous
async def test_printing_without_end_is_stopped(rig: Rig) -> None:
    claim = rig.queue.put("flood")
    outcome = await rig.outcome(claim)
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "output_flood"
    notes = rig.queue.notes_of(claim)
    assert sum(len(note.lines) for note in notes) <= limits.LOG_LINES_MAX * len(notes)
    assert all(len(line) <= limits.LOG_LINE_CHARS_MAX for line in rig.queue.lines_of(claim))
    assert (await rig.run("echo", 1))[1] == Completed(b"1")


@asynchronous
async def test_a_flood_of_log_lines_is_bounded_and_counted(rig: Rig) -> None:
    claim, outcome = await rig.run("log", 100_000)
    assert isinstance(outcome, Completed)
    lines = rig.queue.lines_of(claim)
    assert lines[-1] == "line 99999"
    assert len(lines) <= limits.LOG_LINES_MAX * len(rig.queue.notes_of(claim))
    assert len(lines) + sum(notes.dropped for notes in rig.queue.notes_of(claim)) == 100_000


@asynchronous
async def test_progress_and_lines_come_while_it_runs(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tq_node.work.attempt.NOTE_INTERVAL_S", 0.05)
    rig = rigs()
    claim = rig.queue.put("listen")
    await within(rig.queue.when(lambda: bool(rig.queue.noted)))
    _, notes = rig.queue.noted[0]
    assert notes.progress is not None
    assert notes.progress.fraction == 0.5
    rig.worker.stop_attempt(claim.task_id, claim.token)
    await rig.outcome(claim)


@asynchronous
async def test_cancel_of_a_handler_that_listens(rig: Rig) -> None:
    claim = rig.queue.put("listen")
    await rig.running(claim)
    rig.worker.stop_attempt(claim.task_id, claim.token)
    assert await rig.outcome(claim) == Completed(b'"stopped in order"')


@asynchronous
async def test_cancel_of_a_handler_that_does_not_listen(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tq_node.work.process_attempt.CANCEL_GRACE_S", 0.2)
    rig = rigs()
    await rig.run("echo")
    claim = rig.queue.put("sleep", 60)
    await rig.running(claim)
    start_s = time.monotonic()
    rig.worker.stop_attempt(claim.task_id, claim.token)
    rig.worker.stop_attempt(claim.task_id, claim.token)
    outcome = await rig.outcome(claim)
    assert isinstance(outcome, AttemptFailed)
    assert outcome.error.type == "cancelled"
    assert 0.2 <= time.monotonic() - start_s < 30, "it would have slept for a minute"


@asynchronous
async def test_a_kill_reaches_what_the_handler_started(rig: Rig) -> None:
    claim = rig.queue.put("hang_with_grandchild", timeout_ms=500)
    await rig.outcome(claim)
    pid = int(rig.queue.lines_of(claim)[0])
    await until(lambda: gone(pid), "the grandchild is gone")


@asynchronous
async def test_a_process_left_behind_holds_up_nothing(rig: Rig) -> None:
    _, outcome = await rig.run("grandchild", 30)
    assert isinstance(outcome, Completed)
    assert gone(int(outcome.result)), "it has ended with the attempt"
    assert (await rig.run("os_exit", 1))[1] is not None
    await within(rig.worker.stopService())


@asynchronous
async def test_a_copy_of_the_process_does_not_answer(rig: Rig) -> None:
    _, outcome = await rig.run("fork")
    assert outcome == Completed(b'"from the original"')
    assert (await rig.run("echo", 2))[1] == Completed(b"2")
    assert len(rig.queue.finished) == 2


@asynchronous
async def test_a_task_without_a_handler_here_is_given_back(rig: Rig) -> None:
    assert (await rig.run("unheard of"))[1] == Released()


@pytest.mark.parametrize("task_type", ["told", "a_told"])
@asynchronous
async def test_both_kinds_of_handlers_are_told_of_their_task(rig: Rig, task_type: str) -> None:
    _, outcome = await rig.run(
        task_type, attempt=4, queue="mail", max_attempts=5, failures=2, created_us=1_500_000, tags={"shop": "7"}
    )
    assert isinstance(outcome, Completed)
    assert msgspec.json.decode(outcome.result) == {
        "type": task_type, "queue": "mail", "tags": {"shop": "7"}, "created_at": "1970-01-01T00:00:01.500000Z",
        "attempt": 4, "max_attempts": 5, "attempts_left": 2,
    }  # fmt: skip


@asynchronous
async def test_a_claim_of_the_release_before_says_less(rig: Rig) -> None:
    _, outcome = await rig.run("told")
    assert isinstance(outcome, Completed)
    told = msgspec.json.decode(outcome.result)
    assert (told["queue"], told["tags"], told["max_attempts"], told["attempts_left"]) == ("default", {}, 3, 2)


@asynchronous
async def test_what_must_be_awaited_and_is_not_fails_once_and_says_why(rig: Rig) -> None:
    outcome = await failure_of(rig, "returns_coroutine")
    assert (outcome.error.type, outcome.final) == ("handler_not_async", True)
    assert "sample_handlers.py:" in outcome.error.message
    assert "must be an `async def` too" in outcome.error.message
