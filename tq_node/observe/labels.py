"""Labels of metrics that callers choose: bounded in number and length; unused ones are evicted."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from tq_node import limits

OTHER = "other"
_ELLIPSIS = "…"
_CUT_BYTES = limits.METRICS_LABEL_BYTES_MAX - len(_ELLIPSIS.encode())
_NEVER_CUT_CHARS = limits.METRICS_LABEL_BYTES_MAX // 4
SWEEP_EVERY_S = 1.0
"""Least time between two searches of a full table for an unused entry."""


class Entry(Protocol):
    """The counts of one label, or of one combination of labels."""

    is_used: bool
    """Set by whoever counts; ``LabelTable.sweep`` clears it."""
    seen_s: float
    """When a sweep last found it used."""


K = TypeVar("K", bound=Hashable)
E = TypeVar("E", bound=Entry)


def cut(name: str) -> str:
    """The name, cut to ``limits.METRICS_LABEL_BYTES_MAX`` bytes of UTF-8; if cut, ends in ``…``."""
    if len(name) <= _NEVER_CUT_CHARS:
        return name
    data = name.encode("utf-8", "replace")
    if len(data) <= limits.METRICS_LABEL_BYTES_MAX:
        return name
    return data[:_CUT_BYTES].decode("utf-8", "ignore") + _ELLIPSIS


class LabelTable(Generic[K, E]):
    """Entries of up to ``count_max`` keys; further keys share ``rest``.

    A full table evicts an entry unused for ``limits.METRICS_LABEL_IDLE_S`` for a new key. Its
    counts are dropped, not added to ``rest``: a sum of rates must not jump. A caller may look up
    ``known`` directly, and then sets ``is_used``.

    :param make: makes the entry of a key.
    :param other: the key of ``rest``.
    :param on_dropped: called with the key of an evicted entry.
    :param before_sweep: called before a sweep reads ``is_used``, to set it on related entries."""

    def __init__(
        self,
        count_max: int,
        make: Callable[[K], E],
        other: K,
        now_s: Callable[[], float],
        *,
        on_dropped: Callable[[K], object] = lambda key: None,
        before_sweep: Callable[[], object] = lambda: None,
    ) -> None:
        self.known: dict[K, E] = {}
        self.rest: E | None = None
        """The entry of all keys without an entry; None until there is one."""
        self.missed = 0
        """How often something was counted in ``rest``."""
        self._count_max = count_max
        self._make = make
        self._other = other
        self._now_s = now_s
        self._on_dropped = on_dropped
        self._before_sweep = before_sweep
        self._next_sweep_s = -1.0

    def __len__(self) -> int:
        """Number of entries, with ``rest``."""
        return len(self.known) + (self.rest is not None)

    def find(self, key: K) -> E:
        """The entry of the key, made if there is room, else ``rest``; marks it as used."""
        entry = self.known.get(key)
        if entry is None:
            entry = self._new(key)
        entry.is_used = True
        return entry

    def offer(self, key: K) -> E:
        """The entry of an unused key: as ``find``, but evicts none and marks nothing as used."""
        entry = self.known.get(key)
        if entry is not None:
            return entry
        if len(self.known) < self._count_max:
            return self._new(key)
        return self._count_missed()

    def sweep(self) -> None:
        """Set ``seen_s`` of the entries used since the last sweep."""
        self._before_sweep()
        now_s = self._now_s()
        self._next_sweep_s = now_s + SWEEP_EVERY_S
        for entry in self.known.values():
            if entry.is_used:
                entry.is_used, entry.seen_s = False, now_s

    def entries(self) -> list[tuple[K, E]]:
        """All keys and entries, with ``rest``."""
        return [*self.known.items(), *([(self._other, self.rest)] if self.rest is not None else [])]

    def drop(self, key: K) -> None:
        del self.known[key]
        self._on_dropped(key)

    def _new(self, key: K) -> E:
        # The key of rest never has an entry, so that no label is exported twice.
        if key != self._other and (len(self.known) < self._count_max or self._evict()):
            entry = self.known[key] = self._make(key)
            entry.seen_s = self._now_s()
            return entry
        return self._count_missed()

    def _count_missed(self) -> E:
        self.missed += 1
        if self.rest is None:
            self.rest = self._make(self._other)
        return self.rest

    def _evict(self) -> bool:
        if self._now_s() < self._next_sweep_s:
            return False
        self.sweep()
        oldest = min(self.known, key=lambda key: self.known[key].seen_s, default=None)
        if oldest is None or self._now_s() - self.known[oldest].seen_s < limits.METRICS_LABEL_IDLE_S:
            return False
        self.drop(oldest)
        self._next_sweep_s = -1.0  # more may be unused
        return True
