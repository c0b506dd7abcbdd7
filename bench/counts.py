"""What does not depend on how fast the machine is: syncs and bytes for each task, and memory."""

from __future__ import annotations

from bench.context import ASYNC_SLOTS, PROCESS_SLOTS, Context, noop
from bench.drains import warm_up
from bench.load import offer
from bench.node import Node
from bench.samples import OURS, Kind
from bench.submits import fill
from bench.tracing import can_trace

_SYNCS = "syncs per 1,000 tasks"
ONE = Kind("counts", "submit over 1 connection", _SYNCS, more_is_better=False)
MANY = Kind("counts", "submit over 32 connections", _SYNCS, more_is_better=False)
BATCH = Kind("counts", "submit in batches of 1,000", _SYNCS, more_is_better=False)
DRAIN_ASYNC = Kind("counts", f"drain of async handlers, {ASYNC_SLOTS} slots", _SYNCS, more_is_better=False)
DRAIN_PROCESS = Kind("counts", f"drain of process handlers, {PROCESS_SLOTS} slots", _SYNCS, more_is_better=False)
WRITTEN = Kind("counts", "written to disk, submit and drain", "bytes per task", more_is_better=False)
ON_DISK = Kind("counts", "kept on disk after the end", "bytes per task", more_is_better=False)
RSS_EMPTY = Kind("counts", "memory of an empty node, without workers", "MiB RSS", more_is_better=False)
RSS_FULL = Kind("counts", "memory after the drain", "MiB RSS", more_is_better=False)


def count(context: Context) -> None:
    """One round."""
    traced = can_trace()
    if not traced:
        context.book.note("counts: no syncs, strace is not installed or may not trace here")
    if traced:
        _count_syncs(context)
    _count_bytes(context)
    if traced:
        for peer in context.peers:
            submits, drains = peer.syncs(context.fresh(peer.name), context.sizes.counted_peer)
            context.book.add(ONE, peer.name, submits)
            context.book.add(DRAIN_PROCESS, peer.name, drains)


def _count_syncs(context: Context) -> None:
    total = context.sizes.counted
    with Node(context.fresh("syncs"), concurrency=ASYNC_SLOTS, traced=True) as node:
        syncs = node.syncs
        assert syncs is not None
        warm = warm_up(node, "noop-async", 0)
        node.pause()
        done = 0
        for kind, connections, tasks in ((ONE, 1, total // 20), (MANY, 32, total // 4)):
            before = syncs.count()
            done += offer(
                node.port, "/tasks/submit", noop(), connections=connections, requests=tasks, directory=node.directory
            ).requests
            context.book.add(kind, OURS, (syncs.count() - before) / tasks * 1000)
        before = syncs.count()
        batched = total // 1000 * 1000
        fill(node, batched)
        context.book.add(BATCH, OURS, (syncs.count() - before) / batched * 1000)
        done += batched
        before = syncs.count()
        node.resume()
        node.wait_completed(done + warm)
        context.book.add(DRAIN_ASYNC, OURS, (syncs.count() - before) / done * 1000)
    with Node(context.fresh("syncs"), concurrency=PROCESS_SLOTS, traced=True) as node:
        syncs = node.syncs
        assert syncs is not None
        warm = warm_up(node, "noop-process", PROCESS_SLOTS)
        node.pause()
        fill(node, batched, noop("noop-process"))
        before = syncs.count()
        node.resume()
        node.wait_completed(batched + warm)
        context.book.add(DRAIN_PROCESS, OURS, (syncs.count() - before) / batched * 1000)


def _count_bytes(context: Context) -> None:
    total = context.sizes.counted // 1000 * 1000
    node = Node(context.fresh("bytes"), concurrency=ASYNC_SLOTS)
    with node:
        context.book.add(RSS_EMPTY, OURS, node.rss_mib())
        empty_mib = node.disk_mib()
        before = node.written_bytes()
        node.pause()
        fill(node, total)
        node.resume()
        node.wait_completed(total)
        context.book.add(RSS_FULL, OURS, node.rss_mib())
        context.book.add(WRITTEN, OURS, (node.written_bytes() - before) / total)
    context.book.add(ON_DISK, OURS, (node.disk_mib() - empty_mib) * 1024 * 1024 / total)
