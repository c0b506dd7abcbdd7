"""``--once`` and ``--json``: the overview for scripts and for a terminal without a console."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from tq_tui import charts
from tq_tui import format as f
from tq_tui.client.api import ClientError, ClusterClient
from tq_tui.state import health
from tq_tui.state.cluster_view import Added, ClusterView, Failed, NodeView, Observation, reduce
from tq_tui.state.discovery import newcomers
from tq_tui.watch import look

NOT_WRITTEN_STATUS = 74
"""Exit status where the report could not be written."""


async def print_once(client: ClusterClient, addresses: Sequence[str], *, as_json: bool, timeout_s: float) -> int:
    """Poll each node once and print; status 0 healthy, 1 degraded, 2 no quorum or unreachable."""
    try:
        view = await seen_once(client, addresses, timeout_s)
    finally:
        await client.close()
    text = as_json_text(view) if as_json else as_text(view, _width())
    return health.judge(view).health.exit_code if written(text + "\n") else NOT_WRITTEN_STATUS


def written(text: str) -> bool:
    """Write to stdout in any encoding. False: failed, said on stderr unless the reader has left."""
    out = sys.stdout
    out.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        out.write(text)
        out.flush()
    except OSError as why:
        if not isinstance(why, BrokenPipeError):
            sys.stderr.write(f"tq-tui: can't write: {why.strerror}\n")
        # Else the interpreter would write the buffer's rest at its end, and fail with a traceback.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)
        return False
    return True


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else 100


async def seen_once(client: ClusterClient, addresses: Sequence[str], timeout_s: float) -> ClusterView:
    """The view after polling the given nodes, then those that they name."""
    view = ClusterView()
    for address in addresses:
        view = reduce(view, Added(address, time.time()))
    asked: set[str] = set()
    while waiting := [node.address for node in view.nodes if node.address not in asked]:
        asked |= set(waiting)
        for seen in await asyncio.gather(*(_look(client, address, timeout_s) for address in waiting)):
            view = reduce(view, seen)
        for address in newcomers(view):
            view = reduce(view, Added(address, time.time(), given=False))
    return view


async def _look(client: ClusterClient, address: str, timeout_s: float) -> Observation:
    try:
        return await asyncio.wait_for(look(client.at(address), address), timeout_s)
    except (ClientError, TimeoutError) as why:
        return Failed(address, time.time(), str(why) or "no answer in time")


def as_text(view: ClusterView, width: int) -> str:
    """The overview as text, without charts, which need a history."""
    verdict = health.judge(view)
    head = f"{health.GLYPHS[verdict.health]} {verdict.title}  {health.summary(view)}".rstrip()
    lines = [f.printable(line) for line in (head, *(f"  {reason}" for reason in verdict.reasons), "")]
    drawn = [*charts.cards(view, width, 1_000), [], *charts.totals(view, width)]
    lines += [f.Text("".join(text for text, _ in charts.shown(line))) for line in drawn]
    return "\n".join(line.rstrip() for line in lines).rstrip()


def as_json_text(view: ClusterView) -> str:
    """The overview as JSON; scripts rely on the names of its fields."""
    verdict = health.judge(view)
    cluster = view.cluster
    report: dict[str, Any] = {
        "health": verdict.health.name.lower(),
        "exit": verdict.health.exit_code,
        "reasons": list(verdict.reasons),
        "cluster_id": cluster.id if cluster is not None else None,
        "leader": view.leader,
        "term": cluster.term if cluster is not None else None,
        "tasks": msgspec.to_builtins(view.counts),
        "tasks_are_whole": view.counts_are_whole,
        "oldest_pending_seconds": view.oldest[1] if view.oldest is not None else 0.0,
        "paused_queues": list(view.paused),
        "nodes": [_node(view, node) for node in view.nodes],
    }
    return json.dumps(report, indent=2)  # all but ASCII is escaped: it may go to a terminal too


def _node(view: ClusterView, node: NodeView) -> dict[str, Any]:
    led, held = view.held(node.name)
    behind, out_of_sync = view.lag(node.name)
    return {
        "name": node.name or None,
        "address": node.address,
        "status": charts.node_word(view, node),
        "reachable": node.is_up,
        "ready": node.readiness.ready if node.readiness is not None and node.is_up else False,
        "role": charts.node_role(view, node) or None,
        "error": node.error or None,
        "partitions_led": led,
        "partitions_held": held,
        "entries_behind": behind,
        "copies_out_of_sync": out_of_sync,
        "tasks": msgspec.to_builtins(node.primary),
        "slots_busy": node.metrics.busy if node.metrics is not None else None,
        "slots": node.metrics.slots if node.metrics is not None else None,
    }
