"""docs/howto/rolling-upgrade.md with two releases: nodes of an earlier one become today's one after another, under load.

The earlier release's code comes out of the repository's history. Without that the test is skipped, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.replicated import HARM, NAMES, compare_at_rest, every_task, kill_all, wait_copies, wait_quiet
from tests.support.harness import PROJECT, Nodes, until
from tests.support.history import assert_sound
from tests.support.load import loading, summary
from tests.upgrade.versions import Recorded, VersionedCluster, checkout, every_recorded
from tq_node.store.sqlite.upgrade import load_steps

pytestmark = [pytest.mark.cluster, pytest.mark.long]

DEADLINE_S = 120.0
HANDLERS = ("--handlers", "tests.support.cluster_handlers")
NEW_AND_OLD = HARM + r"|this version knows no call|is not served here"
"""What the older release says of calls that it does not know is part of the matter."""


@pytest.fixture(params=every_recorded(), ids=repr)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    found: Recorded = request.param
    return found


@pytest.fixture
def cluster(recorded: Recorded, nodes: Nodes, tmp_path: Path) -> Iterator[VersionedCluster]:
    """Three nodes of the earlier release."""
    old = checkout(recorded.manifest["commit"], tmp_path / "earlier-release")
    cluster = VersionedCluster(nodes, trees=dict.fromkeys(NAMES, old), options=HANDLERS)
    try:
        yield cluster
    finally:
        cluster.close()


def _whole(cluster: VersionedCluster) -> None:
    cluster.wait_whole(deadline_s=DEADLINE_S)
    cluster.wait_ready(DEADLINE_S)
    wait_copies(cluster, deadline_s=DEADLINE_S)


def _runs_today(cluster: VersionedCluster, name: str) -> bool:
    """By the file that the process has its code from."""
    environment = Path(f"/proc/{cluster[name].pid}/environ").read_bytes().split(b"\0")
    (path,) = (value.partition(b"=")[2].decode() for value in environment if value.startswith(b"PYTHONPATH="))
    return path.split(":")[-1] == str(PROJECT)


def _first_token(cluster: VersionedCluster) -> dict[str, str]:
    made = cluster["node-2"].post("/tokens/put", {"name": "first", "roles": ["admin"]})
    return {"Authorization": f"Bearer {made.json['token']}"} if made.status == 200 else {}


def test_an_earlier_release_becomes_this_one_node_by_node(recorded: Recorded, cluster: VersionedCluster) -> None:
    old = dict(cluster.trees)
    goes_back = recorded.manifest["schema"] == load_steps()[-1].version
    leaves_last = ""
    cluster.start()
    _whole(cluster)
    cluster["node-1"].post("/tasks/pause?queue=halted")
    waiting = [cluster["node-2"].submit("noop", n, id=f"waiting-{n}", queue="halted") for n in range(10)]
    took: list[str] = []
    with loading(cluster.ports, seed="upgrade", clients=3, pause_s=0.02) as load:
        time.sleep(1.0)

        def restart(name: str, tree: Path | None) -> None:
            began_s = time.monotonic()
            assert cluster[name].terminate() == 0, cluster[name].log_tail()
            if tree is None:
                cluster.trees.pop(name, None)
            else:
                cluster.trees[name] = tree
            cluster.start(name)
            _whole(cluster)
            assert _runs_today(cluster, name) == (tree is None)
            took.append(f"{name} {time.monotonic() - began_s:.1f} s")
            time.sleep(1.0)  # both releases serve side by side

        leaves_last = cluster.leader()
        order = [name for name in NAMES if name != leaves_last]
        restart(order[0], None)
        too_early = cluster[order[0]].post("/tokens/put", {"name": "early", "roles": ["admin"]})
        assert (too_early.status, too_early.json["code"]) == (503, "upgrading")
        if goes_back:  # as long as the schema is the same, a node may also become the old one again
            restart(order[0], old[order[0]])
            restart(order[0], None)
        restart(order[1], None)
        restart(leaves_last, None)
    assert not cluster.trees
    assert cluster["node-3"].post("/tasks/resume?queue=halted").status == 200
    for task in waiting:
        assert cluster["node-1"].status(task, wait_s=30)["status"] == "completed"
    wait_quiet(cluster)
    shown = [every_task(cluster, name) for name in NAMES]
    assert len(load.history.acknowledged) > 100
    assert_sound(load.history, {task_id: task for task_id, task in shown[0].items() if task_id not in waiting})
    assert shown[1] == shown[2] == shown[0]
    made = until(lambda: _first_token(cluster), what="the level is raised, and the first token made")
    assert [cluster[name].get("/cluster").status for name in NAMES] == [401] * 3
    assert [cluster[name].get("/cluster", headers=made).status for name in NAMES] == [200] * 3
    print(f"\nrolling upgrade: {', '.join(took)}; {summary(load.history)}")
    kill_all(cluster)
    compare_at_rest(cluster)
    cluster.assert_logs_are_clean(NEW_AND_OLD)
