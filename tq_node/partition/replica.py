"""The log of one partition as its primary sees it: what is proposed, durable, committed.

Sans IO: proposals and news of durability go in; entries to persist and entries that have become committed come out. In this
version the in-sync set is the node alone, so the only acknowledgement is its own disk's; the arithmetic is that of the whole set
(R8), and nothing here assumes its size. Rules named in brackets are those of ``replication.md``, section 5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

from tq_node import limits
from tq_node.errors import Divergence
from tq_node.partition.entries import Effect, Entry, EpochStart, Put, make_entry
from tq_node.types import Token

News = TypeVar("News")
"""What the driver wants back when an effect commits; opaque here."""

_PUT_OVERHEAD_BYTES = 100


def committed_sequence(durable: Mapping[str, int], effective_set: frozenset[str], barrier: int) -> int:
    """The highest entry that every member of the effective set has on disk, or 0 while that is below the barrier.

    :param durable: highest synced entry of each copy; one that is missing counts as 0.
    :param effective_set: the set learned united with every set proposed and unresolved (R9); counting less is bug F17.
    :raises ValueError: the set is empty.

    Source: PacificA (Lin et al., 2008), commit rule; replication.md, rule R8.
    """
    least = min(durable.get(node, 0) for node in effective_set)
    return least if least >= barrier else 0


class Committed(Generic[News]):
    """One entry that has become committed: its effects in order, and the driver's news for each that has any."""

    __slots__ = ("effects", "news", "sequence")

    def __init__(self, sequence: int, effects: list[Effect], news: list[News]) -> None:
        self.sequence = sequence
        self.effects = effects
        self.news = news


class PrimaryLog(Generic[News]):
    """The primary's side of one partition's log.

    ``propose`` adds an effect to the *open* entry; ``seal`` closes it and hands out what must be persisted. Everything that is
    proposed between two seals shares an entry, which is what makes a batch cheap. The sequence of the open entry is
    known from the first effect on: a claim's token is the place of the entry that carries it.
    """

    def __init__(self, partition: int, me: str, *, promised: int = 0, last_sequence: int = 0, applied: int = 0) -> None:
        self.partition = partition
        self.promised = promised
        self.epoch = 0
        self.barrier = 0
        self.last_sequence = last_sequence
        self.committed = applied
        self.effective_set = frozenset([me])
        self._me = me
        self._durable: dict[str, int] = {}
        self._open: list[Effect] = []
        self._open_news: list[News] = []
        self._open_bytes = 0
        self._sealed: list[tuple[int, int, list[Effect]]] = []
        self._uncommitted: deque[Committed[News]] = deque()

    # --- becoming primary ---
    def recover(self, entries: list[tuple[int, list[Effect]]]) -> None:
        """The tail of the log behind ``applied``, as read at start. It commits together with the barrier, not before (R7, R8)."""
        for sequence, effects in entries:
            if sequence != self.committed + len(self._uncommitted) + 1:
                raise Divergence(f"partition {self.partition}: the log has a gap before {sequence}")
            self._uncommitted.append(Committed(sequence, effects, []))
        if self.committed + len(entries) != self.last_sequence:
            raise Divergence(f"partition {self.partition}: the log ends before {self.last_sequence}")

    def begin_epoch(self, epoch: int) -> None:
        """Promise ``epoch`` and append its barrier. The promise must be durable before anything of this epoch is sent (R6).

        :raises Divergence: the epoch is not above the promise: a primary never goes on in an epoch it led before (F20).
        """
        if epoch <= self.promised:
            raise Divergence(f"partition {self.partition}: epoch {epoch} is not above the promise {self.promised}")
        self.promised = self.epoch = epoch
        self._durable = {}
        self.barrier = self._add(EpochStart(epoch), 16)
        self._close()

    def step_down(self) -> None:
        """Primary no more (R12). What was proposed stays in the log; what is not committed waits for a later epoch's barrier."""
        if self._open:
            self._close()
        self.epoch = self.barrier = 0

    @property
    def is_active(self) -> bool:
        """Whether the barrier is committed: before that no reads, no claims, no answers (R7)."""
        return self.epoch > 0 and self.committed >= self.barrier

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is proposed that is not committed."""
        return not self._open and not self._uncommitted

    # --- proposing ---
    @property
    def open_sequence(self) -> int:
        """The sequence that the next proposed effect will have."""
        return self.last_sequence if self._open else self.last_sequence + 1

    def propose(self, effect: Effect, size: int, news: News | None = None) -> int:
        """Add ``effect`` to the open entry and return its sequence. ``size``: bytes of its payloads, for cutting entries."""
        sequence = self._add(effect, size)
        if news is not None:
            self._open_news.append(news)
        return sequence

    def _add(self, effect: Effect, size: int) -> int:
        size += _PUT_OVERHEAD_BYTES
        if self._open and self._open_bytes + size > limits.ENTRY_BYTES_AIM:
            self._close()
        if not self._open:
            self.last_sequence += 1
        self._open.append(effect)
        self._open_bytes += size
        return self.last_sequence

    def claim_token(self, claimed_before: int) -> Token:
        """The token of a claim that is proposed next.

        :param claimed_before: the entry of the task's latest claim, 0 for none. Two claims of one task never share an entry,
            else they would share a token: claim, cancel, retry, claim within one turn did so.
        """
        if self._open and claimed_before == self.last_sequence:
            self._close()
        return Token(self.epoch, self.open_sequence)

    def will_share_entry(self, size: int) -> bool:
        """Whether an effect of ``size`` proposed now goes into the entry of ``open_sequence``."""
        return not self._open or self._open_bytes + size + _PUT_OVERHEAD_BYTES <= limits.ENTRY_BYTES_AIM

    def close_open(self) -> None:
        """Start a new entry with the next effect."""
        if self._open:
            self._close()

    def _close(self) -> None:
        self._sealed.append((self.last_sequence, self.epoch, self._open))
        self._uncommitted.append(Committed(self.last_sequence, self._open, self._open_news))
        self._open, self._open_news, self._open_bytes = [], [], 0

    def seal(self) -> list[Entry]:
        """Every entry proposed since the last call, encoded, in order: persist (and send) them."""
        if self._open:
            self._close()
        sealed, self._sealed = self._sealed, []
        return [make_entry(self.partition, sequence, epoch, effects) for sequence, epoch, effects in sealed]

    # --- commit ---
    def durable(self, node: str, sequence: int) -> list[Committed[News]]:
        """``node`` has everything up to ``sequence`` on disk, in this epoch. Returns what has thereby become committed."""
        if sequence > self._durable.get(node, 0):
            self._durable[node] = sequence
        if self.epoch == 0:
            return []  # only a primary knows what is committed
        reached = committed_sequence(self._durable, self.effective_set, self.barrier)
        if reached <= self.committed:
            return []
        self.committed = reached
        committed = []
        while self._uncommitted and self._uncommitted[0].sequence <= reached:
            committed.append(self._uncommitted.popleft())
        return committed


def put_size(put: Put) -> int:
    """Bytes of a row effect's payloads."""
    return len(put.body) + (len(put.spec) if put.spec is not None else 0)
