"""What tokens may have in a cluster of three: how many tasks and queues open, known to all and found again after a death; and a
place in the queue beside another's flood."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import MakeCluster, started
from tests.support.harness import PROJECT, Answer, clean_environment, until
from tests.support.memory_tokens import token_of
from tq_node import limits
from tq_node.cli.tokens_file import written
from tq_node.tokens import Quotas, Role, TokenEntry, hash_of

pytestmark = pytest.mark.cluster

CHIEF, ANN, LOUD = (token_of(number) for number in (1, 2, 3))
NAMES = ("node-1", "node-2", "node-3")
MOST = 12
QUEUES = 2
numbers = itertools.count()


@pytest.fixture
def cluster(make_cluster: MakeCluster, tmp_path: Path) -> Cluster:
    tokens, secret = tmp_path / "tokens.toml", tmp_path / "secret"
    for path in (tokens, secret):
        path.touch(mode=0o600)
    entries = [
        TokenEntry("chief", hash_of(CHIEF), (Role.ADMIN,)),
        TokenEntry("loud", hash_of(LOUD), (Role.SUBMIT,)),
        TokenEntry("ann", hash_of(ANN), (Role.SUBMIT,), quotas=Quotas(open_tasks=MOST, queues=QUEUES)),
    ]
    tokens.write_text("\n".join(map(written, entries)))
    secret.write_text("5" * 64)
    more = ("--tokens-file", str(tokens), "--secret-file", str(secret))
    return started(make_cluster, more=more, by_peer_port=True, token=CHIEF)


def submit(cluster: Cluster, node: str, task_id: str, queue: str = "mail") -> Answer:
    task = {"type": "never", "id": task_id, "delay": 3600, "queue": queue}
    return cluster[node].request("POST", "/tasks/submit", task, headers={"Authorization": f"Bearer {ANN}"})


def scheduled(cluster: Cluster, node: str) -> int:
    """Tasks that have not ended, by all primaries."""
    stats = cluster[node].get("/tasks/stats?scope=cluster").json
    return int(stats["stats"]["scheduled"]) if not stats["partitions_missing"] else -1


def all_refuse(cluster: Cluster, names: list[str], said: str, queue: str = "mail") -> bool:
    """Whether each node refuses one more. What is admitted meanwhile is cancelled again."""
    are_refused = True
    for node in names:
        task_id = f"more-{next(numbers)}"
        answer = submit(cluster, node, task_id, queue)
        if answer.status == 201:
            are_refused = False
            assert cluster[node].request("POST", f"/tasks/cancel?id={task_id}").status == 200
        else:
            assert answer.status in (429, 503), answer.json
            are_refused = are_refused and answer.status == 429 and said in answer.json["detail"]
    return are_refused


def test_all_nodes_keep_to_a_token_s_quota_of_open_tasks(cluster: Cluster) -> None:
    ids = [f"ann-{number}" for number in range(MOST + 3 * 4)]
    accepted = [
        task_id for number, task_id in enumerate(ids) if submit(cluster, NAMES[number % 3], task_id).status == 201
    ]
    assert len(accepted) >= MOST, "all that it may have; more than it may have at most within a second"
    for task_id in accepted[MOST:]:
        assert cluster["node-1"].request("POST", f"/tasks/cancel?id={task_id}").status == 200
    del accepted[MOST:]
    names = list(NAMES)
    until(lambda: all_refuse(cluster, names, f"may have {MOST} tasks"), deadline_s=20, what="all nodes know")
    assert cluster["node-2"].request("POST", f"/tasks/cancel?id={accepted[0]}").status == 200
    until(lambda: submit(cluster, "node-3", "another").status == 201, deadline_s=20, what="one may come again")
    until(lambda: all_refuse(cluster, names, f"may have {MOST} tasks"), deadline_s=20, what="and no more")
    cluster["node-2"].kill9()
    names.remove("node-2")
    # The new primaries have found whose the tasks are.
    until(
        lambda: all_refuse(cluster, names, f"may have {MOST} tasks"), deadline_s=40, what="the others have taken over"
    )
    for node in names:
        until(lambda: scheduled(cluster, node) == MOST, deadline_s=40, what="all are led again")  # noqa: B023 -- called at once
    time.sleep(limits.OPEN_TASKS_TOLD_S + limits.OPEN_TASKS_ASK_S)  # what the dead one said counts no more
    assert all_refuse(cluster, names, f"may have {MOST} tasks")
    for task_id in accepted[1:6]:
        assert cluster["node-1"].request("POST", f"/tasks/cancel?id={task_id}").status == 200
    until(lambda: submit(cluster, "node-3", "other", "shop").status == 201, deadline_s=20, what="a second queue")
    until(
        lambda: all_refuse(cluster, names, f"may have {QUEUES} queues", "third"), deadline_s=20, what="not a third one"
    )


CONNECTIONS = limits.SUBMITS_AT_ONCE + 200
QUIET = 6


def refusals(cluster: Cluster, node: str) -> int:
    """Of submits, for want of room."""
    lines = cluster[node].get("/metrics").body.decode().splitlines()
    name = 'taskqueue_http_request_duration_seconds_count{route="/tasks/submit",code="429"}'
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(name))


def test_one_token_s_flood_leaves_another_its_share(cluster: Cluster) -> None:
    """A replica stands still, so that nothing is committed: what the node lets in at once is taken by one, who is refused more.
    Another one is let in all the same, and answered when there are commits again."""
    address = f"127.0.0.1:{cluster['node-1'].http_port}"
    loud = [sys.executable, "-m", "tests.support.loud", address, "127.0.0.1", str(CONNECTIONS), "0.5", "3", LOUD]
    process = subprocess.Popen(loud, cwd=PROJECT, env=clean_environment(), stdout=subprocess.DEVNULL)
    statuses: list[int] = []

    def ask(number: int) -> None:
        statuses.append(submit(cluster, "node-1", f"quiet-{number}").status)

    quiet = [threading.Thread(target=ask, args=(number,)) for number in range(QUIET)]
    try:
        cluster["node-3"].stop()
        before = refusals(cluster, "node-1")
        until(lambda: refusals(cluster, "node-1") > before, deadline_s=20, what="the node is full")
        for thread in quiet:
            thread.start()
        time.sleep(0.3)  # they are at the gate while nothing moves
    finally:
        cluster["node-3"].cont()
    for thread in quiet:
        thread.join(60)
    assert statuses == [201] * QUIET
    assert process.wait(60) == 0
