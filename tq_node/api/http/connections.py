"""The connections of a server: which are admitted, and which are closed to free what they hold.

A client can hold a connection without doing anything, send a request a byte at a time, or ask and
read no answer. None of these may keep others out, or make the node buffer without bound."""

from __future__ import annotations

import heapq
from ipaddress import IPv6Address
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime

from tq_node import limits
from tq_node.api.settings import ApiSettings
from tq_node.observe.log import EventLog

_log = EventLog("taskqueue.http")
TICK_S = 1.0
LOG_EVERY_S = 1.0
_EVICTED_SHARE = 100
"""When full, 1 in 100 connections is closed at once: one search for idle ones for them all."""


class Connection(Protocol):
    """One client's connection as ``Connections`` sees it."""

    host: str
    who: str
    last_active: int
    """``Connections.activity`` at its last request."""
    unsent_bytes: int
    """Given to the transport since it last was empty."""

    @property
    def in_flight(self) -> int:
        """As in ``census.Held``."""
        ...

    @property
    def body_bytes(self) -> int:
        """As in ``census.Held``."""
        ...

    @property
    def is_idle(self) -> bool:
        """No request of it is in progress."""
        ...

    def is_too_slow(self, now_s: float) -> bool:
        """Its request arrives more slowly than ``limits`` allow."""
        ...

    def is_stalled(self, now_s: float) -> bool:
        """Its peer has taken no byte for ``limits.UNSENT_STALL_S``."""
        ...

    def close_in_order(self) -> None:
        """Close it: at once where it has no request, else after the answer."""
        ...

    def forceAbortClient(self) -> None:
        """Reset it."""
        ...


class Connections:
    """All connections of one server, on all its ports. Looks each second at those that are sending
    a request or lack room for an answer; else no timer runs."""

    def __init__(self, reactor: IReactorTime, settings: ApiSettings) -> None:
        self._reactor = reactor
        self._max = settings.connections_max
        self._host_max = settings.connections_of_address_max
        self._count_of_host: dict[str, int] = {}
        self._timer: IDelayedCall | None = None
        self._logged_s = -LOG_EVERY_S
        self._evicted = self._refused = 0
        """Since the last line in the log."""
        self._empty: Deferred[None] | None = None
        self.open: set[Connection] = set()
        self.arriving: set[Connection] = set()
        """Those of which a part of a request has arrived."""
        self.stalled: set[Connection] = set()
        """Those that were given more than their sockets take for now."""
        self.unsent_bytes = 0
        self.activity = 0
        """Rises with each request: the connection with the lowest number is idle longest."""

    # --- admission ---
    def admit(self, address: IAddress | None) -> bool:
        """Whether one more connection from ``address`` is taken; an idle one may be closed for it.
        ``limits.HTTP_PROBES_MAX`` are taken beyond the bound."""
        host = host_of(address)
        if self._count_of_host.get(host, 0) >= self._host_max and not self._evict_idle(host):
            return self._refuse()
        if len(self.open) >= self._max and not self._evict_idle(None):
            # Health probes have places beyond the bound: an orchestrator would kill a busy node.
            return len(self.open) < self._max + limits.HTTP_PROBES_MAX or self._refuse()
        return True

    @property
    def is_full(self) -> bool:
        """Only the places for health probes are left."""
        return len(self.open) >= self._max

    def add(self, connection: Connection) -> None:
        self.open.add(connection)
        self.activity += 1
        connection.last_active = self.activity
        self._count_of_host[connection.host] = self._count_of_host.get(connection.host, 0) + 1

    def remove(self, connection: Connection) -> None:
        """The connection is closed. Does nothing for one that is not open."""
        if connection in self.open:
            self.open.discard(connection)
            remaining = self._count_of_host[connection.host] - 1
            if remaining:
                self._count_of_host[connection.host] = remaining
            else:
                del self._count_of_host[connection.host]
        self.arriving.discard(connection)
        self.note_sent(connection)
        if not self.open:
            self.stop()
            if self._empty is not None:
                empty, self._empty = self._empty, None
                empty.callback(None)

    def when_empty(self) -> Deferred[None]:
        """Fires when no connection is open."""
        if not self.open:
            return succeed(None)
        self._empty = Deferred()
        return self._empty

    def _evict_idle(self, host: str | None) -> bool:
        """Reset those that are idle longest, of one host or of all; False: none is idle."""
        idle = [one for one in self.open if one.is_idle and (host is None or one.host == host)]
        count = 1 + (self._max if host is None else self._host_max) // _EVICTED_SHARE
        evicted = heapq.nsmallest(count, idle, key=lambda one: one.last_active)
        for connection in evicted:
            self.remove(connection)
            connection.forceAbortClient()
        self._evicted += len(evicted)
        if evicted:
            self._log_full()
        return bool(evicted)

    def _refuse(self) -> bool:
        self._refused += 1
        self._log_full()
        return False

    def _log_full(self) -> None:
        now_s = self._reactor.seconds()
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        closed, refused = self._evicted, self._refused
        self._evicted = self._refused = 0
        _log.info(
            "connections_full", "no room for more connections: {closed} quiet ones closed, {refused} new ones refused",
            closed=closed, refused=refused,
        )  # fmt: skip

    # --- slow senders and slow readers ---
    def watch(self) -> None:
        """Start the timer: a connection was added to ``arriving`` or ``stalled``."""
        if self._timer is None:
            self._timer = self._reactor.callLater(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_s = self._reactor.seconds()
        for connection in list(self.arriving):
            if connection.is_too_slow(now_s):
                self.arriving.discard(connection)
                connection.forceAbortClient()
        for connection in list(self.stalled):
            if connection.is_stalled(now_s):
                connection.forceAbortClient()
        if self.arriving or self.stalled:
            self.watch()

    def note_unsent(self, connection: Connection, size: int) -> None:
        """The transport was given ``size`` bytes more while it was full. Past
        ``limits.UNSENT_BYTES_MAX`` the connection with the most of them is reset."""
        if connection not in self.stalled:
            self.stalled.add(connection)
            size += limits.UNSENT_UNCOUNTED_BYTES
            self.watch()
        connection.unsent_bytes += size
        self.unsent_bytes += size
        if self.unsent_bytes > limits.UNSENT_BYTES_MAX:
            most = max(self.stalled, key=lambda one: one.unsent_bytes)
            self.note_sent(most)
            most.forceAbortClient()

    def note_sent(self, connection: Connection) -> None:
        """All that the transport was given is with the system, or is of no use any more."""
        self.stalled.discard(connection)
        self.unsent_bytes -= connection.unsent_bytes
        connection.unsent_bytes = 0

    def stop(self) -> None:
        """Stop the timer until ``watch`` is called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def address_of(host: str) -> str:
    """What all callers of a host share: the address; of IPv6 the network of 64 bits, in which one
    machine may choose."""
    if ":" not in host:
        return "@" + host
    try:
        address = IPv6Address(host.partition("%")[0])
    except ValueError:
        return "@" + host
    mapped = address.ipv4_mapped
    return f"@{mapped}" if mapped is not None else f"@{IPv6Address(int(address) >> 64 << 64)}/64"


def host_of(address: IAddress | None) -> str:
    """The host of a TCP address; empty for other kinds."""
    return str(getattr(address, "host", ""))
