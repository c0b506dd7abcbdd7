"""How fast a node runs tasks that do nothing: submitted to a paused queue, then resumed, until all are completed."""

from __future__ import annotations

import time
from pathlib import Path

from bench.context import ASYNC_SLOTS, PROCESS_SLOTS, Context, noop
from bench.node import Node
from bench.processes import Failed
from bench.samples import OURS, Kind
from bench.submits import fill

ASYNC = Kind("drain", "async handlers", "tasks/s", goal=15_000.0)
PROCESS = Kind("drain", "process handlers", "tasks/s", goal=4_000.0)
_WARM_UP_TASKS = 1_000
_WARM_UPS_MAX = 20


def drain(context: Context) -> None:
    """One round of everybody."""
    context.book.note(
        f"drain: --concurrency {ASYNC_SLOTS} for async handlers, {PROCESS_SLOTS} (worker processes) for process handlers"
    )
    for kind, task_type, count, slots in (
        (ASYNC, "noop-async", context.sizes.drain_async, ASYNC_SLOTS),
        (PROCESS, "noop-process", context.sizes.drain_process, PROCESS_SLOTS),
    ):
        seconds, cpu_s = drain_once(context.fresh("drain"), task_type, count, slots)
        context.book.add(kind, OURS, count / seconds, node_cpu_us_per_task=round(cpu_s / count * 1e6, 1))
    for peer in context.peers:
        for variant in peer.drains:
            count = context.sizes.drain_forking if variant.is_slow else context.sizes.drain_peer
            rate = peer.drain(context.fresh(peer.name), variant, count, context.sizes.drain_peer_s)
            kind = ASYNC if variant.is_threads else PROCESS
            context.book.add(kind, variant.system, rate.rate, **rate.details)


def drain_once(directory: Path, task_type: str, count: int, slots: int) -> tuple[float, float]:
    """(seconds, CPU seconds of node and workers) from resume until ``/tasks/stats`` shows all of them completed."""
    with Node(directory, concurrency=slots) as node:
        warm = warm_up(node, task_type, slots if task_type == "noop-process" else 0)
        node.pause()
        fill(node, count, noop(task_type))
        cpu = node.cpu_s()
        begun = time.perf_counter()
        node.resume()
        ended = node.wait_completed(count + warm)
        return ended - begun, node.cpu_s() - cpu


def warm_up(node: Node, task_type: str, workers: int) -> int:
    """Run tasks until so many worker processes are up; the number of tasks. Their start is not what a drain measures."""
    done = 0
    for _ in range(_WARM_UPS_MAX):
        node.pause()
        fill(node, _WARM_UP_TASKS, noop(task_type))
        node.resume()
        done += _WARM_UP_TASKS
        node.wait_completed(done)
        if node.workers() >= workers:
            return done
    raise Failed(f"the node has {node.workers()} worker processes after {done} tasks, not {workers}")
