"""What the wire tells the rest of the node, and whom: one Protocol for what peers say, one for what
becomes of the lanes.
"""

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
    """What a dialler says before anything is proven: whom it is looking for. ``cluster``, ``name``:
    empty if it does not know.
    """

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
    """Whether its end of the connection is this node's own user's, or root's; None where the kernel
    does not say.
    """


class Welcome(msgspec.Struct, frozen=True):
    """``cluster`` None: this node has not joined. ``newborn``: it founded its cluster and is not
    ready yet.
    """

    cluster: str | None
    name: str
    newborn: bool
    has_tasks: bool


class PeerHandler(Protocol):
    """Where a listener hands what peers say. Called in the reactor thread; bodies are within the
    bounds, nothing else is checked.

    A ``TaskQueueError`` that is raised, at once or later, reaches the caller as it is; anything
    else as ``Internal``.
    """

    def greeted(self, greeting: Greeting) -> Welcome:
        """Somebody, anybody, is looking for a node here (birth guard). Must be cheap."""

    def admit(self, peer: PeerIdentity) -> None:
        """The peer knows the secret. :raises Removed: or another refusal; the connection closes
        with it.
        """

    def let_in(self, peer: PeerIdentity) -> None:
        """It was not refused, and speaks from the next turn on. Must be cheap."""

    def raft(self, peer: PeerIdentity, messages: list[AnyMessage]) -> None:
        """In the order sent. Sender and receiver in them are checked: they are ``peer`` and this
        node.
        """

    def data(self, peer: PeerIdentity, body: bytes) -> None:
        """In the order sent. Whoever sends bounds what is on its way: there is no answer."""

    def confirm(self, peer: PeerIdentity, body: bytes) -> None:
        """A ping of the partitions' layer, or its answer. In the order sent; there is no other
        answer.
        """

    def forward(self, peer: PeerIdentity, calls: list[ForwardedCall], within_ms: int) -> Answer[list[ForwardedResult]]:
        """One result for each call, in order. After ``within_ms`` the caller is told
        ``OutcomeUnknown``, whatever comes.
        """

    def register(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def heartbeat(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def evidence(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def propose(self, peer: PeerIdentity, body: bytes) -> Answer[bytes]: ...

    def broken(self, what: str, failure: Failure) -> None:
        """One of the above raised what it does not declare (R20 is the composition's to apply). It
        is logged already.
        """


def then(answer: Answer[T], convert: Callable[[T], Any]) -> Any:
    """``convert`` what the handler answered, now or once it is there."""
    waiting = Deferred.fromCoroutine(answer) if inspect.iscoroutine(answer) else answer
    return waiting.addCallback(convert) if isinstance(waiting, Deferred) else convert(cast("T", waiting))


class LaneWatcher(Protocol):
    """Where a pool tells what becomes of its connections. Times are the reactor's, monotonic, in ms
    (R19).
    """

    def lane_up(self, peer: PeerIdentity, at_ms: int) -> None:
        """Authenticated, and open for calls."""

    def lane_lost(self, peer: PeerIdentity, at_ms: int, broke: bool, why: str) -> None:
        """``broke``: the peer or the network ended it. Otherwise this side did, and it says nothing
        about the peer (R5a).
        """

    def dial_failed(self, node_id: NodeId, lane: Lane, at_ms: int, why: Exception) -> None:
        """No connection, or a handshake that was refused. It is dialled again within
        ``bounds.REDIAL_S_MAX``.

        ``why``: Twisted's ``ConnectionRefusedError`` where the port refused; a ``WireRefusal``
        where one of the sides did.
        """

    def lane_writable(self, node_id: NodeId, lane: Lane) -> None:
        """Something was refused or dropped for want of room, and there is room again."""
