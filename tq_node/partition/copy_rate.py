"""How fast a node fills copies that count for nothing yet: moves, and nodes that come back
(replication.md, section 6).

One object for all partitions of a node. What the in-sync copies are sent never asks here, nor do
entries that leave as they are written: a move slows nobody down, and a copy that is nearly there
gets there."""

from __future__ import annotations

BURST_MS = 200
"""What was not used is kept for so long; after a pause no more than this leaves at once."""
UNLIMITED = 1 << 60


class CopyRate:
    """Bounds the rate of copying, in bytes a second; 0: no bound."""

    __slots__ = ("_level", "_refilled_ms", "bytes_s", "sent_bytes")

    def __init__(self, bytes_s: int = 0) -> None:
        assert bytes_s >= 0
        self.bytes_s = bytes_s
        self.sent_bytes = 0
        """In all, limited or not; for people."""
        self._level = 0.0
        self._refilled_ms: int | None = None

    @property
    def room_bytes(self) -> int:
        """Bytes that may be sent now; 0: none until a tick. One item may exceed it, on credit."""
        if not self.bytes_s:
            return UNLIMITED
        return max(0, int(self._level))

    def refill(self, now_ms: int) -> None:
        """Add the room since the last call; called at each tick, before the cores' ticks."""
        since_ms = BURST_MS if self._refilled_ms is None else now_ms - self._refilled_ms
        self._refilled_ms = now_ms
        self._level = min(self._level + self.bytes_s * since_ms / 1000, self.bytes_s * BURST_MS / 1000)

    def spend(self, size: int) -> None:
        """``size`` bytes have left."""
        self.sent_bytes += size
        self._level -= size

    def reserve(self, size: int) -> None:
        """``size`` bytes are being read and may soon leave; others must not count on this room."""
        self._level -= size

    def give_back(self, size: int) -> None:
        """Return a reservation: the bytes are spent now, or never will be."""
        self._level += size
