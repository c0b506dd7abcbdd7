"""Several control planes in one process, over real sockets and real SQLite files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater

from tests.support.harness import PATIENCE, free_port
from tq_node.cluster.commands import FoundCluster, RegisterNode, Registration
from tq_node.cluster.commands import encode as encode_command
from tq_node.cluster.map import EMPTY, apply, encode
from tq_node.cluster.records import ClusterSettings
from tq_node.cluster.refusals import Refusal
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane, Outside, ThisRun, Transport
from tq_node.runtime.control.raft_driver import founding_values
from tq_node.runtime.control.registration import WELCOMES, Outcome
from tq_node.store.api import Batch
from tq_node.store.sqlite.store import SqliteStore, open_store
from tq_node.types import NodeId, NodeName
from tq_node.wire import commands as wire
from tq_node.wire.authentication import Authentication
from tq_node.wire.connector import Connector
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.handshake import LocalIdentity, Sessions
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import PeerPool
from tq_node.wire.tls import PeerTLS

SECRET = b"a secret of at least thirty-two bytes, for tests"
CLUSTER = "c" * 32
the_reactor: Any = reactor


class Watched(Outside):
    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.failures: list[BaseException] = []

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def broken(self, why: BaseException) -> None:
        self.failures.append(why)


class PlaneNode:
    """One node: its directory survives ``stop`` and ``kill``.

    :param tls: makes what it shows and believes, of its name."""

    def __init__(
        self, directory: Path, name: str, *, tls: Callable[[str], PeerTLS] | None = None, feature_level: int = 1
    ) -> None:
        self.tls = None if tls is None else tls(name)
        self.feature_level = feature_level
        self.directory = directory / name
        self.name = name
        self.node_id = NodeId(f"{name:0>32}")
        self.port = free_port()
        self.incarnation = 0
        self.plane: ControlPlane
        self.store: SqliteStore
        self.outside = Watched()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def registration(self) -> Registration:
        nonce = f"{self.name}-{self.incarnation}"
        level = self.feature_level
        return Registration(self.node_id, NodeName(self.name), "", self.address, self.incarnation, nonce, 1, level)

    async def start(self, *, founds: bool = False, partitions: int = 16, name: str | None = None) -> None:
        self.incarnation += 1
        self.outside = Watched()
        self.store = open_store(self.directory, reactor=the_reactor, on_broken=self.outside.failures.append)
        if founds:
            settings = ClusterSettings(partitions, 3, 7, 3)
            born = apply(EMPTY, 1, FoundCluster(CLUSTER, "taskqueue", settings, self.registration())).map
            await self.store.commit(Batch(meta=founding_values(self.node_id, encode(born))))
        local = LocalIdentity(
            node_id=self.node_id,
            name=NodeName(name or self.name),
            incarnation=self.incarnation,
            cluster=CLUSTER,
            secret=SECRET,
        )
        authentication = Authentication(local, Sessions(), self.tls)
        connector = Connector(
            the_reactor, authentication, lambda address, seconds: client_endpoint(the_reactor, address, seconds)
        )
        tls: Any = self.tls
        endpoint = TCP4ServerEndpoint(the_reactor, self.port, interface="127.0.0.1")
        transport = Transport(
            lambda plane: PeerPool(connector, plane, random.Random(self.port)),
            lambda plane: PeerListener(the_reactor, endpoint, authentication, plane),
            has_certificates=self.tls is not None,
            own_certificate=bytes if self.tls is None else lambda: tls.own_digest,
        )
        self.plane = ControlPlane(
            Clock(the_reactor),
            self.store,
            ThisRun(local, self.registration(), int.from_bytes(os.urandom(8), "big")),
            transport,
            self.outside,
        )
        await self.plane.listen()
        await self.plane.start()

    async def join(self, member: PlaneNode) -> Outcome:
        """What a joiner does: registers with any member; everything else comes to it."""
        connection = await self.plane.pool.dial(member.address)
        try:
            body = encode_command(RegisterNode(CLUSTER, self.registration()))
            answer = await connection.call(wire.Register, 5.0, body=body)
            welcome = WELCOMES.decode(answer["body"])
            assert welcome.outcome is not None, "the member that was asked leads"
            if not welcome.outcome.refused:
                self.plane.membership.welcomed(welcome)
            return welcome.outcome
        finally:
            connection.close()

    async def stop(self) -> None:
        await self.plane.stop()
        await self.store.close()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> float:
    """How long it took. :raises AssertionError: too long."""
    start = the_reactor.seconds()
    while not condition():
        assert the_reactor.seconds() - start < seconds * PATIENCE, f"not within {seconds * PATIENCE} s"
        await pause(0.005)
    return float(the_reactor.seconds() - start)


def pause(seconds: float) -> Deferred[None]:
    return deferLater(the_reactor, seconds)
