"""The open entry: what is proposed between two seals shares one place in the log, which is what makes a batch cheap."""

from __future__ import annotations

from typing import Generic

from tq_node import limits
from tq_node.partition.entries import Effect
from tq_node.partition.messages import encoded
from tq_node.partition.replica_log import News, ReplicaLog
from tq_node.types import Token

_EFFECT_OVERHEAD_BYTES = 100


class OpenEntry(Generic[News]):
    """Of one epoch. Its sequence is known from the first effect on: a claim's token is the place of the entry that carries
    it."""

    __slots__ = ("_bytes", "_effects", "_log", "_news", "epoch")

    def __init__(self, log: ReplicaLog[News], epoch: int) -> None:
        self._log = log
        self.epoch = epoch
        self._effects: list[Effect] = []
        self._news: list[News] = []
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._effects

    @property
    def sequence(self) -> int:
        """Of the next proposed effect, unless a large one starts another entry."""
        return self._log.last_sequence + 1

    def add(self, effect: Effect, size: int, news: News | None) -> int:
        """Returns the sequence. ``size``: bytes of the effect's payloads, for cutting entries."""
        if self._effects and not self.has_room(size):
            self.close()
        self._effects.append(effect)
        self._bytes += size + _EFFECT_OVERHEAD_BYTES
        if news is not None:
            self._news.append(news)
        return self._log.last_sequence + 1

    def has_room(self, size: int) -> bool:
        """Whether an effect of ``size`` proposed now goes into the entry of ``sequence``."""
        return not self._effects or self._bytes + size + _EFFECT_OVERHEAD_BYTES <= limits.ENTRY_BYTES_AIM

    def claim_token(self, claimed_before: int) -> Token:
        """See ``PartitionCore.claim_token``: two claims of one task never share an entry, else they would share a token
        (F30a)."""
        if self._effects and claimed_before == self._log.last_sequence + 1:
            self.close()
        return Token(self.epoch, self._log.last_sequence + 1)

    def close(self) -> None:
        """Encode it, once for the disk and all replicas, and put it at the end of the log."""
        if not self._effects:
            return
        log = self._log
        entry = encoded(log.partition, log.last_sequence + 1, self.epoch, self._effects)
        log.append(entry, self._effects, self._news)
        self._effects, self._news, self._bytes = [], [], 0
