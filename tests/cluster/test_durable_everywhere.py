"""P1: what is acknowledged is synced on every copy. strace counts fdatasync and fsync of all three nodes."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.replicated import NAMES, MakeCluster, every_task, ids_in, led_by, seed_of, started
from tests.support.harness import NodeProcess, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.path.exists("/usr/bin/strace"), reason="strace is not installed"),
]

SUBMITS = 20
_RESUMED = re.compile(
    r"^\d+ +(\d+\.\d+) (?:<\.\.\. (?:fdatasync|fsync) resumed.*|(?:fdatasync|fsync)\(.*)= 0$", re.MULTILINE
)


class Trace:
    def __init__(self, path: Path) -> None:
        self.path = path

    def ends(self) -> list[float]:
        """When each sync was over, in wall time. A call that strace shows in one piece says when it began; close enough."""
        return [float(at) for at in _RESUMED.findall(self.path.read_text())]

    def between(self, begin_s: float, end_s: float) -> int:
        return sum(begin_s <= at <= end_s for at in self.ends())


def _has_synced(node: NodeProcess, trace: Trace) -> bool:
    node.submit("noop", delay=3600)
    return bool(trace.ends())


@contextlib.contextmanager
def traced(cluster: Cluster, directory: Path) -> Iterator[dict[str, Trace]]:
    traces = {name: Trace(directory / f"trace-{name}") for name in cluster.running}
    command = ["strace", "-f", "-qq", "-ttt", "-e", "trace=fdatasync,fsync"]
    tracers = [
        subprocess.Popen([*command, "-o", str(trace.path), "-p", str(cluster[name].pid)], stderr=subprocess.DEVNULL)
        for name, trace in traces.items()
    ]
    try:
        # strace says nothing when it has attached to every thread: the nodes' own syncs do.
        for name, trace in traces.items():
            until(trace.path.exists, what="strace has attached")
            until(functools.partial(_has_synced, cluster[name], trace), what="a sync")
        time.sleep(0.5)  # what begins with the trace is not counted
        yield traces
    finally:
        for tracer in tracers:
            tracer.terminate()
            tracer.wait(10)


def test_each_acknowledged_submit_is_synced_on_every_copy(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """One after another, so none shares its sync with another; each waits for an hour, so nothing else is written."""
    cluster = started(make_cluster)
    seed = seed_of(cluster)
    with traced(cluster, tmp_path) as traces:
        counts: dict[str, dict[str, int]] = {}
        for primary in NAMES:
            ids = ids_in(seed, led_by(cluster, primary)[0], f"synced-{primary}")
            without = dict.fromkeys(NAMES, 0)
            began_s = time.time()
            for _ in range(SUBMITS):
                one_s = time.time()
                cluster["node-1"].submit("noop", id=next(ids), delay=3600)
                acked_s = time.time()
                for name in NAMES:
                    without[name] += not traces[name].between(one_s, acked_s)
            counts[primary] = {name: traces[name].between(began_s, time.time()) for name in NAMES}
            assert not any(without.values()), f"acknowledged before a copy was synced: {without}"
    print(f"\n{SUBMITS} submits, one after another; syncs on each node, by primary: {counts}")
    for primary, by_node in counts.items():
        assert all(count >= SUBMITS for count in by_node.values()), (primary, by_node)
    cluster.stop()


@pytest.mark.long
def test_batches_share_their_syncs_and_still_have_one_each(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = started(make_cluster)
    with traced(cluster, tmp_path) as traces:
        began_s = time.time()
        for number in range(10):
            one_s = time.time()
            batch = {"tasks": [{"type": "noop", "delay": 3600} for _ in range(200)]}
            answer = cluster[NAMES[number % 3]].post("/tasks/batch", batch, deadline_s=30)
            acked_s = time.time()
            assert answer.json["accepted"] == 200
            assert all(traces[name].between(one_s, acked_s) for name in NAMES)
        counts = {name: traces[name].between(began_s, time.time()) for name in NAMES}
    print(f"\n10 batches of 200; syncs on each node: {counts}")
    assert all(10 <= count < 2000 for count in counts.values()), "group commit"
    assert len(every_task(cluster)) >= 2000
    cluster.stop()
