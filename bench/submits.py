"""Submits one by one with 1, 32 and 128 in flight, and in batches. The queue is paused, so that nothing else is done."""

from __future__ import annotations

import time
from functools import partial

from bench.cluster import Cluster
from bench.context import BATCH_CONNECTIONS, LOAD_PROCESSES, Context, noop
from bench.load import Load, offer
from bench.peers.base import Peer
from bench.samples import Kind

IN_FLIGHT = (1, 32, 128)
BATCHES = (100, 1_000)
_ACCEPTED = '{"success":true,"task_id":'
FIRST_P50 = Kind("submit", "one after the other, p50", "ms", more_is_better=False)
FIRST_P99 = Kind("submit", "one after the other, p99", "ms", more_is_better=False)


def submit_kind(in_flight: int) -> Kind:
    return Kind("submit", f"{in_flight} in flight" if in_flight > 1 else "one after the other", "tasks/s")


def cpu_kind(in_flight: int) -> Kind:
    """Of all nodes, or a peer's servers, together."""
    return Kind("submit", f"{in_flight} in flight, CPU", "µs/task", more_is_better=False)


def batch_kind(size: int) -> Kind:
    return Kind("batch", f"batches of {size:,}", "tasks/s")


def submit(context: Context) -> None:
    """Submit to ours and each peer once."""
    seconds = context.sizes.load_s
    for system in context.trees:
        with context.cluster("submit", system=system) as cluster:
            cluster.pause()
            total = 0
            for in_flight in IN_FLIGHT:
                cpu = cluster.cpu_s()
                load = send_submits(cluster, in_flight, seconds=seconds)
                total += load.requests
                _add(context, in_flight, system, load.rate, details(load, cluster.cpu_s() - cpu, load.requests))
            cluster.verify_total(total)

    def of_peer(peer: Peer) -> None:
        for in_flight, rate in peer.submits(partial(context.fresh, peer.name), seconds):
            _add(context, in_flight, peer.name, rate.rate, rate.details)

    context.each_peer(of_peer)


def _add(context: Context, in_flight: int, system: str, rate: float, more: dict[str, float]) -> None:
    context.book.add(submit_kind(in_flight), system, rate, **more)
    if in_flight == 1:
        context.book.add(FIRST_P50, system, more["p50_ms"])
        context.book.add(FIRST_P99, system, more["p99_ms"])
    else:
        context.book.add(cpu_kind(in_flight), system, more["node_cpu_us_per_task"])


def batch(context: Context) -> None:
    """Submit batches to ours and each peer that has them once."""
    seconds = context.sizes.load_s
    for system in context.trees:
        with context.cluster("batch", system=system) as cluster:
            cluster.pause()
            total = 0
            for size in BATCHES:
                cpu = cluster.cpu_s()
                load = send_batches(cluster, size, seconds=seconds)
                total += load.accepted
                more = details(load, cluster.cpu_s() - cpu, load.accepted)
                context.book.add(batch_kind(size), system, load.accepted_rate, **more, refused=load.refused)
            cluster.verify_total(total)

    def of_peer(peer: Peer) -> None:
        for size, rate in peer.batches(partial(context.fresh, peer.name), BATCHES, seconds):
            context.book.add(batch_kind(size), peer.name, rate.rate, **rate.details)

    context.each_peer(of_peer)


def send_submits(cluster: Cluster, in_flight: int, *, seconds: float = 0.0, requests: int = 0) -> Load:
    """Spread over all nodes; with one in flight they take turns. Every one must be accepted."""
    return offer(
        cluster.ports, "/tasks/submit", noop(), connections=max(in_flight, len(cluster.nodes)), in_flight=in_flight,
        processes=LOAD_PROCESSES[in_flight], seconds=seconds, requests=requests, directory=cluster.directory,
        prefix=_ACCEPTED,
    )  # fmt: skip


def send_batches(
    cluster: Cluster,
    size: int,
    *,
    seconds: float = 0.0,
    requests: int = 0,
    connections: int = 0,
    task: dict[str, object] | None = None,
) -> Load:
    """Batches of one and the same task; those refused for now are counted, and not sent again."""
    return offer(
        cluster.ports, "/tasks/batch", {"tasks": [task or noop()] * size},
        connections=connections or BATCH_CONNECTIONS[len(cluster.nodes)], seconds=seconds, requests=requests,
        directory=cluster.directory, status=200, prefix='{"success":true,', batch=size,
    )  # fmt: skip


def fill(cluster: Cluster, count: int, task: dict[str, object] | None = None, size: int = 1_000) -> float:
    """Submit so many tasks in batches; the seconds it took."""
    begun = time.perf_counter()
    missing = count
    while missing:
        full, rest = divmod(missing, size)
        if full:
            missing -= send_batches(cluster, size, requests=full, task=task).accepted
        if rest:
            missing -= send_batches(cluster, rest, requests=1, connections=1, task=task).accepted
    return time.perf_counter() - begun


def details(load: Load, cpu_s: float, tasks: int) -> dict[str, float]:
    return {
        "p50_ms": round(load.p50_ms, 3),
        "p99_ms": round(load.p99_ms, 3),
        "node_cpu_us_per_task": round(cpu_s / max(tasks, 1) * 1e6, 1),
        "client_cpu": round(load.client_cpu, 2),
        "client_wire_bytes_per_task": round(load.wire_bytes * load.requests / max(tasks, 1), 1),
    }
