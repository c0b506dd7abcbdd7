"""Rules that the head of a request must keep (RFC 9112), judged before the body is read: the same for both ways in.

``KnownHosts`` keeps pages of other sites out: one whose own name has been made to lead to this machine (DNS rebinding) is the
same origin to its reader's browser, so neither ``Origin`` nor any other header shows it. Only ``Host`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

import msgspec

from tq_node.api.failures import NoSuchRoute, WrongMethod
from tq_node.api.media import NDJSON, refuse_encoded, refuse_media_type
from tq_node.errors import CrossOrigin, Malformed, Misdirected, TaskQueueError

if TYPE_CHECKING:
    from twisted.web.http_headers import Headers

    from tq_node.api.routes import Route

HEAD_BYTES_MAX = 16_384
"""Request line and header lines; what is longer is refused on both ways in."""
LENGTH_DIGITS_MAX = 18
_VERDICTS_KEPT_MAX = 256
_authority = re.compile(
    rb"(\[[0-9A-Fa-f:.]{2,45}\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,255})(?::([0-9]{0,5}))?"
).fullmatch
_absolute = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)").fullmatch
_is_target = re.compile(rb"[!\"$-~]+").fullmatch
"""Printable ASCII but ``#``: a fragment is never sent (RFC 9112 section 3.2). Clients do send quotes as they are."""
_ONCE = (b"content-type", b"content-encoding", b"idempotency-key", b"last-event-id", b"origin", b"authorization")
"""Headers that may stand once: which of two counts would be anybody's guess."""
_SAFE = (b"GET", b"HEAD")
_PROBLEMS = b"/problems/"
_ANY_METHOD = ["GET", "HEAD", "POST"]


class Head(msgspec.Struct, frozen=True):
    """The head of one request, judged.

    :ivar target: path and query, also where the request said the whole address.
    :ivar authority: the host that it is for, with its port, where it says so.
    :ivar refusal: why the request is refused, whatever its body is.
    """

    target: bytes
    authority: bytes | None
    refusal: TaskQueueError | None


class KnownHosts:
    """The names under which this node may be asked.

    :param names: besides every IP address; None: any name will do.
    """

    def __init__(self, names: Iterable[str] | None) -> None:
        self._names = None if names is None else frozenset(_plain(name) for name in names)
        self._verdicts: dict[bytes, TaskQueueError | None] = {}

    def refusal(self, authority: bytes) -> TaskQueueError | None:
        """Why a request for this ``HOST[:PORT]`` is refused; None where it is this node."""
        try:
            return self._verdicts[authority]
        except KeyError:
            pass
        verdict = self._judge(authority)
        if len(self._verdicts) >= _VERDICTS_KEPT_MAX:
            self._verdicts.clear()
        self._verdicts[authority] = verdict
        return verdict

    def _judge(self, authority: bytes) -> TaskQueueError | None:
        match = _authority(authority)
        if match is None or int(match[2] or 0) > 65_535:
            return Malformed("Host: a name or an address is expected, with a port or without")
        host = _plain(match[1].decode("ascii"))
        if host.startswith("["):
            return None if _is_address(host[1:-1]) else Malformed("Host: what is in brackets is no IPv6 address")
        if self._names is None or host in self._names or _is_address(host):
            return None
        return Misdirected(f"this node is not known as {host[:100]}; --http-name says by which names it may be asked")


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class HeadRules:
    """See the module's docstring.

    :param routes: what there is; a path that is none of these is refused with the head.
    """

    def __init__(self, hosts: KnownHosts, routes: Sequence[Route]) -> None:
        self.hosts = hosts
        self._methods: dict[bytes, set[str]] = {}
        self._takes_lines: dict[bytes, bool] = {}
        for route in routes:
            path = route.path.encode("ascii")
            self._methods.setdefault(path, set()).update({"GET", "HEAD"} if route.method == "GET" else {route.method})
            if route.bodies:
                self._takes_lines[path] = NDJSON in route.bodies

    def judge(self, method: bytes, target: bytes, version: bytes, headers: Headers) -> Head:
        """:param headers: as they came, obs-fold and what is no header line already refused."""
        try:
            target, authority = _origin_form(method, target, self._authority_of(version, headers))
        except TaskQueueError as why:
            return Head(target, None, why)
        return Head(target, authority, self._refusal(method, target, version, authority, headers))

    def _authority_of(self, version: bytes, headers: Headers) -> bytes | None:
        """What ``Host`` says. :raises Malformed: nothing, or more than one thing (RFC 9112 section 3.2)."""
        hosts = headers.getRawHeaders(b"host")
        if hosts is None:
            if version != b"HTTP/1.0":
                raise Malformed("Host: is required")
            return None
        if len(hosts) != 1:
            raise Malformed("Host: given more than once")
        if isinstance(wrong := self.hosts.refusal(hosts[0]), Malformed):
            raise wrong
        return hosts[0]

    def _refusal(
        self, method: bytes, target: bytes, version: bytes, authority: bytes | None, headers: Headers
    ) -> TaskQueueError | None:
        has = headers.hasHeader
        if version == b"HTTP/1.0" and has(b"transfer-encoding"):
            return Malformed("Transfer-Encoding: not in HTTP/1.0")
        if authority is not None and (wrong := self.hosts.refusal(authority)) is not None:
            return wrong
        for name in _ONCE:
            if has(name) and len(headers.getRawHeaders(name, ())) > 1:
                return Malformed(f"{name.decode('ascii')}: given more than once")
        if method not in _SAFE and not _is_from_here(authority, headers):
            return CrossOrigin("a POST that a page of another site has sent is refused")
        path = target.partition(b"?")[0]
        if path == b"*" and method == b"OPTIONS":
            return WrongMethod("OPTIONS is not served", _ANY_METHOD)
        methods = self._methods.get(path)
        if methods is None:
            if b"%" in path or not path.startswith(b"/") or path.startswith(b"//"):
                # Klein would answer in plain text where it can't decode a path, and takes // for /. No route needs an escape.
                return Malformed("the path is not one that this server could have")
            return None if path.startswith(_PROBLEMS) else NoSuchRoute(f"there is no {path[:200].decode('ascii')}")
        if method.decode("ascii") not in methods:
            allowed = sorted(methods)
            return WrongMethod(f"{path.decode('ascii')} takes {', '.join(allowed)}", allowed)
        return self._media_refusal(path, headers) if path in self._takes_lines else None

    def _media_refusal(self, path: bytes, headers: Headers) -> TaskQueueError | None:
        try:
            for value in headers.getRawHeaders(b"content-type", ()):
                refuse_media_type(value, ndjson=self._takes_lines[path])
            for value in headers.getRawHeaders(b"content-encoding", ()):
                refuse_encoded(value)
        except TaskQueueError as why:
            return why
        return None


def _origin_form(method: bytes, target: bytes, authority: bytes | None) -> tuple[bytes, bytes | None]:
    """Path and query, and which node they are for: where the target is a whole address, its own host counts and not ``Host``
    (RFC 9112 section 3.2.2).

    :raises Malformed: no target of HTTP. :raises Misdirected: of another protocol, HTTPS too: nothing here has deciphered it.
    """
    if not _is_target(target):
        raise Malformed("the request's target holds what no address can")
    if target.startswith(b"/") or target == b"*":
        return target, authority
    match = _absolute(target)
    if match is None:
        raise Malformed("the request's target is neither a path nor an address")
    scheme, host, rest = match.groups()
    if scheme.lower() != b"http":
        raise Misdirected("this node answers for http: addresses only")
    if not host:
        raise Malformed("the request's target names no host")
    if rest.startswith(b"/"):
        return rest, host
    return b"*" if method == b"OPTIONS" and not rest else b"/" + rest, host


def _is_from_here(authority: bytes | None, headers: Headers) -> bool:
    """Whether no browser says that a page of another site sent this. A page may send a form, or a body without a type, to any
    address it likes, so also to a node on its reader's machine; every browser then says ``Origin``, and newer ones
    ``Sec-Fetch-Site``. Scripts never do.
    """
    for site in headers.getRawHeaders(b"sec-fetch-site", ()):
        if site.lower() not in (b"same-origin", b"none"):
            return False
    for origin in headers.getRawHeaders(b"origin", ()):
        if authority is None or origin.lower().partition(b"://")[2] != authority.lower():
            return False
    return True
