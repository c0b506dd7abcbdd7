"""A store with a million tasks against one with a thousand: start, memory, and what calls cost.

Half of the tasks wait in a paused queue, half are scheduled for tomorrow: none has ended, which is the worst for memory. The two
nodes run side by side and are asked in turns, so that both see the same machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.context import Context, noop
from bench.load import Load, offer
from bench.node import Node
from bench.samples import OURS, Kind
from bench.submits import fill

SMALL = 1_000
GOAL_TASKS = 1_000_000
FILL_BATCH = 5_000
CONNECTIONS = 32
CALLS_TIMES = 4
"""So many times the calls over 32 connections."""


def kinds(size: int) -> dict[str, Kind]:
    """By a short name each."""
    many = f"{size:,}"

    def goal(limit: float) -> float | None:
        return limit if size >= GOAL_TASKS else None

    def cost(what: str) -> Kind:
        return Kind(
            "million", f"{what}, {many} : {SMALL:,} tasks", "times the cost", more_is_better=False, goal=goal(1.3)
        )

    def start(what: str) -> Kind:
        return Kind("million", f"{what} with {many} tasks", "s to /ready", more_is_better=False, goal=goal(10.0))

    return {
        "fill": Kind("million", f"submit of {many} tasks in batches", "tasks/s"),
        "start": start("start"),
        "crashed": start("start after kill -9"),
        "rss": Kind(
            "million", f"memory after the start with {many} tasks", "MiB RSS", more_is_better=False, goal=goal(400.0)
        ),
        "rss_end": Kind("million", "memory after the calls below", "MiB RSS", more_is_better=False, goal=goal(400.0)),
        "disk": Kind("million", f"disk with {many} tasks", "MiB", more_is_better=False),
        "submit": cost("submit over 1 connection"),
        "submit_32": cost("submit over 32 connections"),
        "stats": cost("/tasks/stats over 1 connection"),
    }


def million(context: Context) -> None:
    """The whole part; its calls are repeated within, so it is done once."""
    size = context.sizes.million
    kind = kinds(size)
    add = context.book.add
    large = Node(context.fresh("large"))
    with large:
        context.say(f"submitting {size:,} tasks")
        large.pause()
        half = size // 2
        taken = fill(large, half, noop(), FILL_BATCH)
        tomorrow = {**noop(), "delay": 86_400}
        taken += fill(large, size - half, tomorrow, FILL_BATCH)
        large.verify_total(size)
        add(kind["fill"], OURS, size / taken)
        large.stop()
        add(kind["disk"], OURS, large.disk_mib())
        add(kind["start"], OURS, large.start())
        large.verify_total(size)
        add(kind["rss"], OURS, large.rss_mib())
        _cut_short(large, kind["crashed"], context, size)
        with Node(context.fresh("small")) as small:
            small.pause()
            fill(small, SMALL)
            _compare(context, large, small, kind)
        add(kind["rss_end"], OURS, large.rss_mib())


def _cut_short(node: Node, kind: Kind, context: Context, size: int) -> None:
    """kill -9 right after an acknowledged batch, and start again: nothing is lost."""
    fill(node, FILL_BATCH, noop(), FILL_BATCH)
    node.crash()
    context.book.add(kind, OURS, node.start())
    node.verify_total(size + FILL_BATCH)


def _compare(context: Context, large: Node, small: Node, kind: dict[str, Kind]) -> None:
    calls = context.sizes.million_calls
    measures: dict[str, Callable[[Node], float]] = {
        "submit": lambda node: _submit(node, 1, calls).p50_ms,
        "submit_32": lambda node: 1000 / _submit(node, CONNECTIONS, CALLS_TIMES * calls).rate,
        "stats": lambda node: _stats(node, calls).p50_ms,
    }
    for name, measure in measures.items():
        for node in (large, small):
            measure(node)  # what is cold gets warm
        pairs = []
        for number in range(context.sizes.million_rounds):
            first, second = (large, small) if number % 2 else (small, large)
            costs = {first: measure(first), second: measure(second)}
            pairs.append((costs[large], costs[small]))
        ours, base = (statistics.median(side) for side in zip(*pairs, strict=True))
        for one, other in pairs:
            context.book.add(kind[name], OURS, one / other, ms_large=round(one, 4), ms_small=round(other, 4))
        context.say(f"{kind[name].what}: {ours:.3f} ms against {base:.3f} ms")


def _submit(node: Node, connections: int, requests: int) -> Load:
    return offer(
        node.port, "/tasks/submit", noop(), connections=connections, requests=requests, directory=node.directory
    )


def _stats(node: Node, calls: int) -> Load:
    return offer(
        node.port, "/tasks/stats", None, connections=1, requests=calls, directory=node.directory, status=200,
        method="GET",
    )  # fmt: skip
