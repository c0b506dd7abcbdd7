"""What is measured, each in a process of its own: ``python harness.py PART``, with the tree to measure first in PYTHONPATH.

A part does so many units to warm up (the interpreter fits its code to what it meets), then as many more that are counted.
Only what the trees of all releases have is imported, from the tree that is measured.
"""

from __future__ import annotations

import gc
import itertools
import json
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

PARTITIONS = 64
AN_HOUR_US = 3_600_000_000
LOOK_US = 1_000
LINES_A_WRITE = 20
"""Of the audit log: two thousand requests a second."""
SETTLED_US = 150_000
WHOLE_US_MAX = LOAD_US_MAX = 60_000_000
PAYLOAD = b'{"to":"user@example.com"}'


class Counts(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


class Nothing:
    """Counts nothing: to see a harness run without valgrind."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


# --- submits over three nodes, in virtual time: everything but HTTP and SQL ---
def submits(in_flight: int, batch: int = 0) -> Callable[[Counts, int], None]:
    """``in_flight`` clients spread over the nodes, each with one call after another. ``batch``: tasks a call; 0: a submit."""

    def measure(counts: Counts, units: int) -> None:
        from tests.simulation.cluster.faults import Faults
        from tests.simulation.cluster.node import SimulatedNode, composition
        from tests.simulation.cluster.world import ClusterWorld
        from tq_node import limits
        from tq_node.partition.settings import ReplicationSettings
        from tq_node.runtime.control import raft_driver

        world = ClusterWorld(1, faults=Faults(nodes=3))
        world.nodes = [SimulatedNode(world, index, PARTITIONS, 3) for index in range(3)]
        as_wired = {
            "pace": ReplicationSettings(),
            "snapshot_every": raft_driver.SNAPSHOT_EVERY,
            "kept_behind": raft_driver.KEPT_BEHIND,
            "lease_ms": limits.LEASE_MS,
            "margin_ms": limits.LEASE_MARGIN_MS,
        }
        with composition(world, as_wired):
            world.be_born()
            world._until(world._is_whole, WHOLE_US_MAX, "the copies are there")
            world.checkers.look_at = lambda node: None  # type: ignore[method-assign]  # it would be most of the cost
            load = Load(world, batch)
            load.run(in_flight, units)
            counts.start()
            load.run(in_flight, units)
            counts.stop()

    return measure


class Load:
    def __init__(self, world: Any, batch: int) -> None:
        from tq_node.facade import Submission

        self._world = world
        self._batch = batch
        self._left = self._done = 0
        self._make = lambda: Submission("email", PAYLOAD, delay_us=AN_HOUR_US, content_hash=bytes(16))

    def run(self, in_flight: int, units: int) -> None:
        world = self._world
        self._left, self._done = units, 0
        for client in range(in_flight):
            world.time.after(0, self._next, client)
        end_us = world.time.now_us + LOAD_US_MAX
        while self._done < units:
            assert world.time.now_us < end_us, f"only {self._done} of {units} tasks were accepted"
            world.time.run_until(world.time.now_us + LOOK_US)
        # All rows are written: else how many are still to come would depend on where a slice of them happens to end.
        world.time.run_until(world.time.now_us + SETTLED_US)

    def _next(self, client: int) -> None:
        if self._left <= 0:
            return
        queue = self._world.nodes[client % 3].queue
        self._left -= self._batch or 1
        made = [self._make() for _ in range(self._batch or 1)]
        done = queue.submit_many(made) if self._batch else queue.submit(made[0])
        done.addCallback(self._accepted, client)

    def _accepted(self, accepted: Any, client: int) -> None:
        if self._batch:
            assert all(hasattr(one, "task_id") for one in accepted), accepted
        self._done += self._batch or 1
        self._next(client)


# --- the store: what its writer thread does ---
def commits(entries: int) -> Callable[[Counts, int], None]:
    """Commits of so many entries of 300 bytes, each of another partition; no rows."""

    def measure(counts: Counts, units: int) -> None:
        from tests.support.stores import record
        from tq_node.store.api import Batch

        with Writer() as writer:
            batches = [
                Batch(entries=[record(partition, sequence, payload=bytes(300)) for partition in range(entries)])
                for sequence in range(1, 2 * units + 1)
            ]
            batches[0].epochs = [(partition, 1, 1) for partition in range(entries)]
            for batch in batches[:units]:
                writer.write([batch])
            counts.start()
            for batch in batches[units:]:
                writer.write([batch])
            counts.stop()

    return measure


def rows(per_commit: int) -> Callable[[Counts, int], None]:
    """Rows of new tasks, written behind the log, so many with a commit."""

    def measure(counts: Counts, units: int) -> None:
        from tests.support.stores import birth, record
        from tq_node.store.api import Batch

        made = [
            birth(
                f"task-{number:032x}", partition=number % PARTITIONS, spec=bytes(150), body=bytes(60), run_at_us=number
            )
            for number in range(2 * units)
        ]
        with Writer() as writer:
            batches = []
            for step, first in enumerate(range(0, 2 * units, per_commit), 1):
                entries = [record(partition, step) for partition in range(PARTITIONS)]
                applied = dict.fromkeys(range(PARTITIONS), step)
                batches.append(Batch(entries=entries, rows=made[first : first + per_commit], applied=applied))
            batches[0].epochs = [(partition, 1, 1) for partition in range(PARTITIONS)]
            half = len(batches) // 2
            for batch in batches[:half]:
                writer.write([batch])
            counts.start()
            for batch in batches[half:]:
                writer.write([batch])
            counts.stop()

    return measure


class Writer:
    """The store's writer on a new file, in this thread."""

    def __enter__(self) -> Any:
        from tests.support.stores import group_writer
        from tq_node.store.sqlite import open_database

        self._directory = tempfile.TemporaryDirectory()
        self._connection = open_database.connect_writer(Path(self._directory.name) / "store.db")
        return group_writer(self._connection)

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._directory.cleanup()


# --- HTTP: real bytes through the real site, a queue that answers at once ---
def requests(
    what: str, hot: bool, by_socket: bool = False, with_token: bool = False, audited: bool = False
) -> Callable[[Counts, int], None]:
    """``with_token``: the node has tokens, and the request shows one. ``audited``: it keeps an audit log."""

    def measure(counts: Counts, units: int) -> None:
        from twisted.internet.defer import succeed

        from tests.unit.tq_node.api.talk import World
        from tq_node.facade import Accepted
        from tq_node.types import State

        # A door that measures how long its answers take, and a Date that changes, would make two runs differ.
        time.time = lambda: 1_700_000_000.0
        time.perf_counter = partial(next, itertools.count(0.0, 0.000_1))
        more: dict[str, Any] = {"audit": AuditLog()} if audited else {}  # older trees know none
        world = World(fast_path=hot, **more)
        task_id = world.submit()
        body = b'{"type":"email","payload":%b}' % PAYLOAD
        token = b""
        if with_token:
            from tq_node.tokens import Role

            token = b"Authorization: Bearer %b\r\n" % world.tokens.make(Role.SUBMIT, Role.READ).encode()
            world.clock.advance(1)
        sent = {
            "submit": b"POST /tasks/submit HTTP/1.1\r\nHost: localhost:8080\r\nContent-Type: application/json\r\n"
            b"%bContent-Length: %d\r\n\r\n%b" % (token, len(body), body),
            "status": b"GET /tasks/status?id=%b HTTP/1.1\r\nHost: localhost:8080\r\n%b\r\n" % (task_id.encode(), token),
        }[what]
        numbers = itertools.count()
        world.queue.submit = lambda submission: succeed(  # type: ignore[method-assign]
            Accepted(f"task-{next(numbers):032x}", State.PENDING, "node-1", True)
        )
        if by_socket:
            ask = asked_by_socket(world.site, sent)
        else:
            client = world.connect()

            def ask() -> None:
                client.send(sent)
                if not client.transport.value():
                    world.clock.advance(0)
                answer = client.transport.value()
                assert answer.startswith(b"HTTP/1.1 20"), answer
                client.transport.clear()

        for _ in range(units):
            ask()
        counts.start()
        for _ in range(units):
            ask()
        counts.stop()

    return measure


def requests_by_tls(counts: Counts, units: int) -> None:
    """As "request, submit", by TLS, without what its client does: it has written all requests before."""
    from twisted.internet.defer import succeed

    from tests.support.certificates import HOSTS, make_ca
    from tests.unit.tq_node.api.tls_talk import Https
    from tq_node.facade import Accepted
    from tq_node.types import State

    time.time = lambda: 1_700_000_000.0
    time.perf_counter = partial(next, itertools.count(0.0, 0.000_1))
    place = Path(tempfile.mkdtemp(prefix="tq"))
    world = Https(make_ca(place / "ca", f"node-1={HOSTS}"), place)
    body = b'{"type":"email","payload":%b}' % PAYLOAD
    sent = (
        b"POST /tasks/submit HTTP/1.1\r\nHost: localhost:8080\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    numbers = itertools.count()
    world.queue.submit = lambda submission: succeed(  # type: ignore[method-assign]
        Accepted(f"task-{next(numbers):032x}", State.PENDING, "node-1", True)
    )
    client = world.greeted()
    records = []
    for _ in range(2 * units):
        client.tls.write(sent)
        records.append(client.outgoing.read())
    client.transport.clear()
    for number, record in enumerate(records):
        if number == units:
            counts.start()
        client.protocol.dataReceived(record)
        if not client.transport.value():
            world.clock.advance(0)
        assert client.transport.value()
        if number < units:
            client.fetch()
        else:
            client.transport.clear()
    counts.stop()


class AuditLog:
    """What the threads of an audit log do, in one: a switch between them would count differently each time."""

    def __init__(self) -> None:
        from tq_node.store.audit_files import AuditFiles

        path = Path(tempfile.mkdtemp(prefix="tq")) / "audit"
        self._files = AuditFiles(path, "node-1", bytes_max=1_000_000_000, kept=1)
        self._pending: list[Any] = []

    def write(self, record: Any) -> None:
        self._pending.append(record)
        if len(self._pending) == LINES_A_WRITE:
            self._files.append(self._pending)
            self._pending = []

    def read(self, *_: object) -> Any:
        raise AssertionError("only the writing is measured: nothing reads the log")


def asked_by_socket(site: Any, sent: bytes) -> Callable[[], None]:
    """Asks over loopback, through a reactor that this process turns itself; its client is a bare socket."""
    from twisted.internet import reactor

    tcp_reactor: Any = reactor
    with suppress(ImportError):  # an older tree has Twisted's own connections alone
        from tq_node.direct_sends import DirectReactor

        tcp_reactor = DirectReactor(reactor)
    port = tcp_reactor.listenTCP(0, site, interface="127.0.0.1")
    client = socket.create_connection(("127.0.0.1", port.getHost().port))
    reactor.iterate(0)

    def ask() -> None:
        client.sendall(sent)
        while not select.select([client], [], [], 0)[0]:
            reactor.iterate(0)
        answer = client.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 20"), answer

    return ask


PARTS: dict[str, tuple[Callable[[Counts, int], None], int]] = {
    "submit, 1 in flight": (submits(1), 100),
    "submit, 32 in flight": (submits(32), 960),
    "submit, 128 in flight": (submits(128), 2_560),
    "submit, batches of 100": (submits(3, 100), 6_000),
    "commit of 1 entry": (commits(1), 100),
    "commit of 20 entries": (commits(20), 50),
    "row, 1,000 a commit": (rows(1_000), 2_000),
    "row, 50 a commit": (rows(50), 500),
    "request, submit": (requests("submit", hot=True), 200),
    "request, status": (requests("status", hot=True), 200),
    "request, submit by a socket": (requests("submit", hot=True, by_socket=True), 200),
    "request, submit by Klein": (requests("submit", hot=False), 100),
}
"""What is measured, and how many units of it."""
BESIDE: dict[str, tuple[Callable[[Counts, int], None], int]] = {
    "request, submit, with a token": (requests("submit", hot=True, with_token=True), 200),
    "request, submit, by TLS": (requests_by_tls, 200),
    "request, submit, audited": (requests("submit", hot=True, audited=True), 200),
    "request, status, with a token": (requests("status", hot=True, with_token=True), 200),
}
"""Set beside the same parts without, by tests; no baseline has them."""


def main(name: str) -> None:
    measure, units = (PARTS | BESIDE)[name]
    counts: Counts = Nothing()
    if "--without" not in sys.argv:
        from counter import Counter  # type: ignore[import-not-found]  # beside this file, whatever tree is measured

        counts = Counter()
    gc.disable()
    measure(counts, units)
    gc.enable()
    print(json.dumps({"units": units}))


if __name__ == "__main__":
    main(sys.argv[1])
