"""Fair shares of what all requests of a server share: places in flight, and bytes of bodies.

Who has how much is not counted with each request. It is looked up, connection by connection, when
there is no room and somebody asks for more: at most every ``limits.CENSUS_S``, and what is given
meanwhile is added. A caller with less than its share gets more, beyond the bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from tq_node import limits


class Held(Protocol):
    """A connection, as far as it holds something."""

    who: str
    """Whose it is: as in ``Exchange``."""

    @property
    def in_flight(self) -> int:
        """Its requests whose handler was called and that are not answered."""
        ...

    @property
    def body_bytes(self) -> int:
        """Of the bodies of its requests."""
        ...


class Census:
    """Shares of one bound.

    :param count: what a connection has of it."""

    def __init__(
        self, connections: Iterable[Held], count: Callable[[Held], int], most: int, now_s: Callable[[], float]
    ) -> None:
        self._connections = connections
        self._count = count
        self._most = most
        self._now_s = now_s
        self._of: dict[str, int] = {}
        self._until_s = 0.0

    def takes(self, who: str, more: int, total: int) -> bool:
        """Whether a caller gets more although there is no room: it has less than its share, of
        which there are as many as callers that have anything. Twice the bound is never passed.

        :param total: what all have, ``more`` included."""
        if total > 2 * self._most:
            return False
        now_s = self._now_s()
        if now_s >= self._until_s:
            self._until_s = now_s + limits.CENSUS_S
            self._of = {}
            for connection in self._connections:
                count = self._count(connection)
                if count:
                    self._of[connection.who] = self._of.get(connection.who, 0) + count
        own = self._of.get(who, 0) + more
        callers = len(self._of) + (who not in self._of)
        if callers == 1 or own > self._most / callers:
            return False
        self._of[who] = own
        return True
