"""Keep what a release leaves on disk and says on the wire, for the releases that come after it.

    python -m tests.upgrade.record NAME [--tree CHECKOUT] [--commit COMMIT]

Run it with the code that is about to be released, before the first change that follows. It makes ``tests/upgrade/releases/NAME``
(names are sorted: begin with a number) and takes about three minutes. ``--tree`` records another checkout: its dependencies
must be those of this interpreter. What is kept:

- ``directories.tar.xz``: data directories of nodes that were killed with -9, and one snapshot. ``states``: three nodes, three
  copies, tasks in every state, tombstones, a horizon that has moved, a paused queue, records that are not applied.
  ``moving``: three nodes, two copies, one node being drained, copies on their way.
- ``manifest.json``: which commit, and what must be found in the directories.
- ``wire.json``: commands and bodies (``describe.py``).
- ``transcript.jsonl``: boxes that crossed between peers in ``life.py``, a line for each: handshakes of both lanes, and for every
  command, answer and error the shortest ones that hold something new.

Nothing of the machine is kept: paths in it would be refused at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.cluster.replicated import NAMES, kill_all, wait_copies
from tests.support.harness import PROJECT, NodeHttp, Nodes, clean_environment, until
from tests.upgrade.frozen import Frozen
from tests.upgrade.life import OPTIONS, live
from tests.upgrade.taps import Said
from tests.upgrade.versions import HERE, RELEASES, VersionedCluster, line_of

PORTS = {"node-1": 7101, "node-2": 7201, "node-3": 7301}
"""Outside of what the tests and the kernel choose from: the directories name them."""
DATABASE = "taskqueue.sqlite3"
HELD_S = 3_600
SECRET = "what the peers of the transcript prove that they know\n"
"""Content of their ``--secret-file``."""
FAR_RUN_AT = "2036-01-01T00:00:00Z"
PER_KIND = 2
"""Boxes kept of each kind."""
HANDSHAKE = ("Greet", "Hello", "Prove")


# --- directories ---
def record_states(nodes: Nodes, tree: Path, packed: dict[str, bytes]) -> dict[str, Any]:
    home = nodes.directory / "states"
    short = VersionedCluster(
        nodes, home=home, trees=dict.fromkeys(NAMES, tree), ports=PORTS,
        options=("--partitions", "8", "--retention", "1s", "--dedupe-window", "2s"),
    )  # fmt: skip
    _started(short)
    node = short["node-1"]
    forgotten = [node.submit("quick", n) for n in range(8)]
    for task in forgotten:
        assert node.status(task, wait_s=20)["status"] == "completed"
    # The horizon moves once a minute: then these ids are too old, and their tombstones go.
    until(lambda: _codes(node, forgotten) == {404}, deadline_s=150, what="tombstones behind the horizon gone")
    purged = [node.submit("quick", n, id=f"purged-{n}") for n in range(8)]
    until(lambda: _codes(node, purged) == {410}, deadline_s=30, what="ended tasks purged")
    short.stop()

    long = VersionedCluster(
        nodes, home=home, trees=dict.fromkeys(NAMES, tree), ports=PORTS, held_s=HELD_S, options=("--partitions", "8")
    )
    _started(long)
    node = long["node-1"]
    tasks = _in_every_state(node)
    answer = node.post("/cluster/snapshot", deadline_s=60)
    assert answer.status == 200, answer
    packed["snapshot/node-1.sqlite3"] = Path(answer.json["path"]).read_bytes()
    burst = _killed_under_load(long)
    unapplied = {name: _unapplied(long.data(name)) for name in NAMES}
    assert sum(unapplied.values()), "records that were not applied when the nodes were killed"
    _pack(long, "states", packed)
    return {
        "forgotten": forgotten,
        "purged": purged,
        "tasks": tasks,
        "burst": burst,
        "paused": ["halted"],
        "unapplied": unapplied,
    }


def record_moving(nodes: Nodes, tree: Path, packed: dict[str, bytes]) -> dict[str, Any]:
    cluster = VersionedCluster(
        nodes, home=nodes.directory / "moving", trees=dict.fromkeys(NAMES, tree), ports=PORTS,
        options=("--partitions", "6", "--replication-factor", "2"),
    )  # fmt: skip
    _started(cluster, copies=2, partitions=6)
    node = cluster["node-1"]
    big = [node.submit("quick", f"{n}" + "x" * 400_000, id=f"big-{n}") for n in range(12)]
    for task in big:
        assert node.status(task, wait_s=30)["status"] == "completed"
    time.sleep(2)  # written, trimmed, told with the heartbeats
    assert node.post("/cluster/drain?node=node-3").status == 202
    shown = until(lambda: _moving(node), deadline_s=30, what="copies on their way")
    kill_all(cluster)
    _pack(cluster, "moving", packed)
    return {"tasks": big, "drained": "node-3", "partitions": shown}


def _started(cluster: VersionedCluster, copies: int = 3, partitions: int = 8) -> None:
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_copies(cluster, copies, partition_count=partitions)


def _codes(node: NodeHttp, tasks: Iterable[str]) -> set[int]:
    return {node.get(f"/tasks/status?id={task}").status for task in tasks}


def _moving(node: NodeHttp) -> list[dict[str, Any]]:
    shown = node.get("/cluster/partitions").json["partitions"]
    return [{"partition": one["partition"], "adding": one["adding"]} for one in shown if one["adding"]]


def _in_every_state(node: NodeHttp) -> dict[str, Any]:
    """Of each task, what ``/tasks/status`` says; none of them changes any more."""
    assert node.post("/tasks/pause?queue=halted").status == 200
    tags = {"who": "n-1", "why": "größer"}
    asked: list[dict[str, Any]] = [
        {"id": f"done-{n}", "type": "quick", "payload": {"n": n}, "tags": tags} for n in range(8)
    ]
    asked += [{"id": f"long-{n}", "type": "quick", "payload": "x" * 2_500} for n in range(4)]
    asked += [{"id": f"apart-{n}", "type": "apart", "payload": [n, None, 0.5]} for n in range(4)]
    asked += [{"id": f"said-{n}", "type": "talks", "timeout": 60, "max_attempts": 7} for n in range(4)]
    asked += [{"id": f"flaky-{n}", "type": "flaky"} for n in range(6)]
    asked += [{"id": f"failed-{n}", "type": "fails", "priority": 9} for n in range(6)]
    asked += [{"id": f"retried-{n}", "type": "fails"} for n in range(2)]
    asked += [{"id": f"refused-{n}", "type": "refused"} for n in range(2)]
    asked += [{"id": f"unknown-{n}", "type": "no-such-type", "max_attempts": 1} for n in range(2)]
    asked += [{"id": f"later-{n}", "type": "quick", "run_at": FAR_RUN_AT, "payload": n} for n in range(6)]
    asked += [{"id": f"waits-{n}", "type": "quick", "queue": "halted", "payload": n} for n in range(6)]
    asked += [{"id": f"gone-{n}", "type": "quick", "run_at": FAR_RUN_AT} for n in range(4)]
    asked += [{"id": f"runs-{n}", "type": "held", "payload": n} for n in range(6)]
    asked += [{"id": f"backoff-{n}", "type": "fails", "backoff": 86_400} for n in range(2)]
    made = [node.submit("quick", n, priority=0) for n in range(4)]
    answer = node.post("/tasks/batch", {"tasks": asked}, deadline_s=60)
    assert answer.json["accepted"] == len(asked), answer
    for n in range(4):
        assert node.post(f"/tasks/cancel?id=gone-{n}").status == 200
    for n in range(2):
        assert node.status(f"retried-{n}", wait_s=30)["status"] == "failed"
        assert node.post(f"/tasks/retry?id=retried-{n}").status == 200
    names = [*(str(one["id"]) for one in asked), *made]
    ending = [
        name for name in names if name.split("-")[0] not in ("later", "waits", "gone", "runs", "backoff", "unknown")
    ]
    for name in ending:
        assert node.status(name, wait_s=30)["status"] in ("completed", "failed"), name
    until(
        lambda: all(node.status(f"runs-{n}").get("progress") for n in range(6)), deadline_s=30, what="progress is kept"
    )
    until(lambda: all(node.status(f"backoff-{n}")["attempts"] for n in range(2)), deadline_s=30, what="first attempts")
    time.sleep(1.5)  # notes of running attempts are written once a second
    found = {name: node.status(name) for name in names}
    states = Counter(task["status"] for task in found.values())
    assert set(states) == {"completed", "failed", "cancelled", "scheduled", "pending", "processing"}, states
    return found


def _killed_under_load(cluster: VersionedCluster) -> list[str]:
    """kill -9 of all at one moment, while clients submit. Returns what had been accepted."""
    accepted: list[str] = []
    over = threading.Event()

    def submit(name: str) -> None:
        for number in range(200):
            if over.is_set():
                return
            task_id = f"burst-{name}-{number}"
            try:
                answer = NodeHttp(cluster.ports[name]).post(
                    "/tasks/submit", {"id": task_id, "type": "quick"}, deadline_s=5
                )
            except OSError:
                return
            if answer.status == 201:
                accepted.append(task_id)

    threads = [threading.Thread(target=submit, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    kill_all(cluster)
    over.set()
    for thread in threads:
        thread.join(20)
    assert accepted
    return sorted(accepted)


def _unapplied(data: Path) -> int:
    """Records of the log beyond what the rows reflect, on a copy: looking at the original would settle its write-ahead log."""
    with tempfile.TemporaryDirectory() as scratch:
        for file in data.glob(f"{DATABASE}*"):
            shutil.copy(file, scratch)
        with closing(sqlite3.connect(Path(scratch) / DATABASE)) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM log JOIN partitions USING (partition) "
                "WHERE sequence > applied AND sequence > trimmed AND pos >= log_from"
            ).fetchone()
    return int(count)


def _pack(cluster: VersionedCluster, which: str, packed: dict[str, bytes]) -> None:
    """The database and its write-ahead log; the rest of a directory belongs to the process that had it open."""
    for name in NAMES:
        for suffix in ("", "-wal"):
            file = cluster.data(name) / f"{DATABASE}{suffix}"
            if file.exists():
                packed[f"{which}/data/{name}/{file.name}"] = file.read_bytes()


def tar_of(packed: dict[str, bytes]) -> bytes:
    """Equal content, equal bytes: no times, no owners, in order of name."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(packed):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(packed[name]), 0o600
            archive.addfile(member, io.BytesIO(packed[name]))
    return lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME)


# --- the wire ---
def description_of(tree: Path) -> str:
    """By the tree's own code, in a process of its own."""
    done = subprocess.run(
        [sys.executable, HERE / "describe.py"],
        env=clean_environment(PYTHONPATH=str(tree)), cwd=tree, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def record_transcript(nodes: Nodes, tree: Path, frozen: Frozen) -> list[Said]:
    secret_file = nodes.directory / "secret"
    secret_file.write_text(SECRET)
    secret_file.chmod(0o600)
    cluster = VersionedCluster(
        nodes, home=nodes.directory / "life", trees=dict.fromkeys(NAMES, tree), tapped=True, held_s=HELD_S,
        options=(*OPTIONS, "--secret-file", str(secret_file)),
    )  # fmt: skip
    assert cluster.taps is not None
    live(cluster)
    cluster.close()
    return chosen(list(cluster.taps.said()), frozen)


def chosen(said: list[Said], frozen: Frozen) -> list[Said]:
    """Handshakes of the first connections of each lane, and the ``PER_KIND`` shortest boxes of everything that is new."""
    seen: Counter[object] = Counter()
    lanes: dict[int, str] = {}
    kept = set[int]()
    for index in sorted(range(len(said)), key=lambda index: sum(map(len, said[index].box.values()))):
        one = said[index]
        found = frozen.read(one.command, one.what, one.box, one.calls)
        if one.command in HANDSHAKE and one.what != "error":
            lanes.update((one.connection, read.value.lane.value) for read in found)
            continue
        code = one.box.get("_error_code", b"")
        kinds = {(one.command, one.what, code, kind) for kind in (*(read.kind for read in found), *one.calls, "")}
        if any(seen[kind] < PER_KIND for kind in kinds):
            seen.update(kinds)
            kept.add(index)
    shaken = {
        connection
        for lane in set(lanes.values())
        for connection in sorted(n for n in lanes if lanes[n] == lane)[:PER_KIND]
    }
    kept |= {index for index, one in enumerate(said) if one.command in HANDSHAKE and one.connection in shaken}
    return [said[index] for index in sorted(kept)]


# --- all of it ---
def check_nothing_of_the_machine(kept: dict[str, bytes], *places: Path) -> None:
    words = {os.fsencode(place) for place in (*places, Path.home(), Path(sys.prefix), Path(sys.base_prefix))} | {
        b"/tmp/"
    }
    words |= {os.uname().nodename.encode()}
    for name, content in kept.items():
        found = [word for word in words if len(word) > 3 and word in content]
        if found:
            raise SystemExit(f"{name} names this machine: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a release for tests/upgrade.")
    parser.add_argument("name")
    parser.add_argument("--tree", type=Path, default=PROJECT)
    parser.add_argument("--commit", help="of the tree, where it is no checkout of its own")
    options = parser.parse_args()
    tree = options.tree.resolve()
    commit = options.commit or _commit(tree)
    packed: dict[str, bytes] = {}
    wire = description_of(tree)
    with tempfile.TemporaryDirectory() as scratch:
        nodes = Nodes(Path(scratch))
        try:
            transcript = record_transcript(nodes, tree, Frozen(json.loads(wire)))
            states = record_states(nodes, tree, packed)
            moving = record_moving(nodes, tree, packed)
        finally:
            nodes.close()
    manifest = {
        "commit": commit,
        "peer_ports": {name: port + 1_000 for name, port in PORTS.items()},
        "schema": json.loads(wire)["schema"],
        "states": states,
        "moving": moving,
        "life": {"secret_file": SECRET},
    }
    texts = {
        "manifest.json": json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
        "wire.json": wire,
        "transcript.jsonl": "".join(line_of(one) + "\n" for one in transcript),
    }
    check_nothing_of_the_machine(packed | {name: text.encode() for name, text in texts.items()}, tree, PROJECT)
    folder = RELEASES / options.name
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "directories.tar.xz").write_bytes(tar_of(packed))
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:9d} {file}")


def _commit(tree: Path) -> str:
    done = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
