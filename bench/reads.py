"""Strong reads: the status of a task as its primary, with the others' word for it, has it committed."""

from __future__ import annotations

from urllib.parse import quote

from bench.cluster import Cluster
from bench.context import Context
from bench.load import Load, offer
from bench.samples import OURS, Kind
from bench.submits import details, fill

STATUS = Kind("status", "32 in flight", "reads/s")
IN_FLIGHT = 32
TASKS = 1_000


def status(context: Context) -> None:
    """Measure ours once; no peer has anything like it."""
    with context.cluster("status") as cluster:
        cluster.pause()
        fill(cluster, TASKS)
        paths = status_paths(cluster)
        cpu = cluster.cpu_s()
        load = read(cluster, paths, seconds=context.sizes.load_s)
        context.book.add(STATUS, OURS, load.rate, **details(load, cluster.cpu_s() - cpu, load.requests))


def status_paths(cluster: Cluster) -> list[str]:
    """Paths of status reads of some tasks, on all partitions."""
    tasks = cluster.nodes[0].tell("GET", f"/tasks/list?scope=cluster&limit={TASKS}")["tasks"]
    return [f"/tasks/status?id={quote(task['id'])}" for task in tasks]


def read(cluster: Cluster, paths: list[str], *, seconds: float = 0.0, requests: int = 0) -> Load:
    return offer(
        cluster.ports, paths, None, connections=IN_FLIGHT, seconds=seconds, requests=requests,
        directory=cluster.directory, status=200, prefix='{"id":', method="GET",
    )  # fmt: skip
