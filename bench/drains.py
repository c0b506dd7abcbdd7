"""How fast the nodes run tasks that do nothing: submitted to a paused queue, then resumed, until all are completed."""

from __future__ import annotations

import time

from bench.cluster import Cluster
from bench.context import Context, noop
from bench.peers.base import Peer
from bench.processes import Failed
from bench.samples import OURS, Kind
from bench.submits import fill

ASYNC = Kind("drain", "async handlers", "tasks/s")
ASYNCIO = Kind("drain", "asyncio handlers, in processes", "tasks/s")
PROCESS = Kind("drain", "process handlers", "tasks/s")
_WARM_UP_TASKS = 1_000
_WARM_UPS_MAX = 20


def drain(context: Context) -> None:
    """Drain ours and each peer once."""
    context.book.note(
        f"drain: --concurrency {context.async_slots} for async and asyncio handlers, {context.process_slots} (worker processes) "
        f"for process handlers, on each node"
    )
    for kind, task_type, count, slots in (
        (ASYNC, "noop-async", context.sizes.drain_async, context.async_slots),
        (ASYNCIO, "noop-asyncio", context.sizes.drain_async, context.async_slots),
        (PROCESS, "noop-process", context.sizes.drain_process, context.process_slots),
    ):
        for system in context.trees if kind is not ASYNCIO else (OURS,):
            with context.cluster("drain", concurrency=slots, system=system) as cluster:
                warm = warm_up(cluster, task_type, slots if kind is PROCESS else 0)
                seconds, cpu_s = drain_once(cluster, count, noop(task_type), before=warm)
            context.book.add(kind, system, count / seconds, node_cpu_us_per_task=round(cpu_s / count * 1e6, 1))

    def of_peer(peer: Peer) -> None:
        for variant in peer.drains:
            sizes = context.sizes
            count = (
                sizes.drain_forking if variant.is_slow else sizes.drain_async if variant.is_fast else sizes.drain_peer
            )
            rate = peer.drain(context.fresh(peer.name), variant, count, context.sizes.drain_peer_s)
            for is_threads in variant.beside:
                context.book.add(ASYNC if is_threads else PROCESS, variant.system, rate.rate, **rate.details)

    context.each_peer(of_peer)


def drain_once(
    cluster: Cluster, count: int, task: dict[str, object], *, queue: str = "default", before: int = 0, waiting: int = 0
) -> tuple[float, float]:
    """(seconds, CPU seconds of nodes and workers) from resume until ``/tasks/stats`` shows all of them completed.

    :param task: of this queue.
    :param before: so many are completed already.
    :param waiting: so many others stay in other queues.
    """
    cluster.pause(queue)
    fill(cluster, count, task)
    cpu = cluster.cpu_s()
    begun = time.perf_counter()
    cluster.resume(queue)
    ended = cluster.wait_completed(before + count, total=before + count + waiting)
    return ended - begun, cluster.cpu_s() - cpu


def warm_up(cluster: Cluster, task_type: str, workers: int) -> int:
    """Run tasks until each node has ``workers`` processes, whose start is not to be measured; the number of tasks."""
    done = 0
    for _ in range(_WARM_UPS_MAX):
        drain_once(cluster, _WARM_UP_TASKS, noop(task_type), before=done)
        done += _WARM_UP_TASKS
        if cluster.workers() >= workers:
            return done
    raise Failed(f"a node has {cluster.workers()} worker processes after {done} tasks, not {workers}")
