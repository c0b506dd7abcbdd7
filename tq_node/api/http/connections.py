"""The connections of a site: who makes room for whom, how long a request may take to come in, and what nobody fetches.

A client can hold a connection without doing anything, send a request a byte at a time, or ask and read no answer. None of them
may keep others out or make the node keep more and more for them.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime

from tq_node import limits
from tq_node.api.settings import ApiSettings
from tq_node.observe.log import EventLog

if TYPE_CHECKING:
    from tq_node.api.http.channel import ApiChannel

_log = EventLog("taskqueue.http")
TICK_S = 1.0
LOG_EVERY_S = 1.0
_MADE_ROOM_FOR = 100
"""Where there is no room, one in so many connections is closed at once: looking for the quietest is not done for each new one."""


class Connections:
    """All of a site, on whatever port. Looks, each second, at those that are sending a request or lack room for an answer."""

    def __init__(self, reactor: IReactorTime, settings: ApiSettings) -> None:
        self._reactor = reactor
        self._max = settings.connections_max
        self._address_max = settings.connections_of_address_max
        self._of_address: dict[str, int] = {}
        self._timer: IDelayedCall | None = None
        self._logged_s = -LOG_EVERY_S
        self._closed = self._refused = 0
        self.channels: set[ApiChannel] = set()
        self.arriving: set[ApiChannel] = set()
        """Those whose request has begun and is not whole."""
        self.stalled: set[ApiChannel] = set()
        """Those that have been given more than their sockets take for now."""
        self.unsent_bytes = 0
        self.order = 0
        """Rises with each request; the channel with the lowest has been quiet longest."""

    # --- who is let in ---
    def admit(self, address: IAddress | None) -> bool:
        """Whether another one may come, for which the quietest may have to go. ``limits.HTTP_PROBES_MAX`` always may."""
        host = host_of(address)
        if self._of_address.get(host, 0) >= self._address_max and not self._make_room(host):
            return self._refuse()
        if len(self.channels) >= self._max and not self._make_room(None):
            # The last places are for whoever asks whether the node lives: an orchestrator would kill a node that is only busy.
            return len(self.channels) < self._max + limits.HTTP_PROBES_MAX or self._refuse()
        return True

    @property
    def is_full(self) -> bool:
        """Whoever comes now gets one of the places for probes."""
        return len(self.channels) >= self._max

    def made(self, channel: ApiChannel) -> None:
        self.channels.add(channel)
        self.order += 1
        channel.active = self.order
        self._of_address[channel.host] = self._of_address.get(channel.host, 0) + 1

    def gone(self, channel: ApiChannel) -> None:
        if channel in self.channels:
            self.channels.discard(channel)
            left = self._of_address[channel.host] - 1
            if left:
                self._of_address[channel.host] = left
            else:
                del self._of_address[channel.host]
        self.arriving.discard(channel)
        self.sent(channel)
        if not self.channels:
            self.close()

    def _make_room(self, host: str | None) -> bool:
        """Close those that have been quiet longest, of one address or of all; whether there were any."""
        quiet = [one for one in self.channels if one.is_quiet and (host is None or one.host == host)]
        count = 1 + (self._max if host is None else self._address_max) // _MADE_ROOM_FOR
        going = heapq.nsmallest(count, quiet, key=lambda one: one.active)
        for channel in going:
            self.gone(channel)
            channel.forceAbortClient()
        self._closed += len(going)
        if going:
            self._say()
        return bool(going)

    def _refuse(self) -> bool:
        self._refused += 1
        self._say()
        return False

    def _say(self) -> None:
        now_s = self._reactor.seconds()
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        closed, refused = self._closed, self._refused
        self._closed = self._refused = 0
        _log.info(
            "connections_full", "no room for more connections: {closed} quiet ones closed, {refused} new ones refused",
            closed=closed, refused=refused,
        )  # fmt: skip

    # --- what comes in too slowly, and what does not go out ---
    def watch(self) -> None:
        """Somebody has joined ``arriving`` or ``stalled``."""
        if self._timer is None:
            self._timer = self._reactor.callLater(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_s = self._reactor.seconds()
        for channel in list(self.arriving):
            if channel.comes_too_slowly(now_s):
                self.arriving.discard(channel)
                channel.forceAbortClient()
        for channel in list(self.stalled):
            if channel.takes_nothing(now_s):
                channel.forceAbortClient()
        if self.arriving or self.stalled:
            self.watch()

    def unsent(self, channel: ApiChannel, size: int) -> None:
        """So much more than its socket takes has been given to a channel."""
        if channel not in self.stalled:
            self.stalled.add(channel)
            size += limits.UNSENT_UNCOUNTED_BYTES
            self.watch()
        channel.unsent_bytes += size
        self.unsent_bytes += size
        if self.unsent_bytes > limits.UNSENT_BYTES_MAX:
            most = max(self.stalled, key=lambda one: one.unsent_bytes)
            self.sent(most)
            most.forceAbortClient()

    def sent(self, channel: ApiChannel) -> None:
        """All that the channel was given is with the system, or is not wanted any more."""
        self.stalled.discard(channel)
        self.unsent_bytes -= channel.unsent_bytes
        channel.unsent_bytes = 0

    def close(self) -> None:
        """Look no more, until somebody asks for it again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def host_of(address: IAddress | None) -> str:
    return str(getattr(address, "host", ""))
