"""Snapshots of a running cluster become a new cluster: docs/howto/backup-and-restore.md, from its first line to its last."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import (
    HANDLERS,
    HARM,
    NAMES,
    every_task,
    partitions_by_primary,
    started,
    wait_copies,
    wait_ended,
    wait_quiet,
    wait_settled,
)
from tests.support.harness import EXIT_S, Answer, Ended, clean_environment, until
from tests.support.load import loading
from tq_node.store.sqlite.open_database import DATABASE_NAME

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]
NOT_COMPARED = ("node", "role", "age")
"""Names the primary, which is another one in the new cluster."""
FINAL = ("completed", "failed", "cancelled")


def restore(cwd: Path, *arguments: str | Path) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "tq_node.restore", *map(str, arguments)],
        cwd=cwd, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=EXIT_S, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def snapshots(cluster: Cluster, names: Sequence[str] = NAMES) -> list[Path]:
    taken = []
    for name in names:
        answer = cluster[name].post("/cluster/snapshot", deadline_s=60)
        assert answer.status == 200, answer
        taken.append(Path(answer.json["path"]))
    return taken


def fill(cluster: Cluster) -> Counter[str]:
    """Tasks in all states. What is processing goes on for longer than the test."""
    node = cluster["node-1"]
    assert node.post("/tasks/pause?queue=halted").status == 200
    assert node.post("/tasks/pause?type=held&reason=why").status == 200
    assert node.post("/types/put", {"type": "noop", "max_attempts": 9}).status == 200
    asked: list[dict[str, object]] = [
        {"id": f"done-{n}", "type": "noop", "payload": {"n": n}, "tags": {"n": str(n)}} for n in range(60)
    ]
    asked += [{"id": f"big-{n}", "type": "noop", "payload": "x" * 100_000} for n in range(5)]
    asked += [{"id": f"failed-{n}", "type": "flaky-async", "max_attempts": 1} for n in range(10)]
    asked += [{"id": f"later-{n}", "type": "noop", "delay": 86_400, "priority": 9} for n in range(10)]
    asked += [{"id": f"waits-{n}", "type": "noop", "queue": "halted"} for n in range(10)]
    asked += [{"id": f"gone-{n}", "type": "noop", "delay": 86_400} for n in range(10)]
    asked += [{"id": f"runs-{n}", "type": "slow-async", "payload": 600} for n in range(6)]
    answer = node.post("/tasks/batch", {"tasks": asked})
    assert answer.json["accepted"] == len(asked), answer
    for n in range(10):
        assert node.post(f"/tasks/cancel?id=gone-{n}").status == 200
    for n in range(60):
        assert node.status(f"done-{n}", wait_s=20)["status"] == "completed"
    for n in range(10):
        assert node.status(f"failed-{n}", wait_s=20)["status"] == "failed"
    for n in range(5):
        assert node.status(f"big-{n}", wait_s=20)["status"] == "completed"
    return Counter(task["status"] for task in every_task(cluster).values())


def comparable(task: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in task.items() if key not in NOT_COMPARED}


def stats(cluster: Cluster, name: str) -> Any:
    answer = cluster[name].get("/tasks/stats?scope=cluster").json
    assert not answer["missing"]
    return answer["stats"]


def test_three_nodes_become_one_and_three_again(make_cluster: MakeCluster, tmp_path: Path) -> None:
    old = started(make_cluster)
    states = fill(old)
    assert set(states) == {"completed", "failed", "cancelled", "scheduled", "pending", "processing"}
    taken = snapshots(old)
    before, counted = every_task(old), stats(old, "node-1")
    top_epoch = max(shown["epoch"] for shown in old.partitions())
    old_id = old.agreed().cluster_id  # type: ignore[union-attr]
    content = {path: path.read_bytes() for path in taken}
    for name in old.running:
        old[name].kill9()

    new = make_cluster(options=old._options, home=tmp_path / "new")
    done = restore(new.home, "--node-id", "node-1", *taken)
    assert done.code == 0, done
    assert done.out.startswith(f"{len(before)} tasks in 64 partitions are in {new.data('node-1')}"), done.out
    assert [path.name for path in new.data("node-1").iterdir() if path.suffix != ".lock"] == [DATABASE_NAME]
    assert {path: path.read_bytes() for path in taken} == content, "snapshots stay as they are"

    new.start("node-1")
    new["node-1"].wait_ready()
    view = new.wait_whole()
    assert view.cluster_id not in (old_id, "")
    assert min(shown["epoch"] for shown in new.partitions()) > top_epoch + 1_000
    after = every_task(new)
    assert after.keys() == before.keys()
    for task_id, task in before.items():
        if task["status"] != "processing":
            assert comparable(after[task_id]) == comparable(task)
    assert stats(new, "node-1")["total"] == counted["total"]
    for state in FINAL:
        assert stats(new, "node-1")[state] == counted[state]

    # What is known stays known: the same id again is the same task, other content a conflict.
    node = new["node-1"]
    again = {"id": "done-1", "type": "noop", "payload": {"n": 1}, "tags": {"n": "1"}}
    assert node.post("/tasks/submit", again).status == 200
    assert node.post("/tasks/submit", {"id": "done-1", "type": "noop", "payload": 2}).status == 409

    assert [one["type"] for one in node.get("/types/list").json["types"]] == ["noop"]
    paused = node.get("/cluster").json["cluster"]["paused"]
    assert [(one.get("queue"), one.get("type"), one.get("reason")) for one in paused] == [
        ("halted", None, None),
        (None, "held", "why"),
    ]

    new.start("node-2", "node-3")
    new.wait_whole()
    wait_settled(new)  # a partition that changes hands is on no list for a moment
    for name in NAMES:
        assert every_task(new, name).keys() == before.keys()
        assert stats(new, name)["total"] == counted["total"]
        local = new[name].get("/tasks/stats").json["stats"]
        assert local["total"] == counted["total"], "each node has a copy of each task"
    assert new["node-2"].post("/tasks/resume?queue=halted").status == 200
    for n in range(10):
        assert new["node-3"].status(f"waits-{n}", wait_s=20)["status"] == "completed", "a paused queue was paused"
    # What ran when the snapshot was taken is lost with its node, once the lease has passed, and begins again.
    task = new["node-1"].status("runs-0")
    end = time.monotonic() + 40
    while task["attempt"] < 2 and time.monotonic() < end:
        time.sleep(0.5)  # polls, with a deadline of its own
        task = new["node-1"].status("runs-0")
    assert (task["status"], task["attempt"]) == ("processing", 2)
    assert task["attempts"][0]["outcome"] == "lost"
    for n in range(6):
        assert new["node-2"].post(f"/tasks/cancel?id=runs-{n}").status == 200
    new.stop()
    new.assert_logs_are_clean(HARM)


def test_snapshots_under_load_hold_all_that_was_acknowledged_before(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Rows are written behind the log, and nodes are asked one after another: what was answered before the first is there."""
    old = started(make_cluster)
    with loading(old.ports, seed="backup") as load:
        until(lambda: len(load.history.acknowledged) > 100, deadline_s=60, what="a hundred tasks are acknowledged")
        acknowledged = set(load.history.acknowledged)
        taken = snapshots(old)
        time.sleep(0.5)  # load goes on past the snapshots
    later = every_task(old)
    for name in old.running:
        old[name].kill9()
    assert len(acknowledged) > 100

    new = make_cluster(options=old._options, home=tmp_path / "new")
    assert restore(new.home, "--node-id", "node-1", *taken).code == 0
    new.start("node-1")
    new["node-1"].wait_ready()
    after = every_task(new)
    assert acknowledged <= after.keys() <= later.keys()
    wait_ended(new)
    new.stop()


def test_what_it_refuses(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(["node-1"], options=HANDLERS)
    cluster.start()
    cluster.wait_ready()
    cluster["node-1"].submit("noop")
    (one,) = snapshots(cluster, ["node-1"])
    other = make_cluster(["node-1"], home=tmp_path / "other", options=("--partitions", "8"))
    other.start()
    other.wait_ready()
    (foreign,) = snapshots(other, ["node-1"])

    def refused(*arguments: str | Path) -> str:
        done = restore(tmp_path, "--node-id", "new", *arguments)
        assert (done.code, done.out) == (1, ""), done
        assert len(done.err.splitlines()) == 1
        assert not (tmp_path / "data" / "new" / DATABASE_NAME).exists()
        assert not (tmp_path / "data" / "new" / "restoring").exists()
        return done.err

    assert "is of cluster" in refused(one, foreign)
    assert "belongs to it" in refused(cluster.data("node-1") / DATABASE_NAME)
    assert "is not a file" in refused(tmp_path)
    junk = tmp_path / "junk"
    junk.write_bytes(b"no database" * 1_000)
    assert "junk" in refused(junk)
    with sqlite3.connect(tmp_path / "foreign.sqlite3") as connection:
        connection.execute("CREATE TABLE a (b)")
    connection.close()
    assert "was not made by taskqueue" in refused(tmp_path / "foreign.sqlite3")
    damaged = bytearray(one.read_bytes())
    assert damaged.count(b"cluster_id") == 1
    damaged[damaged.index(b"cluster_id")] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    assert "damaged" in refused(tmp_path / "damaged")

    assert restore(tmp_path, "--node-id", "new", one).code == 0
    used = restore(tmp_path, "--node-id", "new", one)
    assert (used.code, "holds a store already" in used.err) == (1, True), used
    cluster.stop()
    other.stop()


def test_a_partition_that_no_snapshot_has_is_missed(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """With more nodes than copies, the snapshots of some of them are not the whole."""
    cluster = make_cluster(options=(*HANDLERS, "--replication-factor", "2"))
    cluster.start()
    cluster.wait_whole()
    wait_copies(cluster, 2)
    for n in range(40):
        answer = until(lambda: submitted(cluster, f"task-of-{n}"), what="accepted")  # noqa: B023
        assert answer is not None
        assert answer.status == 201, answer
    wait_quiet(cluster)
    wait_copies(cluster, 2)
    (taken,) = snapshots(cluster, ["node-2"])
    shown = partitions_by_primary(cluster)
    lacking = {partition for partition, one in shown.items() if "node-2" not in one["in_sync"]}
    kept = {task_id for task_id, task in every_task(cluster).items() if task["partition"] not in lacking}
    cluster.stop()
    assert 0 < len(lacking) < 64
    assert 0 < len(kept) < 40

    refused = restore(tmp_path, "--node-id", "node-1", taken)
    assert refused.code == 1
    assert f"({len(lacking)} in all)" in refused.err
    assert "node-1" in refused.err
    new = make_cluster(["node-1"], options=HANDLERS, home=tmp_path / "new")
    assert restore(new.home, "--node-id", "node-1", "--incomplete", taken).code == 0
    new.start()
    new.wait_ready()
    assert set(every_task(new)) == kept
    new.stop()


def submitted(cluster: Cluster, task_id: str) -> Answer | None:
    """None: refused for now, as while partitions are being handed over."""
    answer = cluster["node-1"].post("/tasks/submit", {"id": task_id, "type": "noop"})
    return None if answer.status == 503 else answer
