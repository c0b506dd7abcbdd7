"""How much replication holds, how long it waits; relations of the numbers are asserted."""

from __future__ import annotations

import msgspec

from tq_node import limits
from tq_node.limits import KIB, MIB
from tq_node.partition.copy_rate import CopyRate

JUMP_MAX = 2**32
"""An epoch or a sequence this much further than known here is absurd: no absence lasts so long."""
EPOCHS_AHEAD_MAX = 64
"""A primary's cluster map may be ahead of its replica's by so many choices. Who says more is
refused until the own cluster map has them too: a promise can't be taken back, and no primary could
ever come after one that was made to a lie."""
assert EPOCHS_AHEAD_MAX < JUMP_MAX


class ReplicationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in ms, sizes in bytes; for one data centre."""

    # --- streams ---
    append_bytes_aim: int = 256 * KIB
    """One ``Append`` holds about this; a single entry may be longer."""
    window_bytes: int = 4 * MIB
    window_entries: int = 256
    """Sent to one replica and not acknowledged, for each partition."""
    recent_bytes: int = 256 * KIB
    """Entries kept in memory behind what is durable: a slight lag costs no read."""
    sync_again_ms: int = 1_000
    """A ``Sync`` or ``Append`` unanswered for so long: the stream begins again with a ``Sync``."""
    # --- the in-sync set (section 6) ---
    replica_lag_max_ms: int = 2_000
    near_end_ms: int = 1_000
    stable_for_ms: int = 3_000
    stable_for_ms_max: int = 60_000
    removal_memory_ms: int = 600_000
    """A removal for lag doubles ``stable_for`` if the last one is younger than this."""
    proposal_ms: int = 1_000
    """An unresolved proposal may be followed by another after so long, and still counts (R9)."""
    handover_ms: int = 2_000
    """A primary with a successor steps down when all is committed, or after this."""
    pause_ms: int = 1_000
    """A longer gap between ticks: this process slept, and can't say who was silent (F40)."""
    # --- the log ---
    keep_bytes: int = 256 * KIB
    """Kept of the log although nobody is known to need it: who restarts is spared a snapshot."""
    retain_bytes: int = 64 * MIB
    """Kept for copies outside the set that lag."""
    hold_bytes_max: int = 256 * MIB
    """Kept while a snapshot is under way; past it the snapshot begins anew."""
    mark_bytes: int = 64 * KIB
    """How finely the sizes of the log are remembered."""
    # --- snapshots ---
    snapshot_window: int = 8
    """Chunks sent and not acknowledged."""
    snapshot_stall_ms: int = 10_000
    # --- leases (section 8) ---
    lease_ms: int = limits.LEASE_MS
    lease_margin_ms: int = limits.LEASE_MARGIN_MS

    def __post_init__(self) -> None:
        assert 0 < self.append_bytes_aim <= self.window_bytes
        assert self.window_entries > 0
        assert 0 < self.near_end_ms <= self.replica_lag_max_ms, "who would be removed again is not let in"
        assert 0 < self.stable_for_ms <= self.stable_for_ms_max < self.removal_memory_ms
        assert 0 <= self.keep_bytes <= self.retain_bytes <= self.hold_bytes_max
        assert min(self.sync_again_ms, self.proposal_ms, self.handover_ms, self.pause_ms, self.mark_bytes) > 0
        assert min(self.snapshot_window, self.snapshot_stall_ms, self.recent_bytes) > 0
        assert 0 < self.lease_margin_ms < self.lease_ms


DEFAULT_SETTINGS = ReplicationSettings()


class Budget:
    """What all partitions of a node share: bytes sent to replicas and not acknowledged, bytes
    proposed and not committed.

    One object for all cores. The first is a bound that streams keep; the second is a sum by which
    the driver refuses new work. ``copying``: how fast copies are filled that do not count yet."""

    __slots__ = ("copying", "in_flight_bytes", "in_flight_bytes_max", "uncommitted_bytes")

    def __init__(self, in_flight_bytes_max: int = 64 * MIB, copying: CopyRate | None = None) -> None:
        self.copying = copying if copying is not None else CopyRate()
        self.in_flight_bytes = 0
        self.in_flight_bytes_max = in_flight_bytes_max
        self.uncommitted_bytes = 0
