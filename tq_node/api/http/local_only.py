"""Hands the cluster's secret only to a program on this machine, and to no page in its browser."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from twisted.internet.address import IPv4Address as TcpAddress
from twisted.internet.address import IPv6Address as Tcp6Address
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress

from tq_node.api.http.request import ApiRequest
from tq_node.errors import Denied
from tq_node.socket_owner import is_own_users

_PASSED_ON = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")
_loopback_host = re.compile(rb"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE).fullmatch


def require_loopback(request: ApiRequest) -> None:
    """Refuse a request unless it was sent from this machine, to a name that can only mean this
    machine.

    The peer's address alone does not prove that:

    - A web page whose name resolves to 127.0.0.1 (DNS rebinding) sends from the reader's browser;
      so the host must be a loopback name.
    - A proxy on this machine forwards requests from anywhere; most add a header that says so.
    - Another user of this machine may send, or forward (``ssh -L``); the kernel must say that the
      connection is of the node's user or root: of a Unix socket too, which others may reach.

    :raises Denied: one of these does not hold."""
    if not _is_loopback(request.getClientAddress()):
        raise Denied("the cluster's secret is handed over on loopback only; give both nodes the same --secret-file")
    if any(request.requestHeaders.hasHeader(name) for name in _PASSED_ON):
        raise Denied("the cluster's secret is not handed over through a proxy")
    if request.authority is None or _loopback_host(request.authority) is None:
        raise Denied("the cluster's secret is handed over to who asks localhost, 127.0.0.1 or [::1] by that name only")
    if not is_own_users(request.transport):
        raise Denied(
            "the cluster's secret is handed over to the user that runs this node, and to root; run both nodes as one user, "
            "or give both the same --secret-file"
        )


def _is_loopback(address: IAddress) -> bool:
    if isinstance(address, UNIXAddress):
        return True
    if not isinstance(address, TcpAddress | Tcp6Address):
        return False
    try:
        ip = ip_address(address.host)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        # A socket that takes both families shows its IPv4 peers like this.
        ip = ip.ipv4_mapped
    return ip.is_loopback
