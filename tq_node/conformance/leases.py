"""Cases of ``POST /work/extend`` and of leases: how long an attempt is held, and what ends it."""

from __future__ import annotations

import time

from tq_node.conformance.cases import case, equal, must
from tq_node.conformance.probe import Claim, Probe

SHORT_S = 5
"""The shortest lease that may be asked for."""
LOST_S = 25.0
"""Within this a task whose worker is silent for ``SHORT_S`` is given to another."""


@case
def the_lease_that_was_asked_for(probe: Probe) -> None:
    """A claim has the lease that was asked for, 5 to 300 seconds."""
    for lease in (5, 300, 7.5):
        probe.submit()
        equal(probe.claim(lease=lease)[0]["lease"], lease, "lease")


@case
def a_lease_where_none_was_asked_for(probe: Probe) -> None:
    """Where no lease is asked for it is 15 seconds."""
    probe.submit()
    body = {"worker": probe.worker, "types": [probe.type], "wait": 5}
    (claim,) = probe.done("/work/claim", body, wait_s=5)["claims"]
    equal(claim["lease"], 15, "lease")


@case
def extending_says_the_lease(probe: Probe) -> None:
    """Extending an attempt is answered with its lease."""
    probe.submit()
    equal(probe.extend(probe.claim(lease=20)), [{"lease": 20}], "results")


@case
def extending_at_another_address(probe: Probe) -> None:
    """An attempt that was claimed at one address is extended at another."""
    probe.submit()
    equal(probe.extend(probe.claim(lease=20), node=1), [{"lease": 20}], "results")


@case
def extending_keeps_an_attempt(probe: Probe) -> None:
    """An attempt that is extended in time outlives its first lease."""
    probe.submit()
    claims = probe.claim(lease=SHORT_S)
    for _ in range(3):
        time.sleep(SHORT_S / 2)
        equal(probe.extend(claims), [{"lease": SHORT_S}], "results")
    equal(probe.finish(claims), [{"success": True}], "results of the end")


@case
def a_silent_worker_loses_its_attempt(probe: Probe) -> None:
    """An attempt that is not extended is lost, and its task given to another worker."""
    _, second = _lost(probe)
    equal(second["attempt"], 2, "attempt")
    shown = probe.status(second["task_id"])
    equal([one["outcome"] for one in shown["attempts"]], ["lost"], "outcomes of ended attempts")
    equal(shown["worker"], f"{probe.worker}-2", "worker")


@case
def a_late_end_is_refused(probe: Probe) -> None:
    """The end of an attempt that was lost is refused, and changes nothing."""
    first, second = _lost(probe)
    _is_stale(probe.finish([first], result="late"))
    equal(probe.finish([second], worker=f"{probe.worker}-2", result="in time"), [{"success": True}], "results")
    equal(probe.status(second["task_id"])["result"], "in time", "result")


@case
def a_late_extend_is_refused(probe: Probe) -> None:
    """An attempt that was lost is not extended."""
    first, _ = _lost(probe)
    _is_stale(probe.extend([first]))


@case
def a_cancel_is_told(probe: Probe) -> None:
    """Extending an attempt whose task was cancelled says so."""
    task = probe.submit()
    claims = probe.claim()
    probe.cancel(task)
    equal(probe.extend(claims), [{"cancelled": True}], "results")


@case
def a_cancelled_attempt_has_no_end(probe: Probe) -> None:
    """The end of an attempt whose task was cancelled is refused."""
    task = probe.submit()
    claims = probe.claim()
    probe.cancel(task)
    _is_stale(probe.finish(claims))
    equal(probe.status(task)["status"], "cancelled", "status")


@case
def progress_is_shown(probe: Probe) -> None:
    """Progress that is said with an extend is shown with the task."""
    task = probe.submit()
    claims = probe.claim()
    equal("error" in probe.extend(claims, progress={"fraction": 0.25, "note": "a quarter"})[0], False, "an error")
    equal(probe.status(task).get("progress"), {"fraction": 0.25, "note": "a quarter"}, "progress")


@case
def progress_as_a_number(probe: Probe) -> None:
    """Progress may be a plain fraction."""
    task = probe.submit()
    probe.extend(probe.claim(), progress=0.5)
    equal(probe.status(task)["progress"]["fraction"], 0.5, "fraction")


@case
def log_lines_are_kept(probe: Probe) -> None:
    """Log lines that are said with extends are kept with the task, in order."""
    task = probe.submit()
    claims = probe.claim()
    probe.extend(claims, log=["one", "two"])
    probe.extend(claims, log=["three"])
    equal([line["line"] for line in probe.status(task)["log"]], ["one", "two", "three"], "lines")


@case
def many_in_one_extend(probe: Probe) -> None:
    """Extending many is answered with a result for each, in order, whatever the others are."""
    for _ in range(4):
        probe.submit()
    claims = probe.claim(4, lease=20)
    probe.finish(claims[1:2])
    unknown = {"task_id": f"{probe.type}-never-was", "token": claims[0]["token"]}
    first, ended, second, wrong, third = probe.extend([*claims[:3], unknown, claims[3]])
    equal([first, second, third], [{"lease": 20}] * 3, "results of those that go on")
    _is_stale([ended])
    _is_stale([wrong])


@case
def no_attempts_to_extend(probe: Probe) -> None:
    """Extending nothing is answered with no results."""
    equal(probe.extend([]), [], "results")


@case
def a_text_that_is_no_token(probe: Probe) -> None:
    """What is no token is refused by its place, beside those that are."""
    probe.submit()
    claims = probe.claim(lease=20)
    good, bad = probe.extend([*claims, {"task_id": claims[0]["task_id"], "token": "no token"}])
    equal(good, {"lease": 20}, "the result of the good one")
    equal((bad["error"]["code"], bad["error"]["field"]), ("invalid_field", "/claims/1/token"), "code and field")


@case
def the_token_of_another_task(probe: Probe) -> None:
    """The token of another task is stale, and costs neither its attempt."""
    for _ in range(2):
        probe.submit()
    one, other = probe.claim(2, lease=20)
    crossed = one | {"token": other["token"]}
    if one["token"] == other["token"]:
        return  # a server whose tokens mean something together with the task alone
    _is_stale(probe.extend([crossed]))
    _is_stale(probe.finish([crossed]))
    equal(probe.extend([one, other]), [{"lease": 20}] * 2, "results of extending them as they are")


@case
def a_timeout_ends_the_attempt(probe: Probe) -> None:
    """An attempt that outruns its task's timeout is ended by the server, and its end refused."""
    task = probe.submit(timeout=1, max_attempts=1)
    claims = probe.claim()
    shown = probe.status(task, wait_s=20)
    equal((shown["status"], shown["error"]["type"]), ("failed", "timeout"), "status and type of error")
    _is_stale(probe.finish(claims))


def _lost(probe: Probe) -> tuple[Claim, Claim]:
    """A lost attempt, and the one that follows it."""
    probe.submit(backoff=0)
    (first,) = probe.claim(lease=SHORT_S)
    began_s = time.monotonic()
    second: list[Claim] = []

    def is_given() -> bool:
        second.extend(probe.ask(worker=f"{probe.worker}-2", wait=5)["claims"])
        return bool(second)

    probe.until(is_given, "the task of a silent worker is given to another", LOST_S)
    # The lease counts from when the request was sent, which was a little before.
    must(time.monotonic() - began_s >= SHORT_S - 1.5, "not before its lease is over")
    equal(second[0]["task_id"], first["task_id"], "the task that was given")
    return first, second[0]


def _is_stale(results: list[dict[str, object]]) -> None:
    for result in results:
        error = result.get("error")
        must(isinstance(error, dict), f"a result with an error: {result}")
        assert isinstance(error, dict)
        equal((error.get("status"), error.get("code")), (409, "stale_attempt"), "status and code")
