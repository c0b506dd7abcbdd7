"""Measures what does not depend on the machine's speed: syncs and bytes for each task, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.cluster import Cluster
from bench.context import Context, noop
from bench.drains import warm_up
from bench.peers.base import Peer
from bench.samples import OURS, Kind
from bench.submits import fill, send_submits
from bench.tracing import can_trace

_SYNCS = "syncs per 1,000 tasks"
_BYTES = "bytes per task"


def _kind(what: str, unit: str) -> Kind:
    return Kind("counts", what, unit, more_is_better=False)


ONE = _kind("submit one after the other", _SYNCS)
MANY = _kind("submit, 32 in flight", _SYNCS)
BATCH = _kind("submit in batches of 1,000", _SYNCS)
DRAIN_ASYNC = _kind("drain of async handlers", _SYNCS)
DRAIN_PROCESS = _kind("drain of process handlers", _SYNCS)
WRITTEN = _kind("written to disk, submit and drain, all nodes", _BYTES)
ON_DISK = _kind("kept on disk after the end, all nodes", _BYTES)
CLIENT = _kind("between client and nodes, submit, 32 in flight", _BYTES)
WIRE_IDLE = _kind("between idle nodes", "bytes a second")
WIRE = tuple(
    _kind(f"between nodes, {what}", _BYTES)
    for what in ("submit, 32 in flight", "submit in batches of 1,000", "drain of async handlers")
)
IDLE_S = 2.0
RSS_EMPTY = _kind("memory of an empty node, without workers", "MiB RSS")
RSS_FULL = _kind("memory of the largest node after the drain", "MiB RSS")


def count(context: Context) -> None:
    """Count everything once."""
    traced = can_trace()
    if not traced:
        context.book.note("counts: no syncs, strace is not installed or may not trace here")
    if traced:
        _count_syncs(context)
    _count_bytes(context)

    def of_peer(peer: Peer) -> None:
        counted = peer.syncs(context.fresh(peer.name), context.sizes.counted_peer)
        if counted is not None:
            context.book.add(ONE, peer.name, counted[0])
            context.book.add(DRAIN_PROCESS, peer.name, counted[1])

    if traced:
        context.each_peer(of_peer)


def _count_syncs(context: Context) -> None:
    """Count the syncs of all nodes together."""
    total = context.sizes.counted
    with context.cluster("syncs", concurrency=context.async_slots, traced=True) as cluster:
        warm = warm_up(cluster, "noop-async", 0)
        cluster.pause()
        done = 0
        for kind, in_flight, tasks in ((ONE, 1, total // 20), (MANY, 32, total // 4)):
            before = cluster.syncs()
            done += send_submits(cluster, in_flight, requests=tasks).requests
            context.book.add(kind, OURS, (cluster.syncs() - before) / tasks * 1000)
        before = cluster.syncs()
        batched = total // 1000 * 1000
        fill(cluster, batched)
        context.book.add(BATCH, OURS, (cluster.syncs() - before) / batched * 1000)
        done += batched
        before = cluster.syncs()
        cluster.resume()
        cluster.wait_completed(done + warm)
        context.book.add(DRAIN_ASYNC, OURS, (cluster.syncs() - before) / done * 1000)
    with context.cluster("syncs", concurrency=context.process_slots, traced=True) as cluster:
        warm = warm_up(cluster, "noop-process", context.process_slots)
        cluster.pause()
        fill(cluster, batched, noop("noop-process"))
        before = cluster.syncs()
        cluster.resume()
        cluster.wait_completed(batched + warm)
        context.book.add(DRAIN_PROCESS, OURS, (cluster.syncs() - before) / batched * 1000)


def _count_bytes(context: Context) -> None:
    single = context.sizes.counted // 4
    batched = context.sizes.counted // 1000 * 1000
    cluster = context.cluster("bytes", concurrency=context.async_slots)
    with cluster:
        context.book.add(RSS_EMPTY, OURS, cluster.rss_mib())
        empty = cluster.disk_bytes()
        written = cluster.written_bytes()
        before, _ = cluster.exchanged()
        time.sleep(IDLE_S)  # what they say to one another meanwhile is measured
        if len(cluster.nodes) > 1:
            context.book.add(WIRE_IDLE, OURS, (cluster.exchanged()[0] - before) / IDLE_S)
        cluster.pause()
        works: tuple[tuple[Kind, int, Callable[[], object]], ...] = (
            (WIRE[0], single, lambda: _submit_singly(context, cluster, single)),
            (WIRE[1], batched, lambda: fill(cluster, batched)),
            (WIRE[2], single + batched, lambda: _run(cluster, single + batched)),
        )
        for kind, count, work in works:
            bytes_before, segments_before = cluster.exchanged()
            work()
            size, segments = cluster.exchanged()
            if len(cluster.nodes) > 1:
                each = round((segments - segments_before) / count, 2)
                context.book.add(kind, OURS, (size - bytes_before) / count, segments_per_task=each)
        context.book.add(RSS_FULL, OURS, cluster.rss_mib())
        context.book.add(WRITTEN, OURS, (cluster.written_bytes() - written) / (single + batched))
    context.book.add(ON_DISK, OURS, (cluster.disk_bytes() - empty) / (single + batched))


def _submit_singly(context: Context, cluster: Cluster, count: int) -> None:
    context.book.add(CLIENT, OURS, send_submits(cluster, 32, requests=count).wire_bytes)


def _run(cluster: Cluster, count: int) -> None:
    cluster.resume()
    cluster.wait_completed(count)
