"""Workers over HTTP at three real nodes: any node gives work of all, holds nothing that matters, and may be killed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.clusters import Cluster, shared_cluster
from tests.cluster.replicated import NAMES, MakeCluster, started
from tests.support.harness import until

pytestmark = pytest.mark.cluster
NO_HANDLERS = ("--handlers", "tests.support.cluster_handlers", "--concurrency", "1")
LEASE_S = 5


_number = itertools.count(1)
_far = ["far"]


def far() -> str:
    """The type of this test's tasks, for which no node has a handler: what others left is not given to it."""
    return _far[0]


@pytest.fixture(autouse=True)
def own_type() -> None:
    _far[0] = f"far-{next(_number)}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with shared_cluster(tmp_path_factory.mktemp("nodes"), *NO_HANDLERS) as made:
        yield made


def claim(cluster: Cluster, node: str, worker: str = "w-1", **fields: Any) -> Any:
    body = {"worker": worker, "types": [far()], "wait": 5, "lease": LEASE_S, "limit": 8, **fields}
    answer = cluster[node].post("/work/claim", body, deadline_s=body["wait"] + 20)
    assert answer.status == 200, answer
    return answer.json


def named(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"task_id": one["task_id"], "token": one["token"]} for one in claims]


def extend(cluster: Cluster, node: str, claims: list[dict[str, Any]], worker: str = "w-1", **said: Any) -> list[Any]:
    body = {"worker": worker, "claims": [one | said for one in named(claims)]}
    answer = cluster[node].post("/work/extend", body)
    assert answer.status == 200, answer
    return list(answer.json["results"])


def finish(cluster: Cluster, node: str, claims: list[dict[str, Any]], worker: str = "w-1", **how: Any) -> list[Any]:
    body = {"worker": worker, "claims": [one | ({"outcome": "completed", "result": 7} | how) for one in named(claims)]}
    answer = cluster[node].post("/work/finish", body)
    assert answer.status == 200, answer
    return list(answer.json["results"])


def claim_all(cluster: Cluster, node: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = []

    def has_all() -> bool:
        claims.extend(claim(cluster, node, **fields)["claims"])
        return len(claims) >= count

    until(has_all, what="all are claimed")
    return claims


def test_one_node_gives_the_work_of_all(cluster: Cluster) -> None:
    tasks = [cluster[name].submit(far(), number) for number, name in enumerate(NAMES * 4)]
    claims = claim_all(cluster, "node-2", 12)
    assert sorted(one["task_id"] for one in claims) == sorted(tasks)
    assert {one["attempt"] for one in claims} == {1}
    assert {one["lease"] for one in claims} == {LEASE_S}
    assert extend(cluster, "node-3", claims, progress=0.5, log=["half"]) == [{"lease": LEASE_S}] * 12
    assert finish(cluster, "node-1", claims) == [{"success": True}] * 12
    assert finish(cluster, "node-3", claims) == [{"success": True}] * 12, "safe to send again"
    task = cluster["node-1"].status(tasks[0])
    assert (task["status"], task["result"], task["worker"]) == ("completed", 7, "w-1")
    assert (task["progress"], task["log"][0]["line"]) == ({"fraction": 0.5}, "half")


def test_who_waits_is_answered_when_work_comes_anywhere(cluster: Cluster) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda node=name: answers.append(claim(cluster, node, f"w-{node}", wait=20)))
        for name in NAMES
    ]
    for thread in threads:
        thread.start()

    def waiting() -> set[str]:
        return {one["worker"] for one in cluster["node-1"].get("/workers").json["workers"]}

    until(lambda: {f"w-{name}" for name in NAMES} <= waiting(), what="three workers wait")
    began_s = time.monotonic()
    for number in range(9):
        cluster["node-1"].submit(far(), number)
    for thread in threads:
        thread.join(30)
    assert time.monotonic() - began_s < 10
    assert all(answer["claims"] for answer in answers), "fair: each got some"
    assert all(0 < answer["waited"] < 20 for answer in answers)


def test_a_cancelled_attempt_is_told_by_an_early_answer_and_with_the_next_extend(cluster: Cluster) -> None:
    task = cluster["node-1"].submit(far())
    claims = claim_all(cluster, "node-2", 1)
    early: list[Any] = []
    waiting = threading.Thread(target=lambda: early.append(claim(cluster, "node-3", wait=30)))
    waiting.start()
    time.sleep(1)  # until it waits: an answer that comes at once is no early one
    began_s = time.monotonic()
    assert cluster["node-1"].post(f"/tasks/cancel?id={task}").status == 200
    waiting.join(20)
    assert time.monotonic() - began_s < 5
    assert early[0]["claims"] == []
    assert extend(cluster, "node-3", claims) == [{"cancelled": True}]
    (refused,) = finish(cluster, "node-1", claims)
    assert refused["error"]["code"] == "stale_attempt"


def test_a_silent_worker_loses_its_attempts_and_a_late_finish_is_refused(cluster: Cluster) -> None:
    task = cluster["node-3"].submit(far(), max_attempts=2)
    first = claim_all(cluster, "node-1", 1)
    began_s = time.monotonic()
    second = claim_all(cluster, "node-2", 1, worker="w-2", wait=20)
    assert time.monotonic() - began_s >= LEASE_S - 1
    assert [one["task_id"] for one in second] == [task]
    assert finish(cluster, "node-1", first)[0]["error"]["code"] == "stale_attempt"
    assert extend(cluster, "node-1", first)[0]["error"]["code"] == "stale_attempt"
    assert finish(cluster, "node-3", second, worker="w-2") == [{"success": True}]
    assert [one["outcome"] for one in cluster["node-1"].status(task)["attempts"]] == ["lost", "completed"]


def test_the_primary_ends_what_outruns_its_timeout(cluster: Cluster) -> None:
    task = cluster["node-1"].submit(far(), timeout=1, max_attempts=1)
    claims = claim_all(cluster, "node-2", 1)
    assert claims[0]["timeout"] == 1
    ended = cluster["node-1"].status(task, wait_s=10)
    assert (ended["status"], ended["error"]["type"]) == ("failed", "timeout")
    assert extend(cluster, "node-2", claims)[0]["error"]["code"] == "stale_attempt"


def test_the_same_claim_id_gives_the_same_claims_at_any_node(cluster: Cluster) -> None:
    for number in range(4):
        cluster["node-1"].submit(far(), number)
    first = claim(cluster, "node-1", claim_id="c-1", limit=3)["claims"]
    assert first
    for name in ("node-2", "node-3", "node-1"):
        again = claim(cluster, name, claim_id="c-1", limit=3)["claims"]
        assert sorted(map(str, named(again))) == sorted(map(str, named(first)))
    assert not {one["task_id"] for one in claim(cluster, "node-2", claim_id="c-2", wait=1)["claims"]} & {
        one["task_id"] for one in first
    }


@pytest.mark.long
def test_an_attempt_outlives_its_gateway_and_its_primary(make_cluster: MakeCluster) -> None:
    cluster = started(make_cluster, handlers=NO_HANDLERS)
    tasks = [cluster["node-1"].submit(far(), number) for number in range(6)]
    claims = claim_all(cluster, "node-3", 6, lease=10)
    cluster["node-3"].kill9()
    until(lambda: all("lease" in one for one in extend(cluster, "node-1", claims)), deadline_s=10, what="leases go on")
    assert {one["attempt"] for one in claims} == {1}
    until(lambda: finish(cluster, "node-2", claims) == [{"success": True}] * 6, deadline_s=10, what="all are kept")
    for task in tasks:
        ended = cluster["node-1"].status(task, wait_s=10)
        assert (ended["status"], ended["attempt"]) == ("completed", 1)


def test_operators_quiet_and_stop_a_worker(cluster: Cluster) -> None:
    assert cluster["node-1"].post("/workers/quiet?worker=w-1").status == 200
    cluster["node-2"].submit(far())
    assert claim(cluster, "node-3", wait=1) == {"state": "quiet", "claims": [], "waited": pytest.approx(0, abs=2)}
    assert cluster["node-2"].post("/workers/stop?worker=w-1").status == 200
    assert claim(cluster, "node-1", wait=0)["state"] == "stop"
    assert cluster["node-3"].post("/workers/resume?worker=w-1").status == 200
    assert len(claim_all(cluster, "node-1", 1)) == 1


def test_queues_are_served_in_their_order_and_by_weight(cluster: Cluster) -> None:
    for number in range(12):
        for queue in ("slow", "fast"):
            cluster["node-1"].submit(far(), number, id=f"{queue}-{number}", queue=queue)
    first = claim(cluster, "node-1", queues=["fast", "slow"], limit=2)["claims"]
    assert {one["queue"] for one in first} == {"fast"}
    only = claim_all(cluster, "node-2", 6, queues=["slow"], limit=6)
    assert {one["queue"] for one in only} == {"slow"}


def test_what_is_wrong_is_named_and_costs_the_others_nothing(cluster: Cluster) -> None:
    node = cluster["node-1"]
    node.submit(far())
    claims = claim_all(cluster, "node-2", 1)
    body = {"worker": "w-1", "claims": [*named(claims), {"task_id": "x", "token": claims[0]["token"]}]}
    body["claims"].append({"task_id": claims[0]["task_id"], "token": "no token"})  # type: ignore[attr-defined]
    good, unknown, bad = node.post("/work/extend", body).json["results"]
    assert good == {"lease": LEASE_S}
    assert unknown["error"]["code"] == "stale_attempt"
    assert (bad["error"]["code"], bad["error"]["field"]) == ("invalid_field", "/claims/2/token")
    for wrong, field in (
        ({"worker": ""}, "/worker"),
        ({"worker": "w", "lease": 1}, "/lease"),
        ({"worker": "w", "limit": 0}, "/limit"),
        ({"worker": "w", "wait": 61}, "/wait"),
        ({"worker": "w", "queues": {"a": 0}}, "/queues/a"),
        ({"worker": "w", "kinds": []}, "/kinds"),
    ):
        refused = node.post("/work/claim", wrong)
        assert (refused.status, refused.json["field"]) == (422, field), refused
    missing = node.post("/work/finish", {"worker": "w-1", "claims": [{**named(claims)[0], "outcome": "failed"}]})
    assert missing.json["results"][0]["error"]["field"] == "/claims/0/error"
