"""How patient the leader is, how much it does at once; relations of the numbers are asserted."""

from __future__ import annotations

import msgspec

from tq_node.limits import MIB


class ControllerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults for one data centre (docs/reference/limits.md)."""

    session_ms: int = 2_000
    """``T_session``: silence for so long is death (R5); docs/reference/failover.md says why."""
    suspect_ms: int = 1_000
    """Shown as suspect, and given nothing new."""
    decide_ms: int = 100
    """Between two looks at who is silent; a delay of as much or more is not counted (F40)."""
    refusals_apart_ms: int = 50
    """R5a: between the two refusals of a dead node's port."""
    health_ms: int = 30_000
    """Of steady life before a learner replaces a voter; of death before a voter is replaced."""
    replace_after_ms: int = 60_000
    """A copy on a dead node is made elsewhere after this; before, it is expected back."""
    successor_ms: int = 10_000
    """A primary that has not stepped down for its successor by then is replaced."""
    big_bytes: int = 1 * MIB
    """A move that copies more is a big one."""
    big_moves_per_node: int = 2
    batch_max: int = 256
    """Partitions in one entry: it stays far below what a Raft message holds."""

    def __post_init__(self) -> None:
        assert 0 < self.suspect_ms < self.session_ms, "a node is suspect before it is dead"
        assert 0 < 2 * self.decide_ms < self.suspect_ms, "a leader that looks in time is not taken for one that sleeps"
        assert self.session_ms < self.health_ms <= self.replace_after_ms
        assert min(self.refusals_apart_ms, self.successor_ms, self.big_moves_per_node, self.batch_max) > 0


DEFAULT_SETTINGS = ControllerSettings()
