"""What a joiner asks a member over HTTP: the cluster, where to register, on loopback its secret.

It asks ``GET /cluster`` and ``POST /cluster/join``, and trusts neither answer: that the member
belongs to the cluster and knows its secret is proven when its peer address is dialled."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, _HTTP11ClientFactory
from twisted.web.http import PotentialDataLoss

from tq_node.wire import bounds

T = TypeVar("T")

REQUEST_S_MAX = 2.0
"""Bound of each request, from dialling to the last byte of its answer."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024
SECRET_HEX_CHARS_MAX = 4_096
DETAIL_CHARS_MAX = 300
"""Bound of a member's sentence that the operator reads."""

_Id = Annotated[str, Meta(max_length=bounds.ID_CHARS_MAX, pattern=r"^[\x21-\x7e]*$")]
_Address = Annotated[str, Meta(max_length=bounds.ADDRESS_CHARS_MAX, pattern=r"^[\x21-\x7e]*$")]


class NotInvited(Exception):
    """This member doesn't invite now; another, or a later try, may. ``str()`` says why in short."""


class JoinRefused(Exception):
    """The cluster refuses the node for good: the process must end. ``str()`` is one line for the
    operator. ``is_copy``: the data directory is a copy, or an older state, of another."""

    def __init__(self, line: str, *, is_copy: bool = False) -> None:
        super().__init__(line)
        self.is_copy = is_copy


class Denied(JoinRefused):
    """The member does not hand over its secret; a member on this node's own machine may."""


class Invited(msgspec.Struct, frozen=True):
    """A member's answers. ``secret`` None: not asked. ``peers`` to register at, likeliest first."""

    cluster_id: str
    secret: bytes | None
    peers: tuple[str, ...]
    names: frozenset[str]

    def __repr__(self) -> str:
        """Without the secret: this ends up in logs and tracebacks."""
        return f"Invited({self.cluster_id!r}, peers={self.peers})"


class _Services(msgspec.Struct):
    peer: _Address = ""


class _Node(msgspec.Struct):
    name: _Id
    status: str = ""
    services: _Services = msgspec.field(default_factory=_Services)


class _Cluster(msgspec.Struct):
    id: _Id
    nodes: list[_Node] = []
    leader: str | None = None


class _ClusterAnswer(msgspec.Struct):
    cluster: _Cluster


class _JoinAnswer(msgspec.Struct):
    cluster_id: _Id
    secret: Annotated[str, Meta(max_length=SECRET_HEX_CHARS_MAX)]
    peer: _Address = ""


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


class _QuietFactory(_HTTP11ClientFactory):
    noisy = False


class _QuietPool(HTTPConnectionPool):
    """A pool whose connections are not logged: a joiner may ask for hours."""

    _factory = _QuietFactory


class Inviter:
    """Asks members for their cluster; with ``needs_secret`` for its secret too."""

    def __init__(self, reactor: Any, *, needs_secret: bool) -> None:
        from treq.client import HTTPClient  # here: only a node that joins pays for loading it

        self._reactor = reactor
        self._needs_secret = needs_secret
        pool = _QuietPool(reactor, persistent=False)
        self._client = HTTPClient(Agent(reactor, connectTimeout=REQUEST_S_MAX, pool=pool))

    async def ask(self, address: str) -> Invited:
        """Ask the member at the HTTP address ``HOST:PORT``. May be cancelled; nothing is left open.

        :raises NotInvited: no answer, an unusable one, or no member.
        :raises Denied: no secret for this node."""
        status, body = await self._request("GET", address, "/cluster")
        if status != 200:
            raise NotInvited(_said(status, body))
        cluster = _decoded(body, _ClusterAnswer).cluster
        if not (cluster.id and cluster.nodes):
            raise NotInvited("is not in a cluster itself yet")
        nodes = sorted(cluster.nodes, key=lambda node: (node.name != cluster.leader, node.status != "active"))
        peers = [node.services.peer for node in nodes if node.services.peer]
        secret = None
        if self._needs_secret:
            handed = await self._secret_from(address)
            if handed.cluster_id != cluster.id:
                raise NotInvited("changed its cluster while it was asked")
            secret = _secret(handed.secret)
            peers.insert(0, handed.peer)
        known = tuple(dict.fromkeys(peer for peer in peers if peer))
        return Invited(cluster.id, secret, known, frozenset(node.name for node in nodes))

    async def _secret_from(self, address: str) -> _JoinAnswer:
        status, body = await self._request("POST", address, "/cluster/join")
        if status == 403 and _problem(body).code == "denied":
            raise Denied(f"--join {address}: {_said(status, body)}")
        if status != 200:
            raise NotInvited(_said(status, body))
        return _decoded(body, _JoinAnswer)

    async def _request(self, method: str, address: str, path: str) -> tuple[int, bytes]:
        asking = Deferred.fromCoroutine(self._exchange(method, f"http://{address}{path}"))
        overdue = False

        def give_up() -> None:
            nonlocal overdue
            overdue = True
            asking.cancel()

        timer = self._reactor.callLater(REQUEST_S_MAX, give_up)
        try:
            return await asking
        except NotInvited:
            raise
        except Exception as why:
            raise NotInvited(f"no answer within {REQUEST_S_MAX:g} s" if overdue else _reason(why)) from None
        finally:
            if timer.active():
                timer.cancel()

    async def _exchange(self, method: str, url: str) -> tuple[int, bytes]:
        response = await self._client.request(method, url, allow_redirects=False)
        body = _Body()
        response.deliverBody(body)
        return response.code, await body.whole


class _Body(Protocol):
    """Collects an answer up to its bound."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= ANSWER_BYTES_MAX:
            self._parts.append(data)
        elif not self.whole.called:
            self._parts.clear()
            self.whole.errback(NotInvited(f"its answer is longer than {ANSWER_BYTES_MAX} bytes"))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            getattr(transport, "abortConnection", transport.loseConnection)()


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise NotInvited(f"its answer can't be read: {_one_line(str(why))}") from None


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Problem()


def _secret(text: str) -> bytes:
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < bounds.SECRET_BYTES_MIN:
        raise NotInvited("what it hands over is no secret")
    return secret


def _said(status: int, body: bytes) -> str:
    problem = _problem(body)
    words = _one_line(problem.detail or problem.code)
    return words or f"it answers with status {status}"


def _reason(why: Exception) -> str:
    if isinstance(why, PortRefused):
        return "connection refused"
    if isinstance(why, ConnectError):
        return _one_line(str(why)) or type(why).__name__
    reasons = getattr(why, "reasons", None)  # of a request that failed under way
    cause = reasons[0].value if reasons else why
    return _one_line(f"{type(cause).__name__}: {cause}")


def _one_line(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:DETAIL_CHARS_MAX]
