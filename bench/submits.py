"""Submits one by one over 1, 32 and 128 connections, and in batches. The queue is paused, so that nothing else is done."""

from __future__ import annotations

import time

from bench.context import BATCH_CONNECTIONS, Context, noop
from bench.load import Load, offer
from bench.node import Node
from bench.samples import OURS, Kind

CONNECTIONS = (1, 32, 128)
BATCHES = (100, 1_000)
SUBMITS_GOAL = {32: 6_000.0}
BATCHES_GOAL = {1_000: 50_000.0}


def submit_kind(connections: int) -> Kind:
    plural = "" if connections == 1 else "s"
    return Kind("submit", f"{connections} connection{plural}", "tasks/s", goal=SUBMITS_GOAL.get(connections))


def batch_kind(size: int) -> Kind:
    return Kind("batch", f"batches of {size:,}", "tasks/s", goal=BATCHES_GOAL.get(size))


def submit(context: Context) -> None:
    """One round of everybody."""
    directory = context.fresh("submit")
    seconds = context.sizes.load_s
    with Node(directory) as node:
        node.pause()
        total = 0
        for connections in CONNECTIONS:
            cpu = node.cpu_s()
            load = offer(
                node.port, "/tasks/submit", noop(), connections=connections, seconds=seconds, directory=directory,
                prefix='{"success":true,"task_id":',
            )  # fmt: skip
            total += load.requests
            details = _details(load, node.cpu_s() - cpu, load.requests)
            context.book.add(submit_kind(connections), OURS, load.rate, **details)
        node.verify_total(total)
    for peer in context.peers:
        for connections in peer.submit_clients:
            rate = peer.submit(context.fresh(peer.name), connections, seconds)
            context.book.add(submit_kind(connections), peer.name, rate.rate, **rate.details)


def batch(context: Context) -> None:
    """One round of everybody who has batches."""
    directory = context.fresh("batch")
    seconds = context.sizes.load_s
    with Node(directory) as node:
        node.pause()
        total = 0
        for size in BATCHES:
            cpu = node.cpu_s()
            load = send_batches(node, size, seconds=seconds)
            total += load.requests * size
            details = _details(load, node.cpu_s() - cpu, load.requests * size)
            context.book.add(batch_kind(size), OURS, load.rate * size, **details)
        node.verify_total(total)
    for peer in context.peers:
        for size in BATCHES:
            rate = peer.batch(context.fresh(peer.name), size, seconds)
            if rate is not None:
                context.book.add(batch_kind(size), peer.name, rate.rate, **rate.details)


def send_batches(
    node: Node,
    size: int,
    *,
    seconds: float = 0.0,
    requests: int = 0,
    connections: int = BATCH_CONNECTIONS,
    task: dict[str, object] | None = None,
) -> Load:
    """Batches of one and the same task. All of every batch must be accepted."""
    return offer(
        node.port, "/tasks/batch", {"tasks": [task or noop()] * size}, connections=connections, seconds=seconds,
        requests=requests, directory=node.directory, status=200,
        prefix=f'{{"success":true,"accepted":{size},"rejected":0,',
    )  # fmt: skip


def fill(node: Node, count: int, task: dict[str, object] | None = None, size: int = 1_000) -> float:
    """Submit so many tasks in batches; the seconds it took."""
    begun = time.perf_counter()
    full, rest = divmod(count, size)
    if full:
        send_batches(node, size, requests=full, task=task)
    if rest:
        send_batches(node, rest, requests=1, connections=1, task=task)
    return time.perf_counter() - begun


def _details(load: Load, cpu_s: float, tasks: int) -> dict[str, float]:
    return {
        "p50_ms": round(load.p50_ms, 3),
        "p99_ms": round(load.p99_ms, 3),
        "node_cpu_us_per_task": round(cpu_s / max(tasks, 1) * 1e6, 1),
        "client_cpu": round(load.client_cpu, 2),
    }
