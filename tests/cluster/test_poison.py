"""F31: a task that kills its node, fails over, and kills the next one. After three lost attempts it is left alone."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.cluster.replicated import HARM, NAMES, PROCESS_HANDLERS, MakeCluster, started, wait_copies, wait_ended
from tests.support.harness import until

pytestmark = pytest.mark.cluster

DEADS = 3


@pytest.mark.long
def test_a_poison_task_becomes_a_dead_letter(make_cluster: MakeCluster, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    cluster = started(make_cluster, handlers=PROCESS_HANDLERS, environment={"TEST_LEDGER": str(ledger)})
    bystanders = [cluster["node-1"].submit("noop", delay=1) for _ in range(30)]
    began_s = time.monotonic()
    task_id = "poison"
    poison = {"type": "kill-node", "payload": str(cluster.home / "data"), "id": task_id}
    with contextlib.suppress(OSError):  # it may kill the node that is about to say that it is in
        # 200: it has killed its primary before that could answer, and the node asked another.
        assert cluster["node-1"].post("/tasks/submit", poison).status in (200, 201, 503)
    died: list[str] = []
    while len(died) < DEADS:
        fallen = until(
            lambda: [name for name in NAMES if not cluster[name].is_running],
            deadline_s=40,
            what=f"death number {len(died) + 1} (so far {died})",
        )
        for name in fallen:
            assert cluster[name].process.returncode == -9
            died.append(name)
            cluster.start(name)
    print(f"\nthe task killed {', '.join(died)} within {time.monotonic() - began_s:.1f} s")
    cluster.wait_whole()
    wait_copies(cluster)
    cluster.wait_ready()

    def found_failed() -> bool:
        return any(dead["id"] == task_id for dead in cluster["node-1"].get("/tasks/dead?scope=cluster").json["tasks"])

    until(found_failed, deadline_s=30, what="the dead letter")
    for name in NAMES:
        found = cluster[name].status(task_id)
        assert (found["status"], found["error"]["type"]) == ("failed", "attempts_lost")
        assert [attempt["outcome"] for attempt in found["attempts"]] == ["lost"] * DEADS
        assert [attempt["attempt"] for attempt in found["attempts"]] == [1, 2, 3]
    lines = [line.split() for line in ledger.read_text().splitlines()]
    kills = [line for line in lines if line[0] == task_id]
    assert len({token for _, _, token, _, _ in kills}) == len(kills) == DEADS, "each start was committed before it ran"
    wait_ended(cluster)
    assert {cluster["node-2"].status(one)["status"] for one in bystanders} == {"completed"}
    time.sleep(1.0)
    assert cluster.running == list(NAMES), "it is left alone"

    assert cluster["node-3"].post(f"/tasks/cancel?id={task_id}").json["code"] == "already_final"
    cluster.stop()
    cluster.assert_logs_are_clean(HARM)
