"""How many bytes went over TCP connections of this machine: asked of the kernel, over netlink (``sock_diag(7)``)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_DUMP = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP"""
_ERROR, _DONE = 2, 3
_WITH_TCP_INFO = 1 << 1
_INFO = 2
_ALL_STATES = 0xFFF
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBxI48x")
_PORTS = struct.Struct("!4xHH")
_MESSAGE_BYTES = 72
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVED = struct.Struct("=128xQ4xI")
"""``struct tcp_info`` of linux/tcp.h: ``tcpi_bytes_received`` and ``tcpi_segs_in``."""


def received(ports: Collection[int]) -> tuple[int, int]:
    """(bytes, segments) so far, over all connections from or to these ports that are open now, both directions together.

    On one machine both ends are seen, so what one end received is counted once. Heads of TCP and IP are not in the bytes.

    :raises OSError: the kernel does not tell.
    """
    size = segments = 0
    for local, remote, info in _connections():
        if (local in ports or remote in ports) and len(info) >= _RECEIVED.size:
            more, packets = _RECEIVED.unpack_from(info)
            size += more
            segments += packets
    return size, segments


def _connections() -> Iterator[tuple[int, int, bytes]]:
    """(local port, remote port, ``struct tcp_info``) of each over IPv4."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(10)
        question = _ASK.pack(socket.AF_INET, socket.IPPROTO_TCP, _WITH_TCP_INFO, _ALL_STATES)
        asking.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _DUMP, 1, 0) + question)
        while True:
            data = asking.recv(1 << 16)
            at = 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError("the kernel does not list connections")
                yield _connection(data[at + _HEADER.size : at + length])
                at += _aligned(length)


def _connection(message: bytes) -> tuple[int, int, bytes]:
    local, remote = _PORTS.unpack_from(message)
    at = _MESSAGE_BYTES
    while at < len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _INFO:
            return local, remote, message[at + _ATTRIBUTE.size : at + length]
        at += max(_aligned(length), _ATTRIBUTE.size)
    return local, remote, b""


def _aligned(length: int) -> int:
    return (length + 3) & ~3
