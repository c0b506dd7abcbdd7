"""One node or several as one cluster, and what must add up over all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from bench.node import LOOK_S, Node
from bench.processes import PEER_OFFSET, ROOT, Failed
from bench.sockets import received

POLL_S = 0.05
"""Pause between two polls; each costs a node a fraction of a millisecond, a drain takes seconds."""
DRAIN_S = 180.0
COPIES_S = 60.0
"""Bound of the time until every node shows what is committed; replicas learn it a moment later."""


class Cluster:
    """Use it as a context manager; ``start`` again after ``stop`` for a second life on the same stores.

    :param nodes: how many; each task has a copy on every one of them, up to three.
    :param concurrency: of each node.
    :param traced: count their syncs.
    :param tree: the checkout whose program they run.
    """

    def __init__(
        self, directory: Path, nodes: int, *, concurrency: int = 16, traced: bool = False, tree: Path = ROOT
    ) -> None:
        self.directory = directory
        self.copies = min(nodes, 3)
        self.nodes: list[Node] = []
        for number in range(1, nodes + 1):
            extra = ("--join", f"localhost:{self.nodes[0].port}") if self.nodes else ()
            self.nodes.append(
                Node(directory, name=f"node-{number}", concurrency=concurrency, traced=traced, extra=extra, tree=tree)
            )
        self._turns = self._in_turns()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.stop()
        else:
            self._end()

    # --- life ---
    def start(self) -> tuple[float, float]:
        """Start the nodes; seconds until all were ready, and until the cluster was whole."""
        begun = time.perf_counter()
        for node in self.nodes:
            node.start()
        ready = max(node.wait_ready(begun) for node in self.nodes)
        while not self._is_whole():
            for node in self.nodes:
                node.check(begun, "become part of a whole cluster")
            time.sleep(LOOK_S)  # polls until all copies are in sync
        return ready, time.perf_counter() - begun

    def _is_whole(self) -> bool:
        """Whether each node shows all of them, every partition in sync on all its copies, and an even share of leads."""
        for node in self.nodes:
            shown, held = node.look("/cluster"), node.look("/cluster/partitions")
            if shown is None or held is None:
                return False
            if [one["status"] for one in shown["cluster"]["nodes"]] != ["active"] * len(self.nodes):
                return False
            partitions = held["partitions"]
            led = Counter(one["primary"] for one in partitions)
            if any(len(one["in_sync"]) < self.copies for one in partitions) or led[None]:
                return False
            if max(led.values()) > -(-len(partitions) // len(self.nodes)):
                return False
        return all(node.look("/ready") is not None for node in self.nodes)

    def stop(self) -> None:
        """Stop the nodes in order. :raises Failed: one ended with another code than 0."""
        for node, code in zip(self.nodes, self._end(), strict=True):
            if code != 0:
                raise Failed(f"{node.name} ended with code {code}; see {node.log}")

    def _end(self) -> list[int]:
        for node in self.nodes:
            node.ask_to_stop()
        return [node.wait_stopped() for node in self.nodes]

    def crash(self) -> None:
        """Kill all nodes with SIGKILL."""
        for node in self.nodes:
            node.crash()

    # --- HTTP ---
    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    def next(self) -> Node:
        """The next node, in turn."""
        return next(self._turns)

    def _in_turns(self) -> Iterator[Node]:
        while True:
            yield from self.nodes

    def stats(self) -> dict[str, int]:
        """Counts of the whole cluster, each task once."""
        counts: dict[str, int] = self.nodes[0].tell("GET", "/tasks/stats?scope=cluster")["stats"]
        return counts

    def pause(self, queue: str = "default") -> None:
        self.nodes[0].tell("POST", f"/tasks/pause?queue={quote(queue)}")

    def resume(self, queue: str = "default") -> None:
        self.nodes[0].tell("POST", f"/tasks/resume?queue={quote(queue)}")

    # --- what must add up ---
    def verify_total(self, wanted: int) -> None:
        """Check that there are as many tasks as were acknowledged, and as many copies of each as there should be."""
        total = self.stats()["total"]
        if total != wanted:
            raise Failed(f"{wanted} tasks were acknowledged, /tasks/stats?scope=cluster counts {total}")
        self._verify_copies("total", wanted)

    def _verify_copies(self, state: str, wanted: int) -> None:
        end = time.perf_counter() + COPIES_S
        while True:
            counts = [node.tell("GET", "/tasks/stats")["stats"][state] for node in self.nodes]
            if sum(counts) == wanted * self.copies:
                return
            if time.perf_counter() > end:
                raise Failed(f"{wanted} tasks are {state}, but after {COPIES_S:g} s the nodes show copies of {counts}")
            time.sleep(POLL_S)  # polls until the replicas have received all

    def wait_completed(self, wanted: int, *, total: int | None = None) -> float:
        """``time.perf_counter`` at which the cluster first showed so many completed, each with its status recorded.

        :param total: tasks of all states, where others wait beside them.
        """
        end = time.perf_counter() + DRAIN_S
        total = wanted if total is None else total
        while (counts := self.stats())["completed"] < wanted:
            if time.perf_counter() > end or counts["total"] < total:
                raise Failed(f"{wanted} tasks should be completed, after at most {DRAIN_S:g} s there are {counts}")
            time.sleep(POLL_S)  # polls until the queue has drained
        at = time.perf_counter()
        if counts["completed"] != wanted or counts["total"] != total:
            raise Failed(f"{wanted} tasks were to be completed, /tasks/stats?scope=cluster says {counts}")
        for node in self.nodes:
            for task in node.tell("GET", "/tasks/list?status=completed&limit=5")["tasks"]:
                # A claim ahead that waits too long on a busy machine is given back, and nothing has run.
                before = {attempt["outcome"] for attempt in task["attempts"][:-1]}
                if not isinstance(task.get("result"), int) or not before <= {"released"}:
                    raise Failed(f"a completed task without its result, or with one that failed before: {task}")
        self._verify_copies("completed", wanted)
        return at

    # --- from outside, over all nodes ---
    def cpu_s(self) -> float:
        """CPU seconds so far, of all nodes and their worker processes that live."""
        return sum(node.cpu_s() for node in self.nodes)

    def rss_mib(self) -> float:
        """Memory of the largest node, without its worker processes."""
        return max(node.rss_mib() for node in self.nodes)

    def workers(self) -> int:
        """The fewest worker processes that a node has."""
        return min(node.workers() for node in self.nodes)

    def written_bytes(self) -> int:
        return sum(node.written_bytes() for node in self.nodes)

    def disk_bytes(self) -> int:
        return sum(node.disk_bytes() for node in self.nodes)

    def exchanged(self) -> tuple[int, int]:
        """(bytes, segments) that the nodes have sent to one another so far, over the connections that are open now."""
        return received({port + PEER_OFFSET for port in self.ports})

    def syncs(self) -> int:
        """Number of syncs so far, of all nodes, which were started with ``traced``."""
        counters = [node.syncs for node in self.nodes]
        return sum(counter.count() for counter in counters if counter is not None)

    def any(self, path: str) -> Any:
        """The JSON of a GET that must be answered with 200, from each node in turn."""
        return self.next().tell("GET", path)
