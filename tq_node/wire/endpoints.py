"""From the address that a node advertises to a Twisted endpoint."""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint


def client_endpoint(reactor: Any, address: str, timeout_s: float) -> IStreamClientEndpoint:
    """:param address: ``HOST:PORT``, ``[IPv6]:PORT`` or an endpoint string that begins with
    ``unix:``.

    An IP address is dialled as it is: name lookups take turns in a small pool of threads, where one
    hanging server holds up all.

    :raises ValueError: it is none of these."""
    if address.startswith("unix:"):
        endpoint: IStreamClientEndpoint = clientFromString(reactor, f"{address}:timeout={timeout_s:g}")
        return endpoint
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{address!r} is not an address of a peer")
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, int(port), timeout_s)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, int(port), timeout_s)
    return HostnameEndpoint(reactor, host, int(port), timeout_s)
