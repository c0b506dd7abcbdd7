"""Cases of ``POST /work/finish``: what an end makes of a task, and that it may be sent again."""

from __future__ import annotations

import time

from tq_node.conformance.cases import case, equal, must
from tq_node.conformance.probe import Probe

ERROR = {"type": "ValueError", "message": "no such address", "traceback": "line 1\nline 2"}


@case
def completed_with_a_result(probe: Probe) -> None:
    """A completed attempt ends its task, with its result."""
    task = probe.submit()
    equal(probe.finish(probe.claim(), result={"sent": [1, None, "ü"]}), [{"success": True}], "results")
    shown = probe.status(task)
    equal((shown["status"], shown["result"]), ("completed", {"sent": [1, None, "ü"]}), "status and result")


@case
def completed_without_a_result(probe: Probe) -> None:
    """A completed attempt that says no result has null."""
    task = probe.submit()
    probe.finish(probe.claim())
    shown = probe.status(task)
    equal((shown["status"], shown.get("result")), ("completed", None), "status and result")


@case
def ending_at_another_address(probe: Probe) -> None:
    """An attempt that was claimed at one address is ended at another."""
    task = probe.submit()
    equal(probe.finish(probe.claim(), node=2, result=1), [{"success": True}], "results")
    equal(probe.status(task)["result"], 1, "result")


@case
def completed_again(probe: Probe) -> None:
    """A completed attempt may be ended again, at any address, and stays as it was."""
    task = probe.submit()
    claims = probe.claim()
    for node in (0, 0, 1):
        equal(probe.finish(claims, node=node, result="once"), [{"success": True}], "results")
    shown = probe.status(task)
    equal((shown["result"], len(shown["attempts"])), ("once", 1), "result and number of attempts")


@case
def failed_is_tried_again(probe: Probe) -> None:
    """A failed attempt is followed by another."""
    task = probe.submit(backoff=0)
    equal(probe.finish(probe.claim(), outcome="failed", error=ERROR), [{"success": True}], "results")
    (second,) = probe.claim()
    equal((second["task_id"], second["attempt"]), (task, 2), "task and attempt")


@case
def failed_for_good(probe: Probe) -> None:
    """A task whose attempts are used up has failed, with the last error."""
    task = probe.submit(max_attempts=1)
    probe.finish(probe.claim(), outcome="failed", error=ERROR)
    shown = probe.status(task)
    equal((shown["status"], shown["error"]), ("failed", ERROR), "status and error")


@case
def failed_and_final(probe: Probe) -> None:
    """A failure that is final leaves no further attempt."""
    task = probe.submit(max_attempts=5, backoff=0)
    probe.finish(probe.claim(), outcome="failed", error=ERROR, final=True)
    shown = probe.status(task)
    equal((shown["status"], shown["attempt"]), ("failed", 1), "status and attempt")


@case
def failed_with_a_type_alone(probe: Probe) -> None:
    """An error needs no more than a type."""
    task = probe.submit(max_attempts=1)
    equal(probe.finish(probe.claim(), outcome="failed", error={"type": "E"}), [{"success": True}], "results")
    shown = probe.status(task)["error"]
    equal((shown["type"], shown["message"]), ("E", ""), "type and message")


@case
def retry_in(probe: Probe) -> None:
    """A failure may say in how many seconds the task is tried again, whatever its backoff."""
    probe.submit(backoff=600)
    began_s = time.monotonic()
    probe.finish(probe.claim(), outcome="failed", error=ERROR, retry_in=2)
    equal(probe.ask()["claims"], [], "claims at once")
    equal(probe.claim(wait=10)[0]["attempt"], 2, "attempt")
    must(time.monotonic() - began_s >= 1.8, "not before it is due")


@case
def failed_again(probe: Probe) -> None:
    """A failure may be sent again, and counts once."""
    task = probe.submit(max_attempts=3, backoff=600)
    claims = probe.claim()
    for node in (0, 1):
        equal(probe.finish(claims, node=node, outcome="failed", error=ERROR), [{"success": True}], "results")
    equal(len(probe.status(task)["attempts"]), 1, "number of attempts")


@case
def released(probe: Probe) -> None:
    """An attempt that is given back counts for nothing, and the task is given to another."""
    task = probe.submit(max_attempts=1)
    equal(probe.finish(probe.claim(), outcome="released"), [{"success": True}], "results")
    (second,) = probe.claim(worker=f"{probe.worker}-2")
    equal(second["task_id"], task, "task")
    equal(probe.finish([second], worker=f"{probe.worker}-2"), [{"success": True}], "results of the second")
    shown = probe.status(task)
    equal([one["outcome"] for one in shown["attempts"]], ["released", "completed"], "outcomes")


@case
def many_in_one_finish(probe: Probe) -> None:
    """Ends of many attempts go in one request, and each has its result in order."""
    tasks = [probe.submit() for _ in range(20)]
    equal(probe.finish(probe.claim(20)), [{"success": True}] * 20, "results")
    equal({probe.status(task)["status"] for task in tasks}, {"completed"}, "status")


@case
def one_bad_end_costs_the_others_nothing(probe: Probe) -> None:
    """Of ends in one request each is judged by itself."""
    for _ in range(3):
        probe.submit()
    claims = probe.claim(3)
    named = [{"task_id": one["task_id"], "token": one["token"]} for one in claims]
    ends = [
        named[0] | {"outcome": "completed"},
        named[1] | {"outcome": "failed"},
        {"task_id": f"{probe.type}-never-was", "token": named[2]["token"], "outcome": "completed"},
        named[2] | {"outcome": "failed", "error": ERROR, "final": True},
    ]
    results = probe.done("/work/finish", {"worker": probe.worker, "claims": ends})["results"]
    equal((results[0], results[3]), ({"success": True}, {"success": True}), "results of the good ones")
    equal(results[1]["error"]["field"], "/claims/1/error", "field of the one without its error")
    must(results[2]["error"]["code"] in ("stale_attempt", "not_found"), "the one that never was is refused")
    equal(probe.finish(claims[1:2]), [{"success": True}], "results of the second, sent as it should be")


@case
def a_result_that_is_too_large(probe: Probe) -> None:
    """A result that is too large is refused by its place, and the attempt goes on."""
    probe.submit()
    claims = probe.claim()
    (refused,) = probe.finish(claims, result="x" * 3 * 1024 * 1024)
    must("error" in refused, "a result with an error")
    equal((refused["error"]["status"], refused["error"]["code"]), (413, "payload_too_large"), "status and code")
    equal(probe.finish(claims, result="small"), [{"success": True}], "results of a small one")


@case
def last_words(probe: Probe) -> None:
    """Progress and log lines may come with the end."""
    task = probe.submit()
    probe.finish(probe.claim(), progress=1, log=["done"])
    shown = probe.status(task)
    found = shown["progress"]["fraction"], [line["line"] for line in shown["log"]]
    equal(found, (1, ["done"]), "progress and lines")


@case
def the_token_of_an_earlier_attempt(probe: Probe) -> None:
    """Of one task only the latest token ends an attempt."""
    task = probe.submit(backoff=0)
    first = probe.claim()
    probe.finish(first, outcome="released")
    second = probe.claim()
    must(first[0]["token"] != second[0]["token"], "each attempt has a token of its own")
    probe.finish(first, result="of the first")
    equal(probe.status(task)["status"], "processing", "status while the second runs")
    equal(probe.finish(second, result="of the second"), [{"success": True}], "results of the second")
    equal(probe.status(task)["result"], "of the second", "result")


@case
def nothing_to_end(probe: Probe) -> None:
    """Ending nothing is answered with no results."""
    equal(probe.finish([]), [], "results")
