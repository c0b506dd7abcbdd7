"""The audit log of a real node: each way to send a request, a kill, a rotation, a full disk, and what takes a line out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import lacks_mount, mount_disk, unmount
from tests.support.harness import NodeProcess, Nodes, free_port, until

pytestmark = pytest.mark.cluster


def lines_of(path: Path) -> list[dict[str, Any]]:
    files = [*sorted(path.parent.glob(f"{path.name}.*")), path]
    return [json.loads(line) for file in files if file.exists() for line in file.read_bytes().splitlines()]


def verified(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tq_node.cli.audit_tool", "verify", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def metric(node: NodeProcess, name: str) -> float:
    page = node.get("/metrics").body.decode()
    return float(next(line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(f"{name} ")))


def test_changes_and_refusals_are_lines_over_a_kill_and_a_rotation_and_one_taken_out_is_found(
    nodes: Nodes, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    options = ("--audit-log", str(log), "--audit-size", "64KiB")
    node = nodes.start(*options)
    ids = [node.submit(payload="private") for _ in range(3)]
    batch = node.post("/tasks/batch", {"tasks": [{"type": "email", "payload": "private"}] * 400}).json
    ids += [result["task_id"] for result in batch["results"]]
    assert node.post(f"/tasks/cancel?id={ids[0]}").status in (200, 409)
    assert node.post("/tasks/pause?queue=mail", headers={"Origin": "http://elsewhere.example"}).status == 403
    until(lambda: len([line for line in lines_of(log) if line["outcome"] == 403]) == 1, what="the refusal in the log")
    node.kill9()
    node = nodes.start(*options)
    for _ in range(300):
        node.submit()
    shown = node.get("/audit?limit=10000").json
    assert shown["next"] is None
    assert shown["lines"] == lines_of(log)
    assert metric(node, "taskqueue_audit_lines_total") == 300
    assert node.terminate() == 0
    lines = lines_of(log)
    assert " ".join(line["what"] for line in lines).split()[: len(ids)] == ids
    assert [line["outcome"] for line in lines if line["what"] in (f"id={ids[0]}", "queue=mail")] == [
        lines[-302]["outcome"], 403,
    ]  # fmt: skip
    assert "private" not in log.read_text()
    assert log.with_name("audit.jsonl.000001").exists()
    whole = verified(log)
    assert (whole.returncode, f"{len(lines)} lines in" in whole.stdout) == (0, True), whole
    some = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(some[:5] + some[6:]))
    broken = verified(log)
    assert (broken.returncode, f"{log}:6: does not follow {log}:5" in broken.stdout) == (1, True), broken


def test_a_log_that_can_t_be_opened_is_said_in_one_line_and_so_is_one_that_another_node_writes(
    nodes: Nodes, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    ended = nodes.run("--http", str(free_port()), "--audit-log", str(tmp_path / "folder"))
    assert (ended.code, "--audit-log: " in ended.err) == (1, True), ended
    nodes.start("--audit-log", str(tmp_path / "audit"))
    ended = nodes.run("--node-id", "node-2", "--http", str(free_port()), "--audit-log", str(tmp_path / "audit"))
    assert (ended.code, "is written by another process" in ended.err) == (1, True), ended


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if why := lacks_mount():
        pytest.skip(why)
    disk = tmp_path / "disk"
    mount_disk(disk, 1)
    yield disk
    unmount(disk)


def test_a_full_disk_is_noted_costs_no_request_and_is_over_when_there_is_room(nodes: Nodes, small_disk: Path) -> None:
    log = small_disk / "audit"
    node = nodes.start("--audit-log", str(log))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 2_000_000)

    def notes() -> list[str]:
        return [note["code"] for note in node.get("/ready").json["notes"]]

    def is_noted() -> bool:
        for _ in range(30):
            node.submit()
        return "audit_log_failing" in notes()

    until(is_noted, what="the note")
    ballast.unlink()
    until(lambda: "audit_log_failing" not in notes(), what="the end of the note")
    assert metric(node, "taskqueue_audit_lines_lost_total") == 0
    written = metric(node, "taskqueue_audit_lines_total")
    assert node.terminate() == 0
    assert len(lines_of(log)) == written
    assert verified(log).returncode == 0
    assert "audit_log_failing" in node.log or "can't be written" in node.log
