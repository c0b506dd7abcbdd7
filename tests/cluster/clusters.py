"""Clusters of real nodes, started from one directory as people do: the usual command of each name, what it shows, what hurts it.

Every wait has a deadline, and a failed one says what each node showed last. ``Nodes`` (its fixture) closes everything.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.harness import NodeProcess, Nodes, TimedOut, free_port, until
from tests.support.proxy import Links, redirection

SHORT_GUARD_S = "0.2"
"""For tests that are not about the birth guard: it takes 2 s in earnest."""
PEER_OFFSET = 1_000
WHOLE_S = 30.0
HARMLESS = r"the reactor was blocked for"
"""It says more about the machine that the tests share than about the node."""


class View(NamedTuple):
    """``GET /cluster`` of one node."""

    cluster_id: str
    leader: str | None
    term: int
    statuses: dict[str, str]
    voters: frozenset[str]


class Cluster:
    """:param guard_s: empty for the birth guard as it is. :param links: peers talk through a proxy per directed link.
    :param by_peer_port: who joins is given the founder's peer port, not its HTTP one.
    :param token: what the tests show with each request.
    :param tls: nodes are asked by HTTPS, also by who joins."""

    def __init__(
        self,
        nodes: Nodes,
        names: Iterable[str] = ("node-1", "node-2", "node-3"),
        *,
        home: Path | None = None,
        options: Sequence[str] = (),
        own_options: Callable[[str], Sequence[str]] = lambda name: (),
        guard_s: str = SHORT_GUARD_S,
        links: bool = False,
        by_peer_port: bool = False,
        token: str = "",
        environment: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.nodes = nodes
        self.home = home or nodes.directory / "home"
        self.home.mkdir(exist_ok=True)
        self.ports: dict[str, int] = {}
        self.processes: dict[str, NodeProcess] = {}
        self.history: list[NodeProcess] = []
        self.links: Links | None = None
        self._options = options
        self._token = token
        self._own_options = own_options
        self._join_offset = PEER_OFFSET if by_peer_port else 0
        self._environment = {"TQ_TEST_BIRTH_GUARD_S": guard_s} if guard_s else {}
        self._environment |= environment or {}
        for name in names:
            self.port(name)
        self.founder = next(iter(self.ports))
        if links:
            self.links = Links({name: port + PEER_OFFSET for name, port in self.ports.items()})
            self._redirects = redirection(nodes.directory / "redirection")

    def close(self) -> None:
        for process in self.history:
            process.close()
        if self.links is not None:
            self.links.close()

    # --- nodes ---
    def port(self, name: str) -> int:
        """Of its HTTP side; the same for ever."""
        while name not in self.ports:
            port = free_port()
            # Neither one of another node's three ports.
            if all(abs(port - other) not in (0, 1_000, 2_000) for other in self.ports.values()):
                self.ports[name] = port
        return self.ports[name]

    def command(self, name: str) -> list[str]:
        """What an operator types for this name, now and ever again."""
        founder = f"localhost:{self.ports[self.founder] + self._join_offset}"
        joins = [] if name == self.founder else ["--join", founder if self._tls is None else f"https://{founder}"]
        return ["--node-id", name, *joins, *self._options, *self._own_options(name)]

    def environment(self, name: str) -> dict[str, str]:
        environment = dict(self._environment)
        if self.links is not None:
            ports = {
                self.ports[other] + PEER_OFFSET: self.links.port(name, other) for other in self.ports if other != name
            }
            environment |= self._redirects(ports)
        return environment

    def start(self, *names: str, extra: Sequence[str] = ()) -> None:
        """Start, without waiting for anything. With the usual command and ``extra``."""
        for name in names or tuple(self.ports):
            process = self.nodes.start(
                *self.command(name), *extra, http_port=self.port(name), cwd=self.home,
                environment=self.environment(name), wait=False,
            )  # fmt: skip
            process.token = self._token
            process.tls = self._tls
            self.processes[name] = process
            self.history.append(process)

    def __getitem__(self, name: str) -> NodeProcess:
        return self.processes[name]

    @property
    def running(self) -> list[str]:
        return [name for name, process in self.processes.items() if process.is_running]

    def others(self, *names: str) -> list[str]:
        return [name for name in self.running if name not in names]

    def data(self, name: str) -> Path:
        return self.home / "data" / name

    def log(self, name: str) -> str:
        return self.processes[name].log

    # --- what they show ---
    def view(self, name: str, deadline_s: float = 2.0) -> View | None:
        """None: it does not answer, or is no member yet."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return as_view(self[name].get("/cluster", deadline_s=deadline_s).json)
        return None

    def views(self, names: Iterable[str] = ()) -> dict[str, View | None]:
        return {name: self.view(name) for name in names or self.running}

    def agreed(self, names: Iterable[str] = ()) -> View | None:
        """What all of them show, if that is the same cluster, members, leader and term."""
        views = list(self.views(names).values())
        first = views[0]
        if first is None or first.leader is None:
            return None
        return first if all(view == first for view in views) else None

    def wait(
        self, condition: Callable[[View], bool], *, names: Iterable[str] = (), deadline_s: float = WHOLE_S, what: str
    ) -> View:
        """Until all of them show the same, and that fulfils the condition."""

        def fulfilled() -> View | None:
            for name in self.processes:
                assert self[name].is_running or name not in names, f"{self[name]} has ended:\n{self[name].log_tail()}"
            view = self.agreed(names)
            return view if view is not None and condition(view) else None

        try:
            view = until(fulfilled, deadline_s=deadline_s, what=what)
        except TimedOut as why:
            shown = "\n".join(f"{name}: {view}" for name, view in self.views(names).items())
            raise TimedOut(f"{why}\n{shown}") from None
        assert view is not None
        return view

    def wait_whole(self, *, voters: int = 3, members: Iterable[str] = (), deadline_s: float = WHOLE_S) -> View:
        """Every running node shows the same members, all active, with so many voters, one leader and one term."""
        wanted = set(members or self.running)
        return self.wait(
            lambda view: (
                view.statuses == dict.fromkeys(wanted, "active") and len(view.voters) == min(voters, len(wanted))
            ),
            deadline_s=deadline_s,
            what=f"{sorted(wanted)} whole",
        )

    def wait_ready(self, deadline_s: float = WHOLE_S) -> None:
        for name in self.running:
            self[name].wait_ready(deadline_s)

    def wait_gone(self, name: str, status: str | None = "down", deadline_s: float = WHOLE_S) -> View:
        """Until all the others show it with that status, or, for None, not at all."""
        return self.wait(
            lambda view: view.statuses.get(name) == status,
            names=self.others(name),
            deadline_s=deadline_s,
            what=f"{name} {status or 'forgotten'}",
        )

    def leader(self) -> str:
        return self.wait(lambda view: True, what="one leader").leader or ""

    def partitions(self, name: str = "") -> list[dict[str, Any]]:
        found = self[name or self.running[0]].get("/cluster/partitions").json["partitions"]
        assert isinstance(found, list)
        return found

    def primaries(self, name: str = "") -> Counter[str | None]:
        return Counter(partition["primary"] for partition in self.partitions(name))

    # --- the end ---
    def stop(self, *names: str) -> None:
        """SIGTERM to each, one after the other; each ends with 0."""
        for name in names or tuple(self.running):
            assert self[name].terminate() == 0, self[name].log_tail()

    def assert_logs_are_clean(self, allow: str = "") -> None:
        for process in self.history:
            process.assert_log_is_clean(f"{HARMLESS}|{allow}" if allow else HARMLESS)


def copies_of(partition: Mapping[str, Any]) -> frozenset[str]:
    """Who has it, or is about to."""
    return frozenset(name for name in (partition["primary"], *partition["replicas"]) if name is not None)


def as_view(answer: Mapping[str, Any]) -> View | None:
    cluster = answer["cluster"]
    if not cluster["id"]:
        return None
    nodes = cluster["nodes"]
    return View(
        cluster["id"],
        cluster["leader"],
        cluster["term"],
        {node["id"]: node["status"] for node in nodes},
        frozenset(node["id"] for node in nodes if node["voter"]),
    )


class Sample(NamedTuple):
    at_s: float
    view: View
    primaries: tuple[str | None, ...] | None
    copies: tuple[frozenset[str], ...] | None = None


class Watch(threading.Thread):
    """Asks one node for ``/cluster`` (and ``/cluster/partitions``) over one connection, again and again, and keeps it all."""

    def __init__(self, name: str, port: int, *, every_s: float = 0.005, partitions: bool = False) -> None:
        super().__init__(name=f"watch-{name}", daemon=True)
        self.node, self.samples = name, list[Sample]()
        self._port, self._every_s, self._partitions = port, every_s, partitions
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1.0)
            try:
                while not self._over.wait(self._every_s):
                    self._look(connection)
            except (OSError, http.client.HTTPException, ValueError):
                self._over.wait(0.02)
            finally:
                connection.close()

    def _look(self, connection: http.client.HTTPConnection) -> None:
        view = as_view(_asked(connection, "/cluster"))
        if view is None:
            return
        primaries = copies = None
        if self._partitions:
            shown = _asked(connection, "/cluster/partitions")["partitions"]
            primaries = tuple(one["primary"] for one in shown)
            copies = tuple(copies_of(one) for one in shown)
        self.samples.append(Sample(time.monotonic(), view, primaries, copies))

    def first(self, condition: Callable[[Sample], bool], since_s: float) -> float | None:
        """Seconds from ``since_s`` to the first sample after it that fulfils the condition."""
        for sample in list(self.samples):
            if sample.at_s >= since_s and condition(sample):
                return sample.at_s - since_s
        return None

    def end(self) -> None:
        self._over.set()
        self.join(5)


def _asked(connection: http.client.HTTPConnection, path: str) -> Any:
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


@contextlib.contextmanager
def watching(cluster: Cluster, *names: str, every_s: float = 0.005, partitions: bool = False) -> Iterator[list[Watch]]:
    """Watches of the named nodes, or of all; at the end it is checked that no term had two leaders."""
    watches = [
        Watch(name, cluster.ports[name], every_s=every_s, partitions=partitions) for name in names or cluster.running
    ]
    for watch in watches:
        watch.start()
    try:
        yield watches
    finally:
        for watch in watches:
            watch.end()
    assert_one_leader_a_term(sample.view for watch in watches for sample in watch.samples)


def assert_one_leader_a_term(views: Iterable[View]) -> None:
    leaders: dict[int, set[str]] = defaultdict(set)
    for view in views:
        if view.leader is not None:
            leaders[view.term].add(view.leader)
    assert all(len(names) == 1 for names in leaders.values()), f"two leaders in a term: {dict(leaders)}"


@contextlib.contextmanager
def whole_cluster(directory: Path, *arguments: Any, **options: Any) -> Iterator[Cluster]:
    """A cluster for several tests, whole and ready at first; no call of its nodes may have held their reactors."""
    nodes = Nodes(directory)
    cluster = Cluster(nodes, *arguments, **options)
    try:
        cluster.start()
        cluster.wait_whole()
        cluster.wait_ready()
        yield cluster
        assert not nodes.holds()
    finally:
        cluster.close()
        nodes.close()


@contextlib.contextmanager
def shared_cluster(made_in: Path, *options: str) -> Iterator[Cluster]:
    """Three whole nodes for all tests of a file that hurt none of them."""
    nodes = Nodes(made_in)
    cluster = Cluster(nodes, options=options)
    try:
        cluster.start()
        cluster.wait_whole()
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()
        nodes.close()
