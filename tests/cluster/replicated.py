"""What tests of replicated clusters ask again and again: are all copies there, has everything ended, are copies equal?"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.cluster.clusters import WHOLE_S, Cluster
from tests.support.at_rest import CopyAtRest, copies_at_rest
from tests.support.harness import NodeHttp, TimedOut, until
from tq_node.cluster.placement import partition_of
from tq_node.store.sqlite.open_database import DATABASE_NAME

HANDLERS = ("--handlers", "tests.support.cluster_handlers")
PROCESS_HANDLERS = ("--handlers", "tests.support.cluster_processes")
"""Each node then keeps two worker processes ready, whose starts cost as much CPU as half a node's."""
NAMES = ("node-1", "node-2", "node-3")
HARM = (
    r"closed the connection of|refused a connection from|the peer has ended|attempts of an earlier primary|"
    r"a task of the node's own could not"
)
ENDED_S = 40.0
MakeCluster = Callable[..., Cluster]


def started(make_cluster: MakeCluster, *, handlers: tuple[str, ...] = HANDLERS, **options: Any) -> Cluster:
    """Three nodes with handlers for tests, whole, all copies in sync."""
    cluster = make_cluster(options=(*handlers, *options.pop("more", ())), **options)
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    wait_settled(cluster)
    return cluster


def wait_settled(cluster: Cluster, deadline_s: float = WHOLE_S) -> float:
    """All copies are in sync, and each node leads its share: nothing is about to be handed over. Returns seconds."""
    began_s = time.monotonic()
    share = -(-64 // len(cluster.running))

    def even() -> bool:
        wait_copies(cluster, deadline_s=deadline_s)
        shares = Counter(shown["primary"] for shown in partitions_by_primary(cluster).values())
        return sum(shares.values()) == 64 and max(shares.values()) <= share

    until(even, deadline_s=deadline_s, what=f"at most {share} primaries on each of {cluster.running}")
    cluster.wait_ready()
    return time.monotonic() - began_s


def partitions_by_primary(cluster: Cluster, names: Iterable[str] = ()) -> dict[int, dict[str, Any]]:
    """Each partition as its own primary shows it; left out are those whose primary does not answer, or does not lead yet."""
    found: dict[int, dict[str, Any]] = {}
    for name in names or cluster.running:
        partitions: list[dict[str, Any]] = []
        with contextlib.suppress(OSError):
            partitions = cluster.partitions(name)
        for shown in partitions:
            if shown["primary"] == name and shown["last_sequence"] is not None:
                found[shown["partition"]] = shown
    return found


def wait_copies(cluster: Cluster, count: int = 0, deadline_s: float = WHOLE_S, partition_count: int = 64) -> float:
    """Until every partition is active, with so many copies in sync (by default, one for each running node). Returns seconds."""
    wanted = count or len(cluster.running)
    began_s = time.monotonic()
    last: dict[int, dict[str, Any]] = {}

    def whole() -> bool:
        nonlocal last
        last = partitions_by_primary(cluster)
        return len(last) == partition_count and all(
            shown["state"] == "active" and len(shown["in_sync"]) == wanted and not shown["adding"]
            for shown in last.values()
        )

    try:
        until(whole, deadline_s=deadline_s, what=f"{wanted} copies in sync of each partition")
    except TimedOut as why:
        lacking = [shown for shown in last.values() if shown["state"] != "active" or len(shown["in_sync"]) != wanted]
        raise TimedOut(f"{why}: {len(last)} with a primary, lacking {len(lacking)}, as {lacking[:3]}") from None
    return time.monotonic() - began_s


def wait_ended(cluster: Cluster, name: str = "", deadline_s: float = ENDED_S) -> None:
    """P6: every accepted task ends."""
    open_states = ("pending", "processing", "scheduled")

    def ended() -> bool:
        answer = cluster[name or cluster.running[0]].get("/tasks/stats?scope=cluster").json
        is_whole = set(answer["missing"]).isdisjoint(cluster.running)
        return is_whole and not any(answer["stats"][state] for state in open_states)

    try:
        until(ended, deadline_s=deadline_s, what="every accepted task ends (P6)")
    except TimedOut as why:
        node = cluster[name or cluster.running[0]]
        listed = node.get("/tasks/list?scope=cluster&status=pending,processing,scheduled&limit=5").json["tasks"]
        stats = node.get("/tasks/stats?scope=cluster").json
        raise TimedOut(f"{why}\n{stats}\n{listed}") from None


def wait_quiet(cluster: Cluster) -> None:
    """Every task has ended, every entry is committed and every replica has all of it."""
    wait_ended(cluster)

    def quiet() -> bool:
        shown = partitions_by_primary(cluster).values()
        return all(one["last_sequence"] == one["committed_sequence"] and not any(one["lag"].values()) for one in shown)

    until(quiet, what="all entries are committed and copied")
    time.sleep(1.0)  # replicas hear of the last commits, and rows are written behind the log


WHOLE_LIST_S = 20
"""How long a list may say that it lacks something: a node too busy to answer, a partition that changes hands."""


def every_task(cluster: Cluster, name: str = "", query: str = "scope=cluster") -> dict[str, dict[str, Any]]:
    """As one node lists them, once its list says that it is whole."""
    end = time.monotonic() + WHOLE_LIST_S
    while True:
        tasks, missing, partitions_missing = _listed(cluster[name or cluster.running[0]], query)
        if not missing and not partitions_missing:
            return tasks
        if time.monotonic() > end:
            assert not missing, missing
            return tasks
        time.sleep(0.1)


def _listed(node: NodeHttp, query: str) -> tuple[dict[str, dict[str, Any]], set[str], set[int]]:
    """All pages of one list, and what they say they lack."""
    tasks: dict[str, dict[str, Any]] = {}
    missing: set[str] = set()
    partitions_missing: set[int] = set()
    cursor = ""
    while True:
        page = node.get(f"/tasks/list?limit=2000&{query}{cursor}", deadline_s=60).json
        missing.update(page.get("missing", ()))
        partitions_missing.update(page.get("partitions_missing", ()))
        for found in page["tasks"]:
            assert found["id"] not in tasks, "each task once"
            tasks[found["id"]] = found
        if page["next"] is None:
            return tasks, missing, partitions_missing
        cursor = f"&cursor={page['next']}"


def kill_all(cluster: Cluster) -> None:
    """kill -9 of all at one moment: none of them gets to see the others die."""
    running = [cluster[name] for name in cluster.running]
    for node in running:
        node.stop()
    for node in running:
        node.kill9()


def compare_at_rest(
    cluster: Cluster, copies: int = 3, *, exact: bool = True, names: Iterable[str] = NAMES
) -> dict[str, dict[int, CopyAtRest]]:
    """Content is byte-equal on every copy, at equal ``applied`` if ``exact`` (I11). All nodes have ended.

    Nodes that were stopped one after another have led on for a while: barriers are no content, so digests are equal though
    ``applied`` is not.
    """
    stores = {name: copies_at_rest(cluster.data(name)) for name in names}
    for partition in sorted({partition for store in stores.values() for partition in store}):
        held = {name: store[partition] for name, store in stores.items() if partition in store}
        assert len(held) == copies, f"partition {partition}: {held}"
        assert len({copy.digest for copy in held.values()}) == 1, f"partition {partition} differs: {held}"
        if exact:
            assert len({copy.applied for copy in held.values()}) == 1, f"partition {partition}: {held}"
    return stores


def seed_of(cluster: Cluster) -> int:
    """Of placement. No API shows it; the founder's store has it."""
    path = cluster.data(cluster.founder) / DATABASE_NAME
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        ((value,),) = connection.execute("SELECT value FROM meta WHERE key = 'belonging'").fetchall()
    seed = json.loads(value)["birth"]["seed"]
    assert isinstance(seed, int)
    return seed


def ids_in(seed: int, partition: int, prefix: str, partition_count: int = 64) -> Iterator[str]:
    """Without end: ids of tasks that belong to the partition."""
    for serial in itertools.count():
        task_id = f"{prefix}-{serial}"
        if partition_of(task_id, seed=seed, partition_count=partition_count) == partition:
            yield task_id


def led_by(cluster: Cluster, name: str, asked: str = "") -> list[int]:
    """The partitions of which the node is primary, as the table has it."""
    return [shown["partition"] for shown in cluster.partitions(asked or name) if shown["primary"] == name]
