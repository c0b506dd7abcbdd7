"""Load on brokers, as ``bench.load`` makes it on ours: prebuilt messages over raw sockets, so many confirmations each.

A broker's own protocol is a ``Speaker``. Clients are one process, with one message or batch in flight on each connection.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

_SILENCE_S = 30.0
_WARM_UP = 5


class Wrong(Exception):
    """Not what was expected from the broker."""


class Speaker(Protocol):
    """One connection to a broker. Its socket blocks."""

    def fileno(self) -> int: ...

    def publish(self, count: int) -> None:
        """Send so many messages, each to be confirmed."""

    def confirmed(self) -> int:
        """Read what has come; how many messages it confirms. :raises Wrong: one was refused, or the connection closed."""


def produce(
    speakers: Sequence[Speaker], size: int, *, in_flight: int, seconds: float = 0.0, count: int = 0
) -> dict[str, Any]:
    """Batches of ``size`` messages, in turns over the connections, for ``seconds`` or ``count`` times."""
    idle = deque(speakers)
    by_number = {speaker.fileno(): speaker for speaker in speakers}
    waiting: dict[int, tuple[float, int]] = {}
    poll = select.poll()
    for speaker in speakers:
        poll.register(speaker.fileno(), select.POLLIN)
    begun = time.monotonic()
    warm, end = begun + seconds / _WARM_UP, begun + seconds if seconds else float("inf")
    taken: list[tuple[float, float]] = []
    sent = 0

    def send() -> None:
        nonlocal sent
        now = time.monotonic()
        if now >= end or (count and sent >= count):
            return
        speaker = idle.popleft()
        waiting[speaker.fileno()] = now, size
        speaker.publish(size)
        sent += 1

    for _ in range(in_flight):
        send()
    while len(taken) < sent:
        events = poll.poll(_SILENCE_S * 1000)
        if not events:
            raise Wrong(f"nothing for {_SILENCE_S:g} s")
        for number, _ in events:
            at, missing = waiting[number]
            missing -= by_number[number].confirmed()
            waiting[number] = at, missing
            if missing == 0:
                now = time.monotonic()
                taken.append((now, now - at))
                idle.append(by_number[number])
                send()
    last = taken[-1][0]
    until = min(end, last)
    counted = sorted(took for when, took in taken if warm <= when <= until)
    return {
        "total": sent * size,
        "rate": len(counted) * size / max(until - warm, 1e-9),
        "p50_ms": round(counted[len(counted) // 2] * 1000, 3) if counted else 0.0,
        "p99_ms": round(counted[len(counted) * 99 // 100] * 1000, 3) if counted else 0.0,
    }
