"""Where a node listens and others reach it: ``--http``, ``--peer``, ``--join``, ``--advertise``.

Functions raise ValueError with the end of a sentence that the value begins: "is not a port"."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Any, cast

import msgspec
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString

ENDPOINT_KINDS = ("tcp", "tcp6", "ssl", "unix", "systemd")
LOOPBACK = "127.0.0.1"
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[^:]*)")
_INTERFACE_PLACE = {"tcp": 1, "tcp6": 2, "ssl": 4}
"""Position of the interface in an endpoint of each kind, if given without a name."""
_EVERYWHERE = {"tcp": "0.0.0.0", "tcp6": "::", "ssl": "0.0.0.0"}  # noqa: S104 (what Twisted does; refused elsewhere)
_SOCKET_PATH_BYTES_MAX = 107
_FORMS = "is none of PORT, :PORT, HOST:PORT, [IPv6]:PORT or a Twisted endpoint string"


class Address(msgspec.Struct, frozen=True):
    """A host and a port as others dial it. ``port`` None: unknowable, of an endpoint without.
    ``is_tls``: by HTTPS, as ``https://`` before it says."""

    host: str
    port: int | None
    is_tls: bool = False

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = host if self.port is None else f"{host}:{self.port}"
        return f"https://{place}" if self.is_tls else place


class Listen(msgspec.Struct, frozen=True):
    """Where a server listens.

    ``endpoint`` goes to ``serverFromString``. ``host`` and ``port`` are None where it has none
    (``unix:``), and what an inherited socket is bound to (``systemd:``). ``host`` is never empty:
    an endpoint without ``interface=`` binds every address and says ``0.0.0.0``."""

    endpoint: str
    host: str | None
    port: int | None

    @property
    def is_wildcard(self) -> bool:
        return self.host is not None and _is_unspecified(self.host)

    @property
    def is_inherited(self) -> bool:
        """Whether a service manager has bound it already."""
        return self.endpoint.startswith("systemd:")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect: loopback, or a socket in the file system."""
        if self.host is None:
            return self.endpoint.startswith("unix:")
        return _is_loopback(self.host)

    def collides_with(self, other: Listen) -> bool:
        """Whether the two can't be bound at once."""
        if self.port is None or self.port != other.port:
            return False
        hosts = {LOOPBACK if listen.host == "localhost" else listen.host for listen in (self, other)}
        return len(hosts) == 1 or self.is_wildcard or other.is_wildcard

    def moved(self, ports: int) -> Listen:
        """This host with the port moved on by ``ports``; raises ``ValueError``: no such port,
        or none to start from."""
        if self.host is None or self.port is None:
            raise ValueError("has no port to count from")
        return listen_on(self.host, _port(str(self.port + ports)))


def listen_on(host: str, port: int) -> Listen:
    interface = LOOPBACK if host == "localhost" else host
    kind = "tcp6" if ":" in interface else "tcp"
    escaped = interface.replace(":", "\\:")
    return Listen(f"{kind}:{port}:interface={escaped}", host, port)


def parse_listen(text: str) -> Listen:
    """``PORT``, ``:PORT``, ``HOST:PORT``, ``[::1]:PORT`` or a Twisted endpoint string.
    No host means 127.0.0.1."""
    if text.partition(":")[0].lower() in ENDPOINT_KINDS:
        return _parse_endpoint(text)
    if text.isdigit():
        return listen_on(LOOPBACK, _port(text))
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError(_bracket_hint(text) or _FORMS)
    host = parse_host(match["v6"] if match["v6"] is not None else match["host"] or LOOPBACK)
    return listen_on(host, _port(match["port"]))


def parse_address(text: str) -> Address:
    """``HOST:PORT``, ``[IPv6]:PORT``, and ``PORT`` or ``:PORT`` for this machine."""
    if text.isdigit():
        return Address(LOOPBACK, _port(text))
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError(_bracket_hint(text) or "is none of HOST:PORT, [IPv6]:PORT, :PORT or PORT")
    host = parse_host(match["v6"] if match["v6"] is not None else match["host"] or LOOPBACK)
    return Address(host, _port(match["port"]))


def parse_member(text: str) -> Address:
    """As ``parse_address``, or ``https://HOST:PORT``; ``http://`` says what is so without."""
    scheme, marker, place = text.rpartition("://")
    if marker and scheme not in ("http", "https"):
        raise ValueError("is neither https:// nor http://")
    return msgspec.structs.replace(parse_address(place.removesuffix("/")), is_tls=scheme == "https")


def unix_address(listen: Listen, working_dir: Path) -> str | None:
    """``unix:PATH`` for other nodes' endpoint strings, absolute; None: it is no Unix socket."""
    kind, arguments, named = _split_endpoint(listen.endpoint)
    if kind != "unix":
        return None
    path = os.path.abspath(working_dir / named.get("address", arguments[0] if arguments else ""))
    escaped = path.replace("\\", "\\\\").replace(":", "\\:")
    return f"unix:{escaped}"


def parse_host(text: str) -> str:
    """A host name or an IP address, without brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        looks_like_an_address = re.fullmatch(r"[0-9.]+", bare) is not None
        if looks_like_an_address or len(bare) > 253 or _HOST_NAME.fullmatch(bare) is None:
            raise ValueError(f"{bare!r} is neither a host name nor an IP address") from None
        return bare.lower()


def parse_advertised(text: str) -> Address:
    """``HOST``; a port after it is the HTTP port as others see it, if not the one bound."""
    with_port = _HOST_AND_PORT.fullmatch(text) is not None
    address = parse_address(text) if with_port else Address(parse_host(text), None)
    if _is_unspecified(address.host):
        raise ValueError("is not an address that others can dial")
    return address


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65_535):
        raise ValueError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _bracket_hint(text: str) -> str | None:
    host, _, port = text.rpartition(":")
    if host.count(":") >= 2:
        return f"looks like IPv6, which needs brackets: [{host}]:{port}"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _parse_endpoint(text: str) -> Listen:
    """Have Twisted parse the string, without a reactor: nothing is opened before the start."""
    try:
        endpoint: Any = serverFromString(cast("Any", None), text)
        bound = _bound_to(endpoint.fileno) if isinstance(endpoint, AdoptedStreamServerEndpoint) else None
    except Exception as why:  # the parsers raise whatever int(), open() or a missing argument raise
        reason = " ".join(str(why).split()) or type(why).__name__
        raise ValueError(f"is not an endpoint that can be listened on: {reason}") from None
    kind, arguments, named = _split_endpoint(text)
    if (
        kind == "unix"
        and len(os.fsencode(named.get("address", arguments[0] if arguments else ""))) > _SOCKET_PATH_BYTES_MAX
    ):
        raise ValueError(f"is a path of more than {_SOCKET_PATH_BYTES_MAX} bytes, which no socket can have")
    if kind in ("unix", "systemd"):
        return Listen(text, *(bound or (None, None)))
    port = _port(named.get("port", arguments[0] if arguments else ""))
    place = _INTERFACE_PLACE[kind]
    interface = named.get("interface") or (arguments[place] if len(arguments) > place else "")
    return Listen(text, parse_host(interface) if interface else _EVERYWHERE[kind], port)


def _bound_to(descriptor: int) -> tuple[str, int] | None:
    """An inherited socket's address; None: in the file system; raises ``OSError``: no socket."""
    with socket.socket(fileno=os.dup(descriptor)) as inherited:
        name = inherited.getsockname()
    return (name[0], name[1]) if isinstance(name, tuple) else None


def _split_endpoint(text: str) -> tuple[str, list[str], dict[str, str]]:
    parts = [re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", text)]
    arguments = [part for part in parts[1:] if "=" not in part]
    named = dict(part.split("=", 1) for part in parts[1:] if "=" in part)
    return parts[0].lower(), arguments, named
