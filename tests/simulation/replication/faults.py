"""Which faults exist in a run of the data plane, and how bad they are: each seed turns on a random subset (a swarm)."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.core_world import CoreFaults
from tests.simulation.families import drawn_actions
from tq_node.partition.settings import ReplicationSettings

ACTIONS = (
    "crash",
    "crash_primary",
    "crash_all",
    "wipe",
    "cut_one_way",
    "isolate",
    "isolate_primary",
    "split",
    "reset_link",
    "slow_link",
    "pause",
    "pause_primary",
    "slow_disk",
    "stalled_disk",
    "drain",
    "burst",
    "elect",
)


class Faults(CoreFaults, frozen=True):
    late_us: int = 0
    work_every_us: int = 40_000
    nodes: int = 0
    """0: drawn."""
    pace: dict[str, int] = {}

    @classmethod
    def swarm(cls, source: random.Random) -> Faults:
        return cls(
            actions=drawn_actions(source, ACTIONS, 0.4),
            loss=source.choice((0.0, 0.0, 0.01, 0.05)),
            doubling=source.choice((0.0, 0.02, 0.1)),
            overtaking=source.choice((0.0, 0.0, 0.05, 0.2)),
            every_us=source.choice((300_000, 600_000, 1_500_000)),
            evidence=source.random() < 0.6,
            late_us=source.choice((0, 0, 3_000_000)),
        )


def small_pace(source: random.Random, **overrides: Any) -> ReplicationSettings:
    """Bounds so low that every window fills, logs are trimmed, snapshots are cut into chunks."""
    return ReplicationSettings(
        **{
            "append_bytes_aim": source.choice((300, 2_000)),
            "window_bytes": source.choice((2_000, 8_000)),
            "window_entries": source.choice((2, 8, 64)),
            "recent_bytes": source.choice((500, 20_000)),
            "keep_bytes": source.choice((0, 2_000)),
            "retain_bytes": source.choice((2_000, 10_000)),
            "hold_bytes_max": 20_000,
            "mark_bytes": 200,
            "snapshot_window": source.choice((1, 3)),
            "snapshot_stall_ms": 2_000,
            "lease_ms": 2_000,
            "lease_margin_ms": 200,
            "stable_for_ms": 500,
            "stable_for_ms_max": 4_000,
            "removal_memory_ms": 10_000,
            **overrides,
        }
    )


CHANGES = Faults(
    actions=("crash_primary", "crash_primary", "elect", "elect", "isolate_primary", "slow_disk", "burst", "crash"),
    every_us=250_000,
    restart_us=(5_000, 1_500_000),
    loss=0.02,
    doubling=0.1,
    overtaking=0.2,
)
"""Many epochs, unequal logs, unsynced tails."""
SETS = Faults(
    actions=("slow_link", "cut_one_way", "stalled_disk", "crash", "wipe", "drain", "elect", "burst", "crash_primary"),
    every_us=400_000,
    loss=0.02,
    late_us=3_000_000,
    nodes=4,
    pace={"replica_lag_max_ms": 600, "near_end_ms": 300, "proposal_ms": 300},
)
"""Members leave and come back all the time."""
READS = Faults(
    actions=("isolate_primary", "isolate_primary", "pause_primary", "pause_primary", "split", "elect", "cut_one_way"),
    every_us=500_000,
    work_every_us=15_000,
    evidence=False,
)
RESTARTS = Faults(
    actions=("crash_all", "crash_all", "crash_primary", "crash", "slow_disk", "burst", "elect"),
    every_us=200_000,
    restart_us=(1_000, 100_000),
    doubling=0.2,
    overtaking=0.3,
)
SNAPSHOTS = Faults(
    actions=("wipe", "wipe", "crash", "isolate", "burst", "burst", "drain", "crash_primary", "reset_link"),
    every_us=400_000,
    restart_us=(100_000, 3_000_000),
    work_every_us=20_000,
    loss=0.01,
    pace={"keep_bytes": 0, "retain_bytes": 1_000, "snapshot_window": 2},
)
LOSSY = Faults(actions=("slow_disk", "crash"), every_us=1_500_000, loss=0.1, overtaking=0.1, doubling=0.1)
"""Worse than a connection ever is: what is lost on it is not lost with it."""
FOCUSES = (CHANGES, SETS, READS, RESTARTS, SNAPSHOTS)


def focused(seed: int) -> Faults:
    """Runs that press on one part of the rules; every other seed is one of them, the rest are swarms."""
    return FOCUSES[seed // 2 % len(FOCUSES)]
