"""The node as a member of a cluster: its identity, the control plane's wiring, joining, leaving."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from tq_node.cli import invitation_file
from tq_node.cli.config import NodeSettings
from tq_node.cluster.commands import Registration
from tq_node.cluster.records import FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN
from tq_node.cluster.refusals import Refusal
from tq_node.errors import TaskQueueError
from tq_node.facade import NotReadyReason
from tq_node.node.https import asking_policy
from tq_node.node.process import listen_now, tcp_reactor, with_backlog
from tq_node.node.rereading import Reread
from tq_node.reread_files import RereadFiles
from tq_node.runtime.bootstrap.bootstrap_guard import BootstrapGuard, Founder
from tq_node.runtime.bootstrap.credentials import reread_certificates, reread_secrets
from tq_node.runtime.bootstrap.found import first_table, is_founded
from tq_node.runtime.bootstrap.identity import (
    Belonging,
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
from tq_node.runtime.bootstrap.join import Joiner, JoinSettings, JoinSteps, refusal_line
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.control_plane import ControlPlane, Outside, ThisRun, Transport
from tq_node.store.api import Batch, Store
from tq_node.types import HandlerKind, NodeId
from tq_node.wire.authentication import Authentication
from tq_node.wire.connector import Connector
from tq_node.wire.endpoints import client_endpoint
from tq_node.wire.handler import Greeting
from tq_node.wire.handshake import LocalIdentity, Sessions
from tq_node.wire.listener import PeerListener
from tq_node.wire.pool import PeerPool

if TYPE_CHECKING:
    from tq_node.wire.tls import PeerTLS  # takes a while to import, and most nodes have no certificates

_log = Logger(namespace="taskqueue.node")
_NONCE_BYTES = 16
_SEED_BYTES = 8
RESIGN_S = 1.0
"""How long a leader that stops waits for a successor; without one, the others elect it."""
_NEWBORN = NotReadyReason("not_ready", "the cluster is newborn: the node waits whether an older one looks for it")


class PeerPortTaken(Exception):
    """One line that names the option."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What peers prove themselves with: secrets, or certificates; both None: neither was given."""

    secrets: RereadFiles[tuple[bytes, ...]] | None
    certificates: RereadFiles[PeerTLS] | None

    @classmethod
    def of(cls, settings: NodeSettings) -> Credentials:
        """Read the files of ``--secret-file``, ``--peer-cert``, ``--peer-key``, ``--peer-ca`` and
        ``--peer-crl``.

        :raises BadCredentials: one of them can't be used."""
        file, insecure = settings.secret_file, settings.insecure_peers
        return cls(
            None if file is None else reread_secrets(file, insecure=insecure),
            reread_certificates(
                settings.peer_cert, settings.peer_key, settings.peer_ca, settings.peer_crl, insecure=insecure
            ),
        )

    @property
    def secret(self) -> bytes | None:
        """What this node shows now."""
        return None if self.secrets is None else self.secrets.value[0]

    @property
    def tls(self) -> PeerTLS | None:
        return None if self.certificates is None else self.certificates.value

    def follow(self, local: LocalIdentity) -> Sequence[Reread]:
        """The files to be read again; what they say then counts for ``local`` and its peers."""
        files: list[Reread] = []
        if self.secrets is not None:
            self.secrets.on_change.append(local.hold)
            files.append(self.secrets)
        if self.certificates is not None:
            self.certificates.on_change.append(self.certificates.value.follow)
            files.append(self.certificates)
        return files

    @property
    def are_given(self) -> bool:
        """The operator keeps them; else the node makes a secret, for joiners on loopback too."""
        return self.secret is not None or self.tls is not None


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Which node this start is, of which cluster; not durable before ``Member.start``."""

    credentials: Credentials
    local: LocalIdentity
    """As it introduces itself to peers."""
    registration: Registration
    belonging: Belonging | None
    """The cluster that the directory belongs to, or that this start founds; None: it joins one."""
    secret: bytes | None
    """The cluster's, where it is known yet."""
    meta: Values
    """What ``Member.start`` writes before the node speaks to anybody."""
    is_joining: bool
    seed: int
    """64 random bits of this start."""

    def secret_for_joiners(self) -> bytes | None:
        """For nodes that join on loopback; None where a file has it or certificates do its work."""
        return None if self.credentials.are_given else self.local.secret


def identify(
    settings: NodeSettings,
    credentials: Credentials,
    meta: Mapping[str, bytes],
    now_us: int,
    random_bytes: Callable[[int], bytes],
    handlers: HandlerKind = HandlerKind.UNKNOWN,
) -> NodeIdentity:
    """Read from the store's ``meta`` whose directory this is, and decide what an empty one becomes.

    :param handlers: what this run registers with.
    :raises WrongName, NoSecret, NeverJoined, IsCopy, StoreBroken: this node must not start here."""
    formatted = formatted_in(meta, settings.node_name)
    if is_copy(meta):
        raise IsCopy(refusal_line(Refusal.STORE_CLONED, settings.node_name))
    if formatted is None:
        formatted = new_node(settings.node_name, random_bytes)
    incarnation, first = next_start(meta, formatted)
    belonging = belonging_in(meta)
    if belonging is not None and belonging.birth is None and not (settings.join or is_founded(meta)):
        raise NeverJoined(
            f"--join: is missing: this directory began to join cluster {belonging.cluster_id}, and its node never became "
            "a member"
        )
    is_joining = settings.join != () and (belonging is None or belonging.birth is None) and not is_founded(meta)
    if belonging is None and not settings.join:
        belonging = founding_identity(
            partition_count=settings.partitions,
            replication_factor=settings.replication_factor,
            keeps_secret=not credentials.are_given,
            random_bytes=random_bytes,
            now_us=now_us,
        )
    secret = credentials.secret
    if belonging is not None:
        secret, belonging = with_secret(
            meta,
            belonging,
            from_file=credentials.secret,
            has_certificates=credentials.tls is not None,
            random_bytes=random_bytes,
        )
        first |= belonging_values(belonging)
    registration = Registration(
        formatted.node_id,
        settings.node_name,
        settings.http_registered,
        str(settings.peer_public),
        incarnation,
        random_bytes(_NONCE_BYTES).hex(),
        FEATURE_LEVEL_MIN,
        FEATURE_LEVEL_MAX,
        handlers,
    )
    seed = int.from_bytes(random_bytes(_SEED_BYTES), "big")
    local = LocalIdentity(
        node_id=registration.node_id,
        name=settings.node_name,
        incarnation=registration.incarnation,
        features_min=FEATURE_LEVEL_MIN,
        features_max=FEATURE_LEVEL_MAX,
        cluster=None if belonging is None else belonging.cluster_id,
        secret=secret,
        other_secrets=() if credentials.secrets is None else credentials.secrets.value[1:],
    )
    return NodeIdentity(credentials, local, registration, belonging, secret, first, is_joining, seed)


class Birth:
    """Guards a cluster that is founded here against an older one (F15a); the outcome is stored.

    Does nothing where none is founded.

    :param has_tasks: whether this node holds any task now.
    :param on_older_cluster: gets one line for the operator; the process must end with it."""

    def __init__(
        self,
        settings: NodeSettings,
        store: Store,
        clock: Clock,
        identity: NodeIdentity,
        *,
        has_tasks: Callable[[], bool],
        on_older_cluster: Callable[[str], None],
    ) -> None:
        self._store = store
        self._guard: BootstrapGuard | None = None
        self._belonging = belonging = identity.belonging
        if belonging is not None and belonging.is_newborn:

            def end(line: str) -> None:
                # However it is started again, it waits again.
                self._keep(newborn_again(belonging)).addBoth(lambda _: on_older_cluster(line))

            self._guard = BootstrapGuard(
                clock,
                Founder(belonging.cluster_id, settings.node_name, str(settings.peer_public)),
                has_tasks=has_tasks,
                on_older_cluster=end,
                guard_s=settings.birth_guard_s,
                trusts_own_users=identity.secret_for_joiners() is not None,
            )

    def watch(self) -> None:
        """The peers' port listens, and the identity is durable."""
        if self._guard is not None:
            self._guard.watch().addCallback(self._guard_ended)

    def _guard_ended(self, passed: bool) -> None:
        if passed and self._belonging is not None:
            self._keep(past_birth_guard(self._belonging)).addErrback(lambda _: None)  # the store says so itself (R18)

    def _keep(self, belonging: Belonging) -> Deferred[None]:
        return self._store.commit(Batch(meta=belonging_values(belonging)))

    def guarded(self) -> NotReadyReason | None:
        """Why a newborn cluster is not ready yet."""
        guard = self._guard
        if guard is None or not guard.is_newborn:
            return None
        return NotReadyReason("not_ready", guard.doubt) if guard.doubt else _NEWBORN

    def greeted(self, greeting: Greeting) -> None:
        if self._guard is not None:
            self._guard.greeted(greeting)

    def stop(self) -> None:
        if self._guard is not None:
            self._guard.stop()


def make_plane(
    settings: NodeSettings, store: Store, clock: Clock, identity: NodeIdentity, outside: Outside
) -> ControlPlane:
    """Make the control plane. ``outside``: the rest of the node, which it calls once started."""
    local, tls, reactor = identity.local, identity.credentials.tls, clock.reactor
    authentication = Authentication(local, Sessions(), tls)
    tcp = tcp_reactor(reactor, settings)
    connector = Connector(reactor, authentication, lambda address, seconds: client_endpoint(tcp, address, seconds))
    endpoint = serverFromString(tcp, with_backlog(settings.peer.endpoint))
    transport = Transport(
        lambda plane: PeerPool(connector, plane, random.Random()),  # noqa: S311 (jitter)
        lambda plane: PeerListener(reactor, endpoint, authentication, plane),
        has_certificates=tls is not None,
        own_certificate=bytes if tls is None else lambda: tls.own_digest,
    )
    return ControlPlane(clock, store, ThisRun(local, identity.registration, identity.seed), transport, outside)


class Member:
    """A member, by ``listen``, ``start``, ``join``, ``leave_gracefully``, ``stop``, in order."""

    def __init__(
        self,
        settings: NodeSettings,
        store: Store,
        clock: Clock,
        identity: NodeIdentity,
        plane: ControlPlane,
        birth: Birth,
    ) -> None:
        self._settings, self._store, self._clock, self._birth = settings, store, clock, birth
        self.identity = identity
        self.plane = plane
        self._joiner: Joiner | None = None
        """While the node joins."""
        self._is_started = False

    @property
    def node_id(self) -> NodeId:
        return self.identity.registration.node_id

    def listen(self) -> None:
        """Listen for peers; raises ``PeerPortTaken`` if the address is in use or not ours."""
        try:
            listen_now(self.plane.listen())
        except CannotListenError as why:
            raise PeerPortTaken(f"--peer: {why}") from None

    def stop_listening(self) -> object:
        return Deferred.fromCoroutine(self.plane.listener.stop())

    # --- life ---
    async def start(self) -> None:
        """Store the identity before the control plane starts and peers learn of this node."""
        belonging, meta = self.identity.belonging, self.identity.meta
        if belonging is not None and belonging.birth is not None and not is_founded(self._store.meta()):
            meta = meta | await first_table(self._store, belonging, self.identity.registration, self._settings.voters)
        await self._store.commit(Batch(meta=meta))
        await self.plane.start()
        self._is_started = True
        self._birth.watch()

    async def join(self) -> None:
        """Become a member, if this node is not: until it is, or is refused, or ``stop_joining``.

        :raises JoinRefused: for good; ``str()`` is one line."""
        if not self.identity.is_joining:
            return
        identity = self.identity
        settings = JoinSettings(
            [str(address) for address in self._settings.join],
            own=(*self._settings.http_own, self._settings.peer_public),
            secret=lambda: identity.credentials.secret or identity.secret,
            belongs_to=None if identity.belonging is None else identity.belonging.cluster_id,
        )
        inviter = Inviter(
            self._clock.reactor,
            needs_secret=identity.secret is None and identity.credentials.tls is None,
            secret=settings.secret,
            invitation=self._invitation(),
            may_dial=identity.secret is not None or identity.credentials.tls is not None,
            https=asking_policy(self._settings),
        )
        steps = JoinSteps(inviter, self.plane.pool.dial, self._joins)
        self._joiner = Joiner(self._clock, settings, steps, identity.local, identity.registration)
        try:
            welcome = await self._joiner.join()
        except JoinRefused as why:
            if why.is_copy:
                await self.remember_copy()
            raise
        if welcome is not None:
            self.plane.membership.welcomed(welcome)

    def _invitation(self) -> str | None:
        """What ``--invitation`` holds, where it is needed.

        :raises JoinRefused: it can't be used."""
        path = self._settings.invitation
        if path is None or self.identity.secret is not None:
            return None
        try:
            return invitation_file.read(path).invitation
        except invitation_file.BadInvitation as why:
            raise JoinRefused(f"--invitation: {why}") from None

    async def _joins(self, invited: Invited) -> None:
        await self._store.commit(Batch(meta=joined(invited.cluster_id, invited.secret, self._clock.wall_us())))

    def remember_copy(self) -> Deferred[None]:
        """Record that this directory is a copy: no later start may pass for the original's next."""
        return self._store.commit(Batch(meta=copy_values()))

    def stop_joining(self) -> None:
        if self._joiner is not None:
            self._joiner.stop()
        self._birth.stop()

    async def leave_gracefully(self) -> None:
        """Hand over Raft's leadership and tell peers, who would notice the end only by the port."""
        if self._is_started:
            await self._resign()
            await self.plane.membership.depart()

    async def _resign(self) -> None:
        """Transfer the Raft group's leadership, if held here, to a member that lacks nothing."""
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
