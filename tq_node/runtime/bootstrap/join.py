"""How a node becomes a member: asks for the cluster, dials a member, makes its membership durable,
registers (replication.md, sections 6 and 2).

It goes on until it is a member, is refused for good, or is stopped: a joiner may be started before
the cluster that it joins."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.logger import Logger

from tq_node.cluster.commands import RegisterNode, Registration
from tq_node.cluster.commands import encode as encode_command
from tq_node.cluster.refusals import Refusal
from tq_node.errors import TaskQueueError
from tq_node.runtime.bootstrap.invitation import Denied, Invited, JoinRefused, NotInvited
from tq_node.runtime.clock import Clock
from tq_node.runtime.control.registration import WELCOMES, Welcomed
from tq_node.wire import commands as wire
from tq_node.wire.connector import DialledPeer
from tq_node.wire.errors import Removed, StaleSession, WrongSecret
from tq_node.wire.handshake import LocalIdentity

_log = Logger(namespace="taskqueue.joining")

AGAIN_FIRST_S = 0.1
AGAIN_S_MAX = 1.0
"""Pause between rounds: doubled from ``AGAIN_FIRST_S`` to this, half to all of it (jitter)."""
SAID_EVERY_S = 10.0
"""Least time between two log lines on why the node is not a member yet."""
REGISTER_S = 5.0
PEERS_ASKED_MAX = 8
"""Peers of one cluster dialled in one round; the next round asks another member for them."""

FINAL: dict[Refusal, str] = {
    Refusal.WRONG_CLUSTER: "this data directory belongs to another cluster than the one that it asks; "
    "give it an empty --data-dir, or its own cluster",
    Refusal.REMOVED: "node {name} was removed from its cluster and its id is never used again; "
    "to let it in as a new node, start it with an empty --data-dir and --join",
    Refusal.STORE_CLONED: "the data directory of {name} is a copy, or an older state, of one that the cluster has seen; "
    "start it with --readmit and --join to come in as a new node",
    Refusal.FEATURE_LEVEL: "this release can't do what the cluster already uses; install the one that its members run",
}


def refusal_line(refusal: Refusal, name: str) -> str:
    """One line for the operator of a node that is refused for good."""
    return FINAL.get(refusal, f"the cluster refuses node {{name}}: {str(refusal).replace('_', ' ')}").format(name=name)


class Asking(Protocol):
    """``invitation.Inviter``, as the joiner uses it."""

    def ask(self, address: str) -> Coroutine[Deferred[Any], Any, Invited]:
        """What the member at ``HOST:PORT`` answers; raises ``NotInvited``, ``Denied``."""


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """Whom a joiner asks, and what its directory and files say already."""

    addresses: Sequence[str]
    """Addresses of members, ``HOST:PORT``, for HTTP or peers."""
    own: Sequence[str] = ()
    """Addresses of the joining node, which are not asked."""
    secret: Callable[[], bytes | None] = lambda: None
    """From a file or an earlier try; None: the invitation's, or none needed with certificates."""
    belongs_to: str | None = None
    """Id of the cluster that an earlier try made durable; no other may take its place."""


@dataclass(frozen=True, slots=True)
class JoinSteps:
    """The three steps of a join that leave the joiner: ask for the cluster, dial, keep."""

    asking: Asking
    dial: Callable[[str], Coroutine[Deferred[Any], Any, DialledPeer]]
    """``PeerPool.dial``."""
    keep: Callable[[Invited], Awaitable[None]]
    """Makes the node's membership durable; called before it registers."""


class Joiner:
    """Makes a node a member of its cluster.

    :param local: gets cluster and secret before a member is dialled, and loses them if that fails.
    :param registration: of this start."""

    def __init__(
        self,
        clock: Clock,
        settings: JoinSettings,
        steps: JoinSteps,
        local: LocalIdentity,
        registration: Registration,
        *,
        dice: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._steps = steps
        mine = {_spelled(address) for address in settings.own}
        self._addresses = [address for address in settings.addresses if _spelled(address) not in mine]
        self._local = local
        self._registration = registration
        self._secret = settings.secret
        self._belongs_to = settings.belongs_to
        self._dice = dice if dice is not None else random.Random()  # noqa: S311 (jitter)
        self._kept: Invited | None = None
        self._is_name_taken = self._is_taken_said = False
        self._taken_until_ms = 0
        """When a member that names no members is asked again whether the name is free."""
        self._reasons: dict[str, str] = {}
        self._said_ms: int | None = None
        self._work: Deferred[Welcomed] | None = None
        self._stopped = False

    async def join(self) -> Welcomed | None:
        """The welcome, None if stopped; call once; raises ``JoinRefused``, ``StoreBroken``."""
        self._work = Deferred.fromCoroutine(self._rounds())
        if self._stopped:
            self._work.cancel()
        try:
            return await self._work
        except Exception:
            if not self._stopped:
                raise
            return None  # it was cancelled, which has several names

    def stop(self) -> None:
        """Give up now: ``join`` returns None, and leaves nothing open."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()

    # --- rounds ---
    async def _rounds(self) -> Welcomed:
        failures = 0
        while True:
            self._reasons = {} if self._addresses else {"--join": "names only this node itself"}
            denied: JoinRefused | None = None
            for address in self._addresses:
                try:
                    invited = await self._steps.asking.ask(address)
                    return await self._accept(address, invited)
                except NotInvited as why:
                    self._reasons[address] = str(why)
                except Denied as why:  # here; another of them may be on this machine
                    denied = denied or why
                if self._stopped:
                    raise CancelledError
            if denied is not None:
                raise denied
            # The next round asks another one first: a member that is cut off may be out of date.
            self._addresses = self._addresses[1:] + self._addresses[:1]
            self._say()
            most_s = min(AGAIN_S_MAX, AGAIN_FIRST_S * 2 ** min(failures, 10))
            failures += 1
            await self._pause(most_s * self._dice.uniform(0.5, 1.0))

    async def _accept(self, address: str, invited: Invited) -> Welcomed:
        """:raises NotInvited, JoinRefused:"""
        self._check_cluster(invited.cluster_id)
        if self._is_name_taken and not invited.names and self._clock.now_ms() < self._taken_until_ms:
            raise NotInvited(self._taken())  # it does not say who its members are
        if self._is_name_taken and self._registration.name in invited.names:
            raise NotInvited(self._taken())  # as it was: no need for one more entry in the cluster's log
        before = self._local.cluster, self._local.secret
        cluster_id = invited.cluster_id or self._belongs_to
        if cluster_id:
            self._local.join(cluster_id, self._secret() or invited.secret)
        try:
            welcome = await self._register(invited)
        except BaseException:
            if self._kept is None:
                self._local.cluster, self._local.secret = before[0], self._secret() or before[1]
            raise
        _log.info(
            "node {node} is a member of cluster {cluster}, through {address}",
            node=self._registration.name, cluster=self._belongs_to, address=address, event="joined",
        )  # fmt: skip
        return welcome

    def _check_cluster(self, cluster_id: str) -> None:
        """:raises NotInvited: this directory belongs to another cluster."""
        if cluster_id and self._belongs_to not in (None, cluster_id):
            raise NotInvited(f"is in cluster {cluster_id}, and this directory belongs to {self._belongs_to}")

    async def _register(self, invited: Invited) -> Welcomed:
        """Register with the first that accepts; raises ``NotInvited`` if none, ``JoinRefused``."""
        reason = "names no member that could be dialled"
        peers = [peer for peer in invited.peers if peer != self._registration.peer][:PEERS_ASKED_MAX]
        asked = set[str]()
        while peers:
            peer = peers.pop(0)
            if peer in asked:
                continue
            asked.add(peer)
            connection = await self._dialled(peer)
            if isinstance(connection, str):
                reason = connection
                continue
            try:
                if connection.is_newborn:
                    raise NotInvited("founds its cluster and is not ready yet")
                if not invited.cluster_id:
                    self._check_cluster(connection.cluster)
                    self._local.cluster = connection.cluster
                    invited = msgspec.structs.replace(invited, cluster_id=connection.cluster)
                await self._keep_once(invited)
                self._is_name_taken = False  # it may have gone; and an answer that gets lost must not leave this behind
                body = encode_command(RegisterNode(invited.cluster_id, self._registration))
                answer = await connection.call(wire.Register, REGISTER_S, body=body)
                welcome = WELCOMES.decode(answer["body"])
            except TaskQueueError as why:  # no leader, no answer, no sense: said to another, the same does no harm
                reason = f"the member at {peer}: {why.detail}"
                continue
            finally:
                connection.close()
            if welcome.outcome is None:
                reason = f"the member at {peer}: does not lead, and names no leader that could be dialled"
                if welcome.leader_address is not None and len(asked) <= PEERS_ASKED_MAX:
                    peers.insert(0, welcome.leader_address)
                continue
            for refused in welcome.outcome.refused:
                if refused.partition is None:
                    raise self._refused(refused.code)
            return welcome
        raise NotInvited(reason)

    async def _dialled(self, peer: str) -> DialledPeer | str:
        """An authenticated connection, or why there is none; raises ``JoinRefused``."""
        try:
            return await self._steps.dial(peer)
        except WrongSecret:
            raise JoinRefused(
                f"the cluster secret differs: the member at {peer} and this node were given different ones (--secret-file)"
            ) from None
        except Removed:
            raise self._refused_for_good(Refusal.REMOVED) from None
        except StaleSession:
            raise self._refused_for_good(Refusal.STORE_CLONED) from None
        except Exception as why:  # Twisted's, OpenSSL's, a refusal, no address: all say that there is nobody
            if self._stopped:
                raise
            return f"the member at {peer}: {_named(why)}"

    async def _keep_once(self, invited: Invited) -> None:
        """Make the membership durable, then register: no other cluster may get its messages."""
        if self._kept is None or (self._kept.cluster_id, self._kept.secret) != (invited.cluster_id, invited.secret):
            await self._steps.keep(invited)
            self._kept = invited
            self._belongs_to = invited.cluster_id

    def _refused(self, refusal: Refusal) -> Exception:
        if refusal is Refusal.NAME_TAKEN:
            self._is_name_taken = True
            self._taken_until_ms = self._clock.now_ms() + round(SAID_EVERY_S * 1000)
            if not self._is_taken_said:
                self._is_taken_said, self._said_ms = True, None  # the operator is waited for: say it at once
            return NotInvited(self._taken())
        if refusal in FINAL:
            return self._refused_for_good(refusal)
        return NotInvited(f"refuses for now: {str(refusal).replace('_', ' ')}")

    def _refused_for_good(self, refusal: Refusal) -> JoinRefused:
        return JoinRefused(refusal_line(refusal, self._registration.name), is_copy=refusal is Refusal.STORE_CLONED)

    def _taken(self) -> str:
        name = self._registration.name
        return f"a member named {name} exists; POST /cluster/remove?node={name} lets this node in"

    # --- waiting and saying ---
    async def _pause(self, seconds: float) -> None:
        over: Deferred[None] = Deferred()
        timer = self._clock.call_later(seconds, over.callback, None)
        try:
            await over
        finally:
            if timer.active():
                timer.cancel()

    def _say(self) -> None:
        now_ms = self._clock.now_ms()
        if self._said_ms is None or now_ms - self._said_ms >= SAID_EVERY_S * 1000:
            self._said_ms = now_ms
            why = "; ".join(f"{address}: {reason}" for address, reason in self._reasons.items())
            _log.info("not a member yet, still trying ({why})", why=why, event="join_waits")


def _named(why: Exception) -> str:
    if isinstance(why, PortRefused):
        return "connection refused"
    return f"{type(why).__name__}: {' '.join(str(why).split())}"


def _spelled(address: str) -> str:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return f"{'127.0.0.1' if host in ('localhost', '') else host.lower()}:{port}"
