"""Names that callers choose, as labels of metrics: bounded in number and in length, and one that is
unused makes room.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from tq_node import limits

OTHER = "other"
_ELLIPSIS = "…"
_CUT_BYTES = limits.METRICS_LABEL_BYTES_MAX - len(_ELLIPSIS.encode())
_NEVER_CUT_CHARS = limits.METRICS_LABEL_BYTES_MAX // 4
SWEEP_EVERY_S = 1.0
"""A full table is looked through for unused entries at most so often, however many new names
come."""


class Entry(Protocol):
    """What is counted under one label, or under several."""

    is_used: bool
    """Set by whoever counts; a table sets it back when it looks."""
    seen_s: float
    """When the table saw last that it was used."""


K = TypeVar("K", bound=Hashable)
E = TypeVar("E", bound=Entry)


def cut(name: str) -> str:
    """At most ``limits.METRICS_LABEL_BYTES_MAX`` bytes of UTF-8; what is missing shows as ``…``."""
    if len(name) <= _NEVER_CUT_CHARS:
        return name
    data = name.encode("utf-8", "replace")
    if len(data) <= limits.METRICS_LABEL_BYTES_MAX:
        return name
    return data[:_CUT_BYTES].decode("utf-8", "ignore") + _ELLIPSIS


class LabelTable(Generic[K, E]):
    """The first names that come, ``count_max`` of them; one unused for
    ``limits.METRICS_LABEL_IDLE_S`` makes room for a new one.

    What was counted under a name that made room is dropped, and not added to ``rest``: a sum of
    rates must not jump. A caller may look into ``known`` by itself, and sets ``is_used`` of what it
    finds.

    :param make: a new entry for this key. :param other: the key of ``rest``.
    :param on_dropped: called with the key of an entry that made room.
    :param before_sweep: called before the table looks at ``is_used``, for those who mark other
        entries instead.
    """

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
        """Of all names that found no room; None until there is one."""
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
        """Entries, ``rest`` among them."""
        return len(self.known) + (self.rest is not None)

    def find(self, key: K) -> E:
        """The entry of this key, a new one, or ``rest``; it counts as used now."""
        entry = self.known.get(key)
        if entry is None:
            entry = self._new(key)
        entry.is_used = True
        return entry

    def offer(self, key: K) -> E:
        """As ``find``, for what is there and not in use: nobody makes room for it, and it stays as
        used as it was.
        """
        entry = self.known.get(key)
        if entry is not None:
            return entry
        if len(self.known) < self._count_max:
            return self._new(key)
        return self._missed()

    def sweep(self) -> None:
        """Note what has been used since the last look."""
        self._before_sweep()
        now_s = self._now_s()
        self._next_sweep_s = now_s + SWEEP_EVERY_S
        for entry in self.known.values():
            if entry.is_used:
                entry.is_used, entry.seen_s = False, now_s

    def entries(self) -> list[tuple[K, E]]:
        """Of now, ``rest`` among them."""
        return [*self.known.items(), *([(self._other, self.rest)] if self.rest is not None else [])]

    def drop(self, key: K) -> None:
        del self.known[key]
        self._on_dropped(key)

    def _new(self, key: K) -> E:
        # The common name's own key is never among the known, so nothing is told twice.
        if key != self._other and (len(self.known) < self._count_max or self._make_room()):
            entry = self.known[key] = self._make(key)
            entry.seen_s = self._now_s()
            return entry
        return self._missed()

    def _missed(self) -> E:
        self.missed += 1
        if self.rest is None:
            self.rest = self._make(self._other)
        return self.rest

    def _make_room(self) -> bool:
        if self._now_s() < self._next_sweep_s:
            return False
        self.sweep()
        oldest = min(self.known, key=lambda key: self.known[key].seen_s, default=None)
        if oldest is None or self._now_s() - self.known[oldest].seen_s < limits.METRICS_LABEL_IDLE_S:
            return False
        self.drop(oldest)
        self._next_sweep_s = -1.0  # there may be more of them
        return True
