"""Notifies systemd of this node's state (sd_notify(3), ``Type=notify``), if it listens.

No library among our dependencies does it; the protocol is a datagram of ``NAME=value`` lines."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping, Sequence
from typing import Protocol

from twisted.logger import Logger

from tq_node.facade import NotReadyReason
from tq_node.limits import STOP_MARGIN_S
from tq_node.runtime.clock import Clock, Loop
from tq_node.types import ClusterView

_log = Logger(namespace="taskqueue.notify")

LOOK_S = 0.5
"""How often the state is looked at; systemd is notified only of changes."""
READY_WAIT_S = 60.0
"""A node that is not ready by then lets the boot go on and says so in its status: it may wait for
machines that boot after this one. ``TimeoutStartSec`` in the unit must be longer."""


class WatchedNode(Protocol):
    """The part of ``facade.TaskQueue`` whose state systemd is notified of."""

    def not_ready(self) -> Sequence[NotReadyReason]: ...

    def cluster(self) -> ClusterView: ...


class Notifier:
    """Sends READY=1 with ``/ready``, STATUS= at changes, WATCHDOG=1 from the reactor, STOPPING=1.

    :param address: ``NOTIFY_SOCKET``; None or empty: all methods do nothing. ``@…``: abstract.
    :param watchdog_us: ``WATCHDOG_USEC``, 0 where the unit has no watchdog. A timer of the reactor
        feeds it at half of that, so only while the reactor really turns. A node that turns but has
        no leader is no reason for a restart.
    :param stop_s: how long handlers may go on after SIGTERM."""

    def __init__(self, address: str | None, watchdog_us: int, clock: Clock, node: WatchedNode, stop_s: float) -> None:
        self._clock = clock
        self._node = node
        self._stop_s = stop_s
        self._watchdog_s = watchdog_us / 2_000_000
        self._socket: socket.socket | None = None
        self._loops: list[Loop] = []
        self._began_ms = clock.now_ms()
        self._is_ready = self._is_stopping = False
        self._status = ""
        if address:
            self._socket = _connected(address)

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str], clock: Clock, node: WatchedNode, stop_s: float
    ) -> Notifier:
        """Takes the variables out: no worker process and no handler shall speak for the node."""
        address = environment.pop("NOTIFY_SOCKET", None)
        watchdog = environment.pop("WATCHDOG_USEC", "")
        # Where it is set to another process, the watchdog is not meant for us.
        is_ours = environment.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        watchdog_us = int(watchdog) if is_ours and watchdog.isdecimal() else 0
        return cls(address, watchdog_us, clock, node, stop_s)

    def start(self) -> None:
        if self._socket is None:
            return
        self._loops.append(self._clock.every(LOOK_S, self._look, "telling systemd how the node is"))
        if self._watchdog_s:
            feed = self._clock.every(self._watchdog_s, self._feed, "feeding the watchdog")
            self._loops.append(feed)

    def stopping(self) -> None:
        """The end begins: watched on, with the time promised to handlers, whatever the unit has."""
        if self._is_stopping:
            return
        self._is_stopping = True
        extend_us = int((self._stop_s + STOP_MARGIN_S) * 1_000_000)
        self._send(
            "STOPPING=1", "STATUS=stopping: running tasks end or are handed over", f"EXTEND_TIMEOUT_USEC={extend_us}"
        )

    def stop(self) -> None:
        """Let go; a second call does nothing."""
        for loop in self._loops:
            loop.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _feed(self) -> None:
        self._send("WATCHDOG=1")

    def _look(self) -> None:
        if self._is_stopping:
            return
        reasons = self._node.not_ready()
        status = self._described(reasons)
        lines = [] if status == self._status else [f"STATUS={status}"]
        waited_long = self._clock.now_ms() - self._began_ms >= READY_WAIT_S * 1000
        becomes_ready = not self._is_ready and (not reasons or waited_long)
        if becomes_ready:
            lines.insert(0, "READY=1")
        if lines and self._send(*lines):
            self._status = status
            self._is_ready |= becomes_ready

    def _described(self, reasons: Sequence[NotReadyReason]) -> str:
        if reasons:
            return " ".join(f"not ready: {'; '.join(reason.detail for reason in reasons[:3])}".split())
        shown = self._node.cluster()
        active = sum(node.status == "active" for node in shown.nodes)
        return f"ready; {active} of {len(shown.nodes)} nodes active, led by {shown.leader}"

    def _send(self, *lines: str) -> bool:
        """A service manager that is busy or gone must not hurt the node: the next round retries."""
        if self._socket is None:
            return False
        with contextlib.suppress(OSError):
            self._socket.send("\n".join(lines).encode())
            return True
        return False


def _connected(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):
        _log.warn("NOTIFY_SOCKET {address!r} is no Unix socket: systemd is told nothing", address=address)
        return None
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError as why:
        _log.warn("NOTIFY_SOCKET {address!r}: {why}; systemd is told nothing", address=address, why=str(why))
        made.close()
        return None
    return made
