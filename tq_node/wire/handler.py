"""What the wire calls in the node: ``PeerHandler`` for peers' calls, ``LaneWatcher`` for lanes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tq_node.raft.messages import AnyMessage
from tq_node.types import NodeId
from tq_node.wire.codec import ForwardedCall, ForwardedResult
from tq_node.wire.commands import Lane
from tq_node.wire.handshake import PeerIdentity

T = TypeVar("T")
Answer: TypeAlias = "T | Deferred[T] | Coroutine[Deferred[Any], Any, T]"


class Greeting(msgspec.Struct, frozen=True):
    """The node that an unproven dialler looks for. ``cluster``, ``name``: empty if unknown."""

    cluster: str
    name: str
    address: str
    dialler: str
    """The name it gives itself."""
    source: str
    """Where it dials from, for people."""
    is_certified: bool = False
    """It has shown a certificate of the cluster's authority for that name."""
    is_own_users: Callable[[], bool | None] = lambda: None
    """Whether this node's user, or root, owns the dialler's end; None: the kernel does not say."""


class Welcome(msgspec.Struct, frozen=True):
    """``cluster`` None: not joined. ``newborn``: this node founded its cluster and isn't ready."""

    cluster: str | None
    name: str
    newborn: bool
    has_tasks: bool


class PeerHandler(Protocol):
    """Takes the calls of peers, in the reactor thread. Bodies are within the bounds; nothing else
    is checked. A ``TaskQueueError`` that is raised, at once or later, reaches the caller as it is;
    anything else as ``Internal``."""

    def greeted(self, greeting: Greeting) -> Welcome:
        """An unauthenticated dialler looks for a node here (birth guard). Must be cheap."""

    def admit(self, peer: PeerIdentity) -> None:
        """The peer knows the secret; raises ``Removed`` or another refusal, which ends it."""

    def let_in(self, peer: PeerIdentity) -> None:
        """The peer was admitted, and its calls follow from the next turn on. Must be cheap."""

    def raft(self, peer: PeerIdentity, messages: list[AnyMessage]) -> None:
        """Messages of Raft, in the order sent, checked to be from ``peer`` and to this node."""

    def data(self, peer: PeerIdentity, body: bytes) -> None:
        """A batch of partition streams, in order, not answered; the sender bounds the flights."""

    def confirm(self, peer: PeerIdentity, body: bytes) -> None:
        """A lease ping of the partitions' layer, or its answer, in the order sent."""

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Answer[list[ForwardedResult]]:
        """A result for each call, in order. After ``within_ms`` callers get ``OutcomeUnknown``."""

    def register(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def heartbeat(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def evidence(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def propose(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def broken(self, what: str, failure: Failure) -> None:
        """A method above raised an undeclared exception, logged; the composition applies R20."""


def then(answer: Answer[T], convert: Callable[[T], Any]) -> Any:
    """Apply ``convert`` to the handler's answer, now or when its Deferred fires."""
    waiting = Deferred.fromCoroutine(answer) if inspect.iscoroutine(answer) else answer
    return waiting.addCallback(convert) if isinstance(waiting, Deferred) else convert(cast("T", waiting))


class LaneWatcher(Protocol):
    """Events of a pool's lanes. Times are the reactor's, monotonic, in ms (R19)."""

    def lane_up(self, peer: PeerIdentity, at_ms: int) -> None:
        """The lane is authenticated and open for calls."""

    def lane_lost(self, peer: PeerIdentity, at_ms: int, broke: bool, why: str) -> None:
        """The lane was lost; ``broke``: by peer or network; else by us, no evidence (R5a)."""

    def dial_failed(self, node_id: NodeId, lane: Lane, at_ms: int, why: Exception) -> None:
        """No connection, or a handshake that was refused. It is dialled again within
        ``bounds.REDIAL_S_MAX``. ``why``: Twisted's ``ConnectionRefusedError`` where the port
        refused; a ``WireRefusal`` where one of the sides did."""

    def lane_writable(self, node_id: NodeId, lane: Lane) -> None:
        """Something was refused or dropped for want of room, and there is room again."""
