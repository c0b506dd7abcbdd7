"""What a joiner asks a member over HTTP: the cluster, where to register, on loopback its secret.

It asks ``GET /cluster`` and ``POST /cluster/join``, and trusts neither answer: that the member
belongs to the cluster and knows its secret is proven when its peer address is dialled. A member
that asks for a token tells a joiner that proves the secret where the peers are. An address where no
HTTP is spoken is dialled as a peer's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.error import ConnectionRefusedError as PortRefused
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError, ResponseNeverReceived
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    ResponseDone,
    _HTTP11ClientFactory,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS

from tq_node.facade import CHALLENGE_BYTES, INVITATION_SCHEME, JOIN_SCHEME
from tq_node.runtime.join_proof import proof
from tq_node.wire import bounds

T = TypeVar("T")

_challenge_in = re.compile(rf'{JOIN_SCHEME} challenge="([0-9a-f]{{{2 * CHALLENGE_BYTES}}})"').fullmatch
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


class SpeaksNoHttp(NotInvited):
    """Whoever listens there does not answer in HTTP."""


class Invited(msgspec.Struct, frozen=True):
    """A member's answers. ``cluster_id`` empty: the handshake will say it. ``secret`` None: not
    asked. ``peers`` to register at, likeliest first. ``names``: of members, if they were told."""

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
    """``cluster_id`` and ``secret`` are empty where only the ``peers`` are told."""

    cluster_id: _Id = ""
    secret: Annotated[str, Meta(max_length=SECRET_HEX_CHARS_MAX)] = ""
    peer: _Address = ""
    peers: list[_Address] = []


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


class _QuietFactory(_HTTP11ClientFactory):
    noisy = False


class _QuietPool(HTTPConnectionPool):
    """A pool whose connections are not logged: a joiner may ask for hours."""

    _factory = _QuietFactory


class Inviter:
    """Asks members for their cluster; with ``needs_secret`` for its secret too.

    :param secret: the node's own, now; None: it has none, or none yet.
    :param invitation: shown while the node has no secret; its answer is kept, for it counts once.
    :param may_dial: the node has what a handshake needs, so an address may be a peer's.
    :param https: whom the node believes at ``https://`` addresses; None: the system's authorities
        decide."""

    def __init__(
        self,
        reactor: Any,
        *,
        needs_secret: bool,
        secret: Callable[[], bytes | None] = lambda: None,
        invitation: str | None = None,
        may_dial: bool = False,
        https: IPolicyForHTTPS | None = None,
    ) -> None:
        from treq.client import HTTPClient  # here: only a node that joins pays for loading it

        self._reactor = reactor
        self._needs_secret = needs_secret
        self._secret = secret
        self._invitation = invitation
        self._invited: Invited | None = None
        """What the invitation was answered with."""
        self._may_dial = may_dial
        self._peers: set[str] = set()
        """Addresses where no HTTP was spoken the last time."""
        pool = _QuietPool(reactor, persistent=False)
        self._client = HTTPClient(
            Agent(reactor, https or BrowserLikePolicyForHTTPS(), connectTimeout=REQUEST_S_MAX, pool=pool)
        )

    async def ask(self, address: str) -> Invited:
        """Ask the member at ``HOST:PORT``, an HTTP address or a peer's, or ``https://HOST:PORT``.
        May be cancelled; nothing is left open.

        :raises NotInvited: no answer, an unusable one, or no member.
        :raises Denied: no secret for this node."""
        if self._invitation is not None and self._secret() is None:
            if self._invited is None:
                self._invited = await self._use(self._invitation, address)
            return self._invited
        if address in self._peers:
            self._peers.remove(address)  # if that fails, HTTP has the next turn: it may have been away
            return _by_handshake([address])
        try:
            status, body, _ = await self._request("GET", address, "/cluster")
        except SpeaksNoHttp:
            if not self._may_dial:
                raise NotInvited(
                    "speaks no HTTP; a peer port does for a node with --secret-file or certificates only"
                ) from None
            self._peers.add(address)
            return _by_handshake([address])
        if status == 401:
            return await self._ask_without_token(address)
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

    async def _use(self, invitation: str, address: str) -> Invited:
        """Show the invitation; it is used up by then, whatever becomes of the answer."""
        shown = f"{INVITATION_SCHEME} {invitation}"
        status, body, _ = await self._request("POST", address, "/cluster/join", authorization=shown)
        if status in (401, 403):
            raise Denied(f"--invitation: {address}: {_said(status, body)}")
        if status != 200:
            raise NotInvited(_said(status, body))
        handed = _decoded(body, _JoinAnswer)
        if not handed.cluster_id:
            raise NotInvited("its answer can't be read: no cluster in it")
        secret = _secret(handed.secret) if handed.secret else None
        peers = tuple(dict.fromkeys(peer for peer in (handed.peer, *handed.peers) if peer))
        return Invited(handed.cluster_id, secret, peers, frozenset())

    async def _ask_without_token(self, address: str) -> Invited:
        """Ask a member that asks for a token."""
        if self._needs_secret:
            handed = await self._secret_from(address)
            return Invited(handed.cluster_id, _secret(handed.secret), (handed.peer,), frozenset())
        secret = self._secret()
        if secret is None:
            raise NotInvited("asks for a token: name its peer port, where certificates are enough")
        status, body, challenge = await self._request("POST", address, "/cluster/join")
        if status == 403 and challenge is not None:
            shown = f'{JOIN_SCHEME} challenge="{challenge.hex()}", proof="{proof(secret, challenge).hex()}"'
            status, body, _ = await self._request("POST", address, "/cluster/join", authorization=shown)
        if status != 200:
            raise NotInvited(_said(status, body))
        told = _decoded(body, _JoinAnswer)
        return _by_handshake([peer for peer in (told.peer, *told.peers) if peer])

    async def _secret_from(self, address: str) -> _JoinAnswer:
        status, body, _ = await self._request("POST", address, "/cluster/join")
        if status == 403 and _problem(body).code == "denied":
            raise Denied(f"--join {address}: {_said(status, body)}")
        if status != 200:
            raise NotInvited(_said(status, body))
        handed = _decoded(body, _JoinAnswer)
        if not handed.cluster_id:
            raise NotInvited("its answer can't be read: no cluster in it")
        return handed

    async def _request(
        self, method: str, address: str, path: str, *, authorization: str | None = None
    ) -> tuple[int, bytes, bytes | None]:
        """Status and body of the answer, and the challenge in it."""
        is_https = address.startswith("https://")
        url = f"{address}{path}" if is_https else f"http://{address}{path}"
        asking = Deferred.fromCoroutine(self._exchange(method, url, authorization))
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
            if not (overdue or is_https) and isinstance(why, ResponseNeverReceived | ParseError):
                raise SpeaksNoHttp(_reason(why)) from None
            raise NotInvited(f"no answer within {REQUEST_S_MAX:g} s" if overdue else _reason(why)) from None
        finally:
            if timer.active():
                timer.cancel()

    async def _exchange(self, method: str, url: str, authorization: str | None) -> tuple[int, bytes, bytes | None]:
        headers = None if authorization is None else Headers({"Authorization": [authorization]})
        response = await self._client.request(method, url, allow_redirects=False, headers=headers)
        body = _Body()
        response.deliverBody(body)
        said = response.headers.getRawHeaders("www-authenticate", [])
        return response.code, await body.whole, _challenge(said)


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


def _by_handshake(peers: Sequence[str]) -> Invited:
    """Where to dial; the handshake says the rest."""
    return Invited("", None, tuple(dict.fromkeys(peers)), frozenset())


def _challenge(said: Sequence[str]) -> bytes | None:
    """The challenge in the ``WWW-Authenticate`` headers of an answer."""
    matches = [match for line in said if (match := _challenge_in(line)) is not None]
    return bytes.fromhex(matches[0][1]) if matches else None


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
    if type(cause).__module__ == "OpenSSL.SSL" and cause.args and isinstance(cause.args[0], list):
        return _one_line("TLS: " + "; ".join(str(error[-1]) for error in cause.args[0]))
    return _one_line(f"{type(cause).__name__}: {cause}")


def _one_line(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:DETAIL_CHARS_MAX]
