"""The other half of the composition root: the node as a member of a cluster, which it founds, joins or goes back to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from tq_node.cli.config import NodeSettings
from tq_node.cluster.commands import Registration
from tq_node.cluster.records import FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN
from tq_node.cluster.refusals import Refusal
from tq_node.errors import TaskQueueError
from tq_node.facade import NotReadyReason
from tq_node.node.process import listen_now, with_backlog
from tq_node.runtime.bootstrap.bootstrap_guard import BootstrapGuard, Founder
from tq_node.runtime.bootstrap.credentials import peer_tls, read_secret
from tq_node.runtime.bootstrap.found import first_table, is_founded
from tq_node.runtime.bootstrap.identity import (
    Belonging,
    Formatted,
    IsCopy,
    NeverJoined,
    Values,
    belonging_in,
    belonging_values,
    copy_values,
    formatted_in,
    founding_identity,
    is_copy,
    joined,
    new_node,
    newborn_again,
    next_start,
    past_birth_guard,
    with_secret,
)
from tq_node.runtime.bootstrap.invitation import Invited, Inviter, JoinRefused
from tq_node.runtime.bootstrap.join import Joiner, refusal_line
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane, Outside, Transport
from tq_node.store.api import Batch, Store
from tq_node.types import HandlerKind, NodeId
from tq_node.wire.connector import Connector
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.handler import Greeting
from tq_node.wire.handshake import LocalIdentity, Sessions
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import PeerPool

_log = Logger(namespace="taskqueue.node")
_NONCE_BYTES = 16
_SEED_BYTES = 8
RESIGN_S = 1.0
"""How long a leader that stops waits for another to take its place; if none does, the others elect one."""
_NEWBORN = NotReadyReason("not_ready", "the cluster is newborn: the node waits whether an older one looks for it")


class PeerPortTaken(Exception):
    """One line that names the option."""


class Member:
    """In the order of a node's life: ``identify``, ``assemble``, ``start``, ``join``, ``leave_gracefully``, ``stop``.

    :param handlers: what this run registers with.

    :raises BadCredentials: the files of ``--secret-file``, ``--peer-cert``, ``--peer-key`` or ``--peer-ca`` do not do.
    """

    def __init__(
        self,
        settings: NodeSettings,
        reactor: Any,
        *,
        random_bytes: Callable[[int], bytes],
        handlers: HandlerKind = HandlerKind.UNKNOWN,
    ) -> None:
        self.incarnation = 0
        self.plane: ControlPlane
        self._settings = settings
        self._reactor = reactor
        self._random_bytes = random_bytes
        self._handlers = handlers
        file, insecure = settings.secret_file, settings.insecure_peers
        self._secret_in_file = None if file is None else read_secret(file, insecure=insecure)
        self._tls = peer_tls(settings.peer_cert, settings.peer_key, settings.peer_ca, insecure=insecure)
        self._store: Store
        self._clock: Clock
        self._formatted: Formatted
        self._belonging: Belonging | None = None
        self._first: Values = {}
        self._secret: bytes | None = None
        self._registration: Registration
        self._local: LocalIdentity
        self._guard: BootstrapGuard | None = None
        self._joiner: Joiner | None = None
        self._on_older_cluster: Callable[[str], None]
        self._is_started = False
        self._is_joining = False

    # --- who this is ---
    def identify(self, store: Store, clock: Clock) -> None:
        """Read whose directory this is, and decide what an empty one becomes.

        :raises WrongName, NoSecret, NeverJoined, IsCopy, StoreBroken:
        """
        settings, draw = self._settings, self._random_bytes
        self._store, self._clock = store, clock
        meta = store.meta()
        formatted = formatted_in(meta, settings.node_name)
        if is_copy(meta):
            raise IsCopy(refusal_line(Refusal.STORE_CLONED, settings.node_name))
        self._formatted = new_node(settings.node_name, draw) if formatted is None else formatted
        self.incarnation, self._first = next_start(meta, self._formatted)
        belonging = belonging_in(meta)
        if belonging is not None and belonging.birth is None and not (settings.join or is_founded(meta)):
            raise NeverJoined(
                f"--join: is missing: this directory began to join cluster {belonging.cluster_id}, and its node never became "
                "a member"
            )
        self._is_joining = (
            settings.join != () and (belonging is None or belonging.birth is None) and not is_founded(meta)
        )
        if belonging is None and not settings.join:
            belonging = founding_identity(
                partition_count=settings.partitions,
                replication_factor=settings.replication_factor,
                keeps_secret=self._secret_in_file is None and self._tls is None,
                random_bytes=draw,
                now_us=clock.wall_us(),
            )
        self._secret = self._secret_in_file
        if belonging is not None:
            self._secret, belonging = with_secret(
                meta,
                belonging,
                from_file=self._secret_in_file,
                has_certificates=self._tls is not None,
                random_bytes=draw,
            )
            self._first |= belonging_values(belonging)
        self._belonging = belonging
        self._registration = Registration(
            self._formatted.node_id,
            settings.node_name,
            str(settings.http_public),
            str(settings.peer_public),
            self.incarnation,
            draw(_NONCE_BYTES).hex(),
            FEATURE_LEVEL_MIN,
            FEATURE_LEVEL_MAX,
            self._handlers,
        )

    @property
    def node_id(self) -> NodeId:
        return self._formatted.node_id

    def secret_for_joiners(self) -> bytes | None:
        """To a node that joins over loopback; None where operators keep the secret in a file, or certificates do its work."""
        return None if self._secret_in_file is not None or self._tls is not None else self._local.secret

    # --- assembly ---
    def assemble(self, outside: Outside, *, on_older_cluster: Callable[[str], None]) -> ControlPlane:
        """Make the control plane, and the birth guard of a cluster that is founded here.

        :param outside: the rest of the node, which the control plane calls back once it has started.
        :param on_older_cluster: one line for the operator; the process must end with it (F15a).
        """
        settings, belonging = self._settings, self._belonging
        self._on_older_cluster = on_older_cluster
        cluster_id = None if belonging is None else belonging.cluster_id
        self._local = local = LocalIdentity(
            node_id=self.node_id,
            name=settings.node_name,
            incarnation=self.incarnation,
            features_min=FEATURE_LEVEL_MIN,
            features_max=FEATURE_LEVEL_MAX,
            cluster=cluster_id,
            secret=self._secret,
        )
        sessions = Sessions()
        connector = Connector(
            self._reactor,
            local,
            sessions,
            lambda address, seconds: client_endpoint(self._reactor, address, seconds),
            self._tls,
        )
        endpoint = serverFromString(self._reactor, with_backlog(settings.peer.endpoint))
        transport = Transport(
            lambda plane: PeerPool(connector, plane, random.Random()),  # noqa: S311 (jitter)
            lambda plane: PeerListener(self._reactor, endpoint, local, plane, sessions, tls=self._tls),
            has_certificates=self._tls is not None,
        )
        self.plane = ControlPlane(
            self._clock,
            self._store,
            local,
            self._registration,
            transport,
            outside,
            seed=int.from_bytes(self._random_bytes(_SEED_BYTES), "big"),
        )
        if belonging is not None and belonging.is_newborn:
            founder = Founder(belonging.cluster_id, settings.node_name, str(settings.peer_public))
            self._guard = BootstrapGuard(
                self._clock,
                founder,
                has_tasks=outside.has_tasks,
                on_older_cluster=self._older_cluster,
                guard_s=settings.birth_guard_s,
                trusts_own_users=self.secret_for_joiners() is not None,
            )
        return self.plane

    def listen(self) -> None:
        """:raises PeerPortTaken: the peers' address is in use or not ours."""
        try:
            listen_now(self.plane.listen())
        except CannotListenError as why:
            raise PeerPortTaken(f"--peer: {why}") from None

    def stop_listening(self) -> object:
        return Deferred.fromCoroutine(self.plane.listener.stop())

    # --- life ---
    async def start(self) -> None:
        """Make durable who this is, then speak."""
        belonging, first = self._belonging, self._first
        if belonging is not None and belonging.birth is not None and not is_founded(self._store.meta()):
            first |= await first_table(self._store, belonging, self._registration, self._settings.voters)
        await self._store.commit(Batch(meta=first))
        await self.plane.start()
        self._is_started = True
        if self._guard is not None:
            self._guard.watch().addCallback(self._guard_over)

    def _guard_over(self, passed: bool) -> None:
        if passed and self._belonging is not None:
            self._keep(past_birth_guard(self._belonging)).addErrback(lambda _: None)  # the store says so itself (R18)

    def _keep(self, belonging: Belonging) -> Deferred[None]:
        self._belonging = belonging
        return self._store.commit(Batch(meta=belonging_values(belonging)))

    def _older_cluster(self, line: str) -> None:
        assert self._belonging is not None
        # However it is started again, it waits again.
        self._keep(newborn_again(self._belonging)).addBoth(lambda _: self._on_older_cluster(line))

    def guarded(self) -> NotReadyReason | None:
        """Why a newborn cluster is not ready yet."""
        guard = self._guard
        if guard is None or not guard.is_newborn:
            return None
        return NotReadyReason("not_ready", guard.doubt) if guard.doubt else _NEWBORN

    def greeted(self, greeting: Greeting) -> None:
        if self._guard is not None:
            self._guard.greeted(greeting)

    async def join(self) -> None:
        """Become a member, if this node is not: goes on until it is, or is refused, or ``stop_joining``.

        :raises JoinRefused: for good; ``str()`` is one line.
        """
        if not self._is_joining:
            return
        self._joiner = Joiner(
            self._clock,
            Inviter(self._reactor, needs_secret=self._secret is None and self._tls is None),
            [str(address) for address in self._settings.join],
            own=self._settings.http_own,
            local=self._local,
            registration=self._registration,
            dial=self.plane.pool.dial,
            keep=self._joins,
            secret=self._secret,
            belongs_to=None if self._belonging is None else self._belonging.cluster_id,
        )
        try:
            welcome = await self._joiner.join()
        except JoinRefused as why:
            if why.is_copy:
                await self.remember_copy()
            raise
        if welcome is not None:
            self.plane.membership.welcomed(welcome)

    async def _joins(self, invited: Invited) -> None:
        await self._store.commit(Batch(meta=joined(invited.cluster_id, invited.secret, self._clock.wall_us())))

    def remember_copy(self) -> Deferred[None]:
        """This directory is a copy: durable before the node ends, so that no later start passes for the original's next one."""
        return self._store.commit(Batch(meta=copy_values()))

    def stop_joining(self) -> None:
        if self._joiner is not None:
            self._joiner.stop()
        if self._guard is not None:
            self._guard.stop()

    async def leave_gracefully(self) -> None:
        """Another leads the Raft group, and the others hear that this node leaves: a node that just vanished they would notice
        only by its port, and wait for it till then.
        """
        if self._is_started:
            await self._resign()
            await self.plane.membership.depart()

    async def _resign(self) -> None:
        """Transfer the leadership of the Raft group to a member that lacks nothing, if this node leads it."""
        target = self.plane.successor()
        if target is None:
            return
        try:
            self.plane.consensus.transfer_leadership(target)
        except TaskQueueError:
            return
        for _ in range(int(RESIGN_S / 0.02)):
            if not self.plane.consensus.core.is_leader:
                return
            await self.plane.membership.pause(0.02)

    async def stop(self) -> None:
        if self._is_started:
            await self.plane.stop()
        else:
            await self.plane.listener.stop()
