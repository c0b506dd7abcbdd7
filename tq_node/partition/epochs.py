"""Which epoch each position of a log is of, and up to where two logs are one (R15).

A table is a list of (epoch, first_sequence), ascending: a pure function of the log and the snapshot
before it. An epoch begins with its barrier, written once by its one primary, so two logs that have
the same epoch at a position are equal up to it (I6)."""

from __future__ import annotations

from collections.abc import Iterable

from tq_node.errors import Divergence

Runs = tuple[tuple[int, int], ...]


class EpochTable:
    """The epochs of a log as (epoch, first sequence), from ``log_start`` - 1 on. The epoch of the
    last entry that was trimmed stays known: else a member of the set whose log ends there would
    have nothing in common with a primary that trimmed up to there."""

    __slots__ = ("_runs", "last_epoch")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._runs: list[tuple[int, int]] = []
        self.last_epoch = 0
        """The epoch of the log's last entry; 0 for an empty log."""
        for epoch, first in runs:
            self.append(epoch, first)

    @property
    def runs(self) -> Runs:
        return tuple(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def at(self, sequence: int) -> int:
        """The epoch of the entry at ``sequence``; 0 before the first one known."""
        for epoch, first in reversed(self._runs):
            if first <= sequence:
                return epoch
        return 0

    @staticmethod
    def are_sound(runs: Runs, last_sequence: int) -> bool:
        """Whether a log that ends at ``last_sequence`` may have these epochs, which a peer sent."""
        epoch = first = 0
        for run in runs:
            if not (run[0] > epoch and run[1] > first):
                return False
            epoch, first = run
        return first <= last_sequence

    def append(self, epoch: int, first: int) -> None:
        if self._runs:
            last_epoch, last_first = self._runs[-1]
            assert epoch > last_epoch, "epochs ascend along a log"
            assert first > last_first, "an epoch has at least its barrier"
        assert epoch > 0
        self._runs.append((epoch, first))
        self.last_epoch = epoch

    def cut_after(self, sequence: int) -> None:
        """Forget the epochs that begin behind ``sequence``."""
        while self._runs and self._runs[-1][1] > sequence:
            self._runs.pop()
        self.last_epoch = self._runs[-1][0] if self._runs else 0

    def trim(self, covering: int) -> None:
        """Forget the epochs that end before ``covering``."""
        dropped = 0
        while dropped + 1 < len(self._runs) and self._runs[dropped + 1][1] <= covering:
            dropped += 1
        del self._runs[:dropped]


def common_prefix(mine: EpochTable, my_last: int, theirs: EpochTable) -> int | None:
    """The last sequence up to which my epoch at each position is the primary's; None: no epoch that
    both tables know.

    The primary's newest epoch is open-ended: what I have of it came from it, be its ``Sync`` older
    than that or not.

    :raises Divergence: an epoch begins at two places.

    Source: R15; Kafka's KIP-101 and KIP-279. Never by a commit mark (F19)."""
    begins_at = dict(theirs.runs)
    ends = [first - 1 for _, first in theirs.runs[1:]]
    ends_at = dict(zip(begins_at, ends, strict=False))
    last = my_last
    for epoch, first in reversed(mine.runs):
        their_first = begins_at.get(epoch)
        if their_first is not None:
            if their_first != first:
                raise Divergence(f"epoch {epoch} begins at {first} here and at {their_first} at the primary (I6)")
            return min(last, ends_at.get(epoch, last))
        last = first - 1
    return None
