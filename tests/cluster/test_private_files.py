"""What a real node leaves on the disk is for its own user alone; what its handlers make is theirs to decide."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import EXIT_S, PROJECT, Nodes, clean_environment

pytestmark = pytest.mark.cluster

HANDLER = """
import os
from tq_node import task

@task("make")
def make(payload, context):
    open(payload, "x").close()
    return oct(os.stat(payload).st_mode & 0o777)
"""


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}


def test_every_file_of_a_node_is_private_and_few_snapshots_are_kept(nodes: Nodes, tmp_path: Path) -> None:
    home = tmp_path / "home"
    data = home / "data/node-1"
    data.mkdir(parents=True)
    data.chmod(0o755)
    (home / "mine.py").write_text(HANDLER)
    before = os.umask(0o022)
    try:
        node = nodes.start("--handlers", "mine", "--snapshot-dir", "copies", "--snapshots-kept", "2", cwd=home)
    finally:
        os.umask(before)
    made = node.status(node.submit("make", str(home / "made")), wait_s=20)
    assert made["result"] == "0o644", "handlers have the umask that the node was started with"
    taken = [node.post("/cluster/snapshot").json for _ in range(3)]
    copies = home / "copies/node-1"
    assert taken[-1]["kept"] == [taken[2]["path"], taken[1]["path"]]
    assert sorted(str(path) for path in copies.iterdir()) == sorted(taken[-1]["kept"])
    found = modes(data) | modes(home / "copies")
    assert {"taskqueue.sqlite3", "taskqueue.sqlite3-wal", "twistd.pid"} <= set(found)
    assert {name: oct(mode) for name, mode in found.items() if mode & 0o077} == {}
    assert node.terminate() == 0
    node.assert_log_is_clean()


def test_a_restore_drill_with_the_commands_of_the_page(nodes: Nodes, tmp_path: Path) -> None:
    """One node, whose directory has an older snapshot already."""
    page = (PROJECT / "docs/howto/backup-and-restore.md").read_text()
    found = re.search(r"```\n(backup=.*?)```", page, re.DOTALL)
    assert found is not None
    home = tmp_path / "home"
    home.mkdir()
    node = nodes.start("--node-id", "node-1", cwd=home)
    kept = node.submit("email", "kept")
    assert node.status(kept, wait_s=10)["status"] == "completed"
    assert node.post("/cluster/snapshot").status == 200
    later = node.submit("email", "later", delay=86_400)
    backup = home / "backup"
    script = re.sub("^backup=.*", f"backup={backup}", found[1], count=1, flags=re.MULTILINE)
    script = script.replace("8080 8081 8082", str(node.http_port))
    subprocess.run(["sh", "-eu", "-c", script], check=True, timeout=60, cwd=home)
    assert [path.name for path in backup.iterdir()] == [f"{node.http_port}.sqlite3"]
    node.kill9()
    restored = subprocess.run(
        [sys.executable, "-m", "tq_node.restore", "--node-id", "node-1", "--data-dir", "new", *map(str, backup.iterdir())],
        cwd=home, env=clean_environment(), capture_output=True, text=True, timeout=EXIT_S, check=False,
    )  # fmt: skip
    assert restored.returncode == 0, restored
    assert {name: oct(mode) for name, mode in modes(home / "new").items() if mode & 0o077} == {}
    again = nodes.start("--node-id", "node-1", "--data-dir", "new", cwd=home)
    assert [again.status(task_id)["status"] for task_id in (kept, later)] == ["completed", "scheduled"]
    assert again.terminate() == 0
