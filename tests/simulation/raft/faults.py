"""Which faults exist in a run, and how bad they are: each seed turns on a random subset (a swarm)."""

from __future__ import annotations

import random
from typing import Any

from tests.simulation.core_world import CoreFaults
from tests.simulation.families import drawn_actions
from tq_node.raft.settings import RaftSettings

ACTIONS = (
    "crash",
    "crash_in_mid_step",
    "crash_all",
    "cut_one_way",
    "isolate",
    "split",
    "slow_link",
    "pause",
    "slow_disk",
    "stalled_disk",
    "false_evidence",
    "change_membership",
    "transfer",
    "burst",
    "crash_leader",
    "all_campaign",
)


class Faults(CoreFaults, frozen=True):
    restart_us: tuple[int, int] = (10_000, 6_000_000)
    work_every_us: int = 120_000
    """Reads go to a random node, the rest to whoever thinks it leads."""
    read_share: float = 0.3
    eager_changes: bool = False
    """A change of membership is asked for as soon as somebody is elected."""
    compact: tuple[int, int] | None = None
    """(snapshot every so many entries, keep so many behind it); None: drawn."""
    settings: dict[str, int] = {}

    @classmethod
    def swarm(cls, source: random.Random) -> Faults:
        return cls(
            actions=drawn_actions(source, ACTIONS, 0.5),
            loss=source.choice((0.0, 0.0, 0.01, 0.05, 0.2)),
            doubling=source.choice((0.0, 0.02, 0.1)),
            overtaking=source.choice((0.0, 0.0, 0.05, 0.3)),
            every_us=source.choice((250_000, 500_000, 1_000_000, 2_000_000)),
            evidence=source.random() < 0.5,
        )


def small_settings(source: random.Random, **overrides: Any) -> RaftSettings:
    """Bounds so low that every window fills, every snapshot is cut into chunks."""
    return RaftSettings(
        **{
            "message_bytes_max": source.choice((512, 2_048)),
            "entry_bytes_max": 400,
            "inflight_messages_max": source.choice((1, 3, 8)),
            "inflight_bytes_max": source.choice((2_048, 8_192)),
            "uncommitted_bytes_max": source.choice((1_024, 8_192)),
            "committed_bytes_max": source.choice((500, 50_000)),
            "snapshot_chunk_bytes": source.choice((50, 300)),
            "snapshot_bytes_max": 1_024,
            "reads_max": source.choice((2, 64)),
            **overrides,
        }
    )


def focused(seed: int) -> Faults:
    """Runs that press on one part of the rules; every other seed is one of them, the rest are swarms."""
    return FOCUSES[seed // 2 % len(FOCUSES)]


_RESTLESS = ("crash_in_mid_step", "crash_leader", "split", "isolate", "transfer")
TERMS = Faults(
    actions=("crash_leader", "crash_leader", "burst", "burst", "split", "slow_disk", "crash_in_mid_step"),
    every_us=200_000,
    loss=0.1,
    evidence=False,
    restart_us=(10_000, 2_000_000),
    settings={
        "message_bytes_max": 100,
        "entry_bytes_max": 100,
        "snapshot_chunk_bytes": 90,
        "inflight_messages_max": 1,
        "inflight_bytes_max": 100,
    },
)
"""Short terms that leave unequal logs behind: figure 8 of the paper, leftovers of old terms, writes that are cut on their way."""
MEMBERS = Faults(
    actions=(*_RESTLESS, "slow_disk", *("change_membership",) * 8),
    every_us=60_000,
    eager_changes=True,
    loss=0.05,
    evidence=False,
    restart_us=(10_000, 1_000_000),
)
READS = Faults(
    actions=("isolate", "isolate", "split", "pause", "transfer", "crash_leader"),
    every_us=700_000,
    work_every_us=15_000,
    read_share=0.8,
    evidence=False,
    settings={"reads_max": 4},
)
SNAPSHOTS = Faults(
    actions=("crash_in_mid_step", "crash_in_mid_step", "crash", "isolate", "burst", "burst", "slow_link", "slow_disk"),
    every_us=150_000,
    loss=0.02,
    doubling=0.3,
    overtaking=0.3,
    restart_us=(10_000, 1_000_000),
    compact=(5, 0),
)
VOTES = Faults(
    actions=("all_campaign", "all_campaign", "crash", "crash_in_mid_step", "slow_disk", "crash_all"),
    every_us=60_000,
    evidence=False,
    restart_us=(1_000, 50_000),
    work_every_us=500_000,
)
PAIR = Faults(
    actions=("crash_leader", "slow_disk", *("change_membership",) * 3),
    every_us=100_000,
    eager_changes=True,
    restart_us=(10_000, 500_000),
)
"""For two voters: demotions, and crashes within one sync."""
FOCUSES = (TERMS, MEMBERS, READS, SNAPSHOTS, VOTES, PAIR)
