"""What goes wrong in a world of whole nodes: each seed turns on a random subset (a swarm)."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.families import CommonFaults, drawn_actions
from tests.support.world import SECOND_US
from tq_node.partition.settings import ReplicationSettings

ACTIONS = (
    "crash",
    "crash_primary",
    "crash_leader",
    "crash_all",
    "power_off",
    "pause",
    "pause_primary",
    "cut_one_way",
    "isolate",
    "isolate_primary",
    "split",
    "reset_links",
    "slow_link",
    "slow_disk",
    "stalled_disk",
    "burst",
    "step_down",
    "restart",
)


class Faults(CommonFaults, frozen=True):
    every_us: int = 1_500_000
    work_every_us: int = 70_000
    restart_us: tuple[int, int] = (50_000, 3_000_000)
    cut_us: tuple[int, int] = (300_000, 6_000_000)
    reset_odds: float = 0.0
    run_us: tuple[int, int] = (5_000, 400_000)
    """How long an attempt takes; one in twenty takes ten times as long."""
    nodes: int = 0
    """0: drawn."""
    small: dict[str, Any] = {}
    remote: int = 0
    """Remote workers; with trouble of their own."""

    @classmethod
    def swarm(cls, source: random.Random) -> Faults:
        return cls(
            actions=drawn_actions(source, ACTIONS, 0.4),
            every_us=source.choice((1_000_000, 2_000_000, 3_500_000)),
            reset_odds=source.choice((0.0, 0.0, 0.0002, 0.002)),
            run_us=source.choice(((5_000, 400_000), (2_000, 50_000), (200_000, 1_500_000))),
            remote=source.choice((0, 0, 2, 3)),
        )


def small_bounds(source: random.Random, overrides: dict[str, Any]) -> dict[str, Any]:
    """Windows that fill, logs that are trimmed, snapshots in chunks, leases that end: see ``node.composition``."""
    lease_ms, margin_ms = source.choice(((3_000, 300), (5_000, 500)))
    pace = ReplicationSettings(
        append_bytes_aim=source.choice((600, 3_000)),
        window_bytes=source.choice((3_000, 4 << 20)),
        window_entries=source.choice((4, 64)),
        recent_bytes=source.choice((1_000, 20_000)),
        keep_bytes=source.choice((0, 20_000)),
        retain_bytes=source.choice((20_000, 1 << 20)),
        hold_bytes_max=1 << 20,
        mark_bytes=500,
        snapshot_window=source.choice((1, 8)),
        stable_for_ms=1_000,
        stable_for_ms_max=4_000,
        removal_memory_ms=20_000,
        lease_ms=lease_ms,
        lease_margin_ms=margin_ms,
    )
    return {
        "pace": pace,
        "snapshot_every": source.choice((15, 60, 1_000)),
        "kept_behind": source.choice((3, 30)),
        "lease_ms": lease_ms,
        "margin_ms": margin_ms,
        "gather_callers": source.choice((1, 2, 4)),
        **overrides,
    }


FAILOVER = Faults(
    actions=("crash_primary", "crash_leader", "step_down", "crash_primary", "isolate_primary"), every_us=1_500_000
)
LEASES = Faults(
    actions=("isolate_primary", "pause_primary", "step_down", "cut_one_way", "crash_primary"),
    every_us=2_500_000,
    run_us=(500_000, 4_000_000),
)
RESTARTS = Faults(
    actions=("crash_all", "crash_all", "slow_disk", "burst"), every_us=2_000_000, restart_us=(10_000, 500_000)
)
FOCUSES = (FAILOVER, LEASES, RESTARTS)
SAFETY_US = 16 * SECOND_US


def faults_for(seed: int, source: random.Random) -> Faults:
    """Every third seed presses on one part; the others are swarms."""
    return FOCUSES[seed // 3 % len(FOCUSES)] if seed % 3 == 2 else Faults.swarm(source)
