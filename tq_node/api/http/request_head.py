"""Rules that the head of a request must keep (RFC 9112), judged before the body is read: the same
for both ways in.

``KnownHosts`` keeps pages of other sites out: one whose own name has been made to lead to this
machine (DNS rebinding) is the same origin to its reader's browser, so neither ``Origin`` nor any
other header shows it. Only ``Host`` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import msgspec
from twisted.web.http_headers import Headers

from tq_node.api.http.media import JSON_TYPE, NDJSON, refuse_encoded, refuse_media_type
from tq_node.api.problems import NoSuchRoute, WrongMethod
from tq_node.api.routes import Route
from tq_node.errors import CrossOrigin, Malformed, Misdirected, TaskQueueError

HEAD_BYTES_MAX = 16_384
"""Bound of request line and header lines together, on both ways in."""
LENGTH_DIGITS_MAX = 18
_VERDICTS_CACHED_MAX = 256
_authority = re.compile(
    rb"(\[[0-9A-Fa-f:.]{2,45}\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,255})(?::([0-9]{0,5}))?"
).fullmatch
_absolute = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)").fullmatch
_is_target = re.compile(rb"[!\"$-~]+").fullmatch
"""Printable ASCII but ``#``: a fragment is never sent (RFC 9112 section 3.2); quotes are."""
_SINGLE = frozenset(
    b"Host Content-Type Content-Encoding Idempotency-Key Last-Event-Id Origin Sec-Fetch-Site Authorization".split()
)
"""Headers that are refused if given twice: two readers may take different ones."""
_SAFE = (b"GET", b"HEAD")
PROBLEMS = b"/problems/"
"""Of the routes with a variable part, which is all of them: anybody may read them."""
_ANY_METHOD = ["GET", "HEAD", "POST"]


class Head(msgspec.Struct, frozen=True):
    """The head of one request, judged.

    :ivar target: path and query, also if the request has an absolute target.
    :ivar authority: the host that it is for, with its port, where it says so.
    :ivar refusal: why the request is refused, whatever its body is.
    :ivar fields: the last header of each name, which is in lower case."""

    target: bytes
    authority: bytes | None
    refusal: TaskQueueError | None
    fields: Mapping[bytes, bytes]


class _Asked(NamedTuple):
    """What a request is for: ``HOST[:PORT]``, None where it does not say, by TLS or not."""

    authority: bytes | None
    is_secure: bool


class KnownHosts:
    """The host names that requests may use; caches its verdicts.

    :param names: accepted besides any IP address; None: any name is."""

    def __init__(self, names: Iterable[str] | None) -> None:
        self._names = None if names is None else frozenset(_plain(name) for name in names)
        self._verdicts: dict[bytes, TaskQueueError | None] = {}

    def refusal(self, authority: bytes) -> TaskQueueError | None:
        """Why a request for this ``HOST[:PORT]`` is refused; None: it is a name of this node."""
        try:
            return self._verdicts[authority]
        except KeyError:
            pass
        verdict = self._judge(authority)
        if len(self._verdicts) >= _VERDICTS_CACHED_MAX:
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
    """Judges a request's head before its body is read; paths of none of ``routes`` are refused."""

    def __init__(self, hosts: KnownHosts, routes: Sequence[Route]) -> None:
        self.hosts = hosts
        self._methods: dict[bytes, set[bytes]] = {}
        self._takes_ndjson: dict[bytes, bool] = {}
        for route in routes:
            path = route.path.encode("ascii")
            method = route.method.encode("ascii")
            self._methods.setdefault(path, set()).update(_SAFE if method == b"GET" else (method,))
            if route.bodies:
                self._takes_ndjson[path] = NDJSON in route.bodies

    def judge(self, method: bytes, target: bytes, version: bytes, headers: Headers, is_secure: bool = False) -> Head:
        """Judge one head. ``headers``: as sent; folded and malformed lines were refused before.
        ``is_secure``: it came by TLS."""
        fields: dict[bytes, bytes] = {}
        twice = None
        for name, values in headers.getAllRawHeaders():
            fields[name.lower()] = values[-1]
            if len(values) > 1 and name in _SINGLE and twice is None:
                twice = name
        if twice is not None:
            return Head(target, None, Malformed(f"{twice.decode('ascii')}: given more than once"), fields)
        authority = fields.get(b"host")
        if authority is None:
            if version != b"HTTP/1.0":
                return Head(target, None, Malformed("Host: is required"), fields)
            refusal = None
        else:
            refusal = self.hosts.refusal(authority)
        if not _is_target(target):
            return Head(target, None, Malformed("the request's target holds what no address can"), fields)
        if not target.startswith(b"/") and target != b"*" and not isinstance(refusal, Malformed):
            try:
                target, authority = _origin_form(method, target, b"https" if is_secure else b"http")
            except TaskQueueError as why:
                return Head(target, None, why, fields)
            refusal = self.hosts.refusal(authority)
        if refusal is None:
            refusal = self._refusal(method, target, version, fields, _Asked(authority, is_secure))
        return Head(target, authority, refusal, fields)

    def _refusal(
        self, method: bytes, target: bytes, version: bytes, fields: Mapping[bytes, bytes], asked: _Asked
    ) -> TaskQueueError | None:
        if b"transfer-encoding" in fields and version == b"HTTP/1.0":
            return Malformed("Transfer-Encoding: not in HTTP/1.0")
        is_from_page = b"origin" in fields or b"sec-fetch-site" in fields
        if is_from_page and method not in _SAFE and not _is_from_here(asked, fields):
            return CrossOrigin("a POST that a page of another site has sent is refused")
        path = target.partition(b"?")[0]
        methods = self._methods.get(path)
        if methods is None:
            if path == b"*" and method == b"OPTIONS":
                return WrongMethod("OPTIONS is not served", _ANY_METHOD)
            if b"%" in path or not path.startswith(b"/") or path.startswith(b"//"):
                # Klein would answer in plain text where it can't decode a path, and takes // for /.
                # No route needs an escape.
                return Malformed("the path is not one that this server could have")
            return None if path.startswith(PROBLEMS) else NoSuchRoute(f"there is no {path[:200].decode('ascii')}")
        if method not in methods:
            allowed = sorted(name.decode("ascii") for name in methods)
            return WrongMethod(f"{path.decode('ascii')} takes {', '.join(allowed)}", allowed)
        if fields.get(b"content-type", JSON_TYPE) != JSON_TYPE or b"content-encoding" in fields:
            return self._media_refusal(path, fields)
        return None

    def _media_refusal(self, path: bytes, fields: Mapping[bytes, bytes]) -> TaskQueueError | None:
        ndjson = self._takes_ndjson.get(path)
        if ndjson is None:
            return None
        media_type = fields.get(b"content-type")
        try:
            if media_type is not None and media_type != JSON_TYPE:
                refuse_media_type(media_type, ndjson=ndjson)
            refuse_encoded(fields.get(b"content-encoding"))
        except TaskQueueError as why:
            return why
        return None


def _origin_form(method: bytes, target: bytes, spoken: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target that is a whole address, and its host, which counts instead of
    ``Host`` (RFC 9112, 3.2.2).

    :param spoken: scheme of the connection.
    :raises Malformed: it is none.
    :raises Misdirected: of another protocol; ``https:`` too, where nothing here has deciphered
        it."""
    match = _absolute(target)
    if match is None:
        raise Malformed("the request's target is neither a path nor an address")
    scheme, host, rest = match.groups()
    if scheme.lower() != spoken:
        raise Misdirected(f"this node answers for {spoken.decode('ascii')}: addresses only here")
    if not host:
        raise Malformed("the request's target names no host")
    if rest.startswith(b"/"):
        return rest, host
    return b"*" if method == b"OPTIONS" and not rest else b"/" + rest, host


def _is_from_here(asked: _Asked, fields: Mapping[bytes, bytes]) -> bool:
    """Whether no browser says that a page of another site sent this. A page may send a form, or a
    body without a type, to any address it likes, so also to a node on its reader's machine; every
    browser then says ``Origin``, and newer ones ``Sec-Fetch-Site``. Scripts never do.

    By TLS a page that came without is of another site: whoever is on the way could have made it.
    Without TLS here, a proxy in front may have ended it."""
    if fields.get(b"sec-fetch-site", b"none").lower() not in (b"same-origin", b"none"):
        return False
    origin = fields.get(b"origin")
    if origin is None:
        return True
    scheme, _, host = origin.lower().partition(b"://")
    is_same_host = asked.authority is not None and host == asked.authority.lower()
    return is_same_host and (scheme == b"https" or not asked.is_secure)
