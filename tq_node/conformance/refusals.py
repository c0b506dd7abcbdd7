"""Cases of what is refused as a whole: which status, which code, and which field is named."""

from __future__ import annotations

from tq_node.conformance.cases import case, case_with_token, equal, must
from tq_node.conformance.probe import Answer, Probe

CLAIM, EXTEND, FINISH = "/work/claim", "/work/extend", "/work/finish"


@case
def a_request_without_a_worker(probe: Probe) -> None:
    """Who does not say which worker it is, is refused."""
    for path, body in ((CLAIM, b"{}"), (EXTEND, b'{"claims":[]}'), (FINISH, b'{"claims":[]}')):
        _is_refused(probe.post(path, body), 422, "missing_field", "/worker")


@case
def a_worker_s_name(probe: Probe) -> None:
    """A worker's name has 1 to 100 characters that can be shown."""
    for name in ("", "x" * 101, "a\nb", 7):
        _is_refused(probe.post(CLAIM, {"worker": name}), 422, "invalid_field", "/worker")


@case
def a_lease_out_of_bounds(probe: Probe) -> None:
    """A lease is 5 to 300 seconds."""
    for lease in (0, 4.9, 301, -1, "15"):
        _is_refused(probe.post(CLAIM, {"worker": probe.worker, "lease": lease}), 422, "invalid_field", "/lease")


@case
def a_wait_out_of_bounds(probe: Probe) -> None:
    """A wait is 0 to 60 seconds."""
    for wait in (-1, 61, None):
        _is_refused(probe.post(CLAIM, {"worker": probe.worker, "wait": wait}), 422, "invalid_field", "/wait")


@case
def a_limit_out_of_bounds(probe: Probe) -> None:
    """A limit is 1 to 1,000."""
    for limit in (0, 1_001, 1.5, "1"):
        _is_refused(probe.post(CLAIM, {"worker": probe.worker, "limit": limit}), 422, "invalid_field", "/limit")


@case
def a_claim_id_that_is_too_long(probe: Probe) -> None:
    """A claim id has 1 to 100 characters."""
    for name in ("", "x" * 101):
        _is_refused(probe.post(CLAIM, {"worker": probe.worker, "claim_id": name}), 422, "invalid_field", "/claim_id")


@case
def a_weight_out_of_bounds(probe: Probe) -> None:
    """The weight of a queue is 1 to 100, and a wrong one is named."""
    answer = probe.post(CLAIM, {"worker": probe.worker, "queues": {"mail": 1, "sms": 0}})
    _is_refused(answer, 422, "invalid_field", "/queues/sms")


@case
def a_field_that_there_is_not(probe: Probe) -> None:
    """An unknown field is refused by its name."""
    _is_refused(probe.post(CLAIM, {"worker": probe.worker, "kinds": []}), 422, "unknown_field", "/kinds")
    body = {"worker": probe.worker, "claims": [], "lease": 30}
    _is_refused(probe.post(EXTEND, body), 422, "unknown_field", "/lease")


@case
def an_outcome_that_there_is_not(probe: Probe) -> None:
    """An unknown outcome is refused."""
    body = {"worker": probe.worker, "claims": [{"task_id": "a", "token": "b", "outcome": "done"}]}
    answer = probe.post(FINISH, body)
    equal((answer.status, answer.json["code"]), (422, "invalid_field"), "status and code")


@case
def more_attempts_than_a_request_may_have(probe: Probe) -> None:
    """A request extends or ends at most 1,000 attempts."""
    many = [{"task_id": "a", "token": "b"}] * 1_001
    _is_refused(probe.post(EXTEND, {"worker": probe.worker, "claims": many}), 422, "invalid_field", "/claims")
    ends = [one | {"outcome": "released"} for one in many]
    _is_refused(probe.post(FINISH, {"worker": probe.worker, "claims": ends}), 422, "invalid_field", "/claims")


@case
def a_body_that_is_no_json(probe: Probe) -> None:
    """What is no JSON object is refused with 400."""
    for body in (b"", b"{", b"[]", b'"worker"', b'{"worker":"\xff"}'):
        answer = probe.post(CLAIM, body)
        equal(answer.status, 400, f"status for {body!r}")


@case
def refusals_are_problems(probe: Probe) -> None:
    """A refusal is application/problem+json with status, code, title and detail."""
    answer = probe.post(CLAIM, {"worker": probe.worker, "limit": 0})
    equal(answer.headers.get("content-type", "").partition(";")[0], "application/problem+json", "content type")
    problem = answer.json
    equal(problem["status"], 422, "status in the body")
    for name in ("type", "title", "detail", "code"):
        must(isinstance(problem.get(name), str) and problem[name], f"{name} is a text")


@case
def only_post(probe: Probe) -> None:
    """The worker API is asked by POST alone."""
    for path in (CLAIM, EXTEND, FINISH):
        answer = probe.server.call("GET", path, None, token=probe.server.token)
        equal(answer.status, 405, f"status of GET {path}")


@case_with_token
def no_token(probe: Probe) -> None:
    """Where tokens are asked for, a request without one is refused with 401."""
    for path in (CLAIM, EXTEND, FINISH):
        answer = probe.server.call("POST", path, b'{"worker":"w","claims":[]}')
        equal(answer.status, 401, f"status of {path}")
        must(answer.headers.get("www-authenticate", "").startswith("Bearer"), "it asks for a Bearer token")


@case_with_token
def a_token_that_there_is_not(probe: Probe) -> None:
    """An unknown token is refused with 401."""
    answer = probe.server.call("POST", CLAIM, b'{"worker":"w"}', token=f"tq_{'A' * 43}")
    must(answer.status in (401, 503), f"status 401, or 503 where it can't be judged: {answer.status}")


def _is_refused(answer: Answer, status: int, code: str, field: str) -> None:
    problem = answer.json
    found = answer.status, problem.get("code"), problem.get("field")
    equal(found, (status, code, field), "status, code and field")
