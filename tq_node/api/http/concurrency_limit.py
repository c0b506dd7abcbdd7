"""An adaptive limit of concurrent requests: as many as are answered in time (decision 0015).

The limit knows nothing of what is slow: the disk, a peer, the reactor, or another program. Admitted
requests share the same resources, so latency grows with concurrency. ``ConcurrencyLimit`` compares
each request's latency with the target: it admits fewer where that is missed, and more where it is met
and requests were waiting. It reads no clock: the caller reports the latency of each request.
"""

from __future__ import annotations

from tq_node import limits
from tq_node.errors import Busy

TOO_MANY = Busy("the node works on as many tasks as it can take in time")
TOO_LARGE = Busy("the node works on as many bytes of tasks as it can take in time")
TOO_MANY_READS = Busy("the node works on as many lists as it can make in time")
NOT_DONE = -1.0
"""In place of how long it took: it was refused on the way, or its client has gone."""
ALONE = 4
"""With so many in the house at most, what one of them takes is what it takes on an idle node."""
OVERLOAD = 4
"""It is no burst where one is refused for so many that are let in: most of those who would be refused wait to hear it."""
_SHRINK = 0.75
_SHRINK_LEAST = 0.25
_GROW = 1.25
_ALONE_WEIGHT = 1 / 16


class ConcurrencyLimit:
    """One kind of work, measured by count or by bytes.

    :param room_min: is let in however long it takes: with less, group commit has nothing to group. One that is larger is let in
        alone.
    :param room_least: the same in an overload (``OVERLOAD``), which will not be over soon.
    :param room: let in at first, and again where all are in time; ``room_max``: and at most.
    :param wait_s: who is in the house longer than this on average is there too long.
    :param times: the same, as a multiple of what it takes alone, once that is known; within ``wait_s_min`` and ``wait_s_max``.
        0: ``wait_s`` stays.
    """

    __slots__ = (
        "_alone_s",
        "_alone_times",
        "_in_all_s",
        "_left",
        "_refused",
        "_room_first",
        "_round",
        "_wait_s_max",
        "_wait_s_min",
        "entered",
        "held",
        "room",
        "room_least",
        "room_max",
        "room_min",
        "wait_s",
    )

    def __init__(
        self,
        *,
        room_min: int,
        room_least: int,
        room: int,
        room_max: int,
        wait_s: float,
        times: int = 0,
        wait_s_min: float = 0.0,
        wait_s_max: float = 0.0,
    ) -> None:
        assert 0 < room_least <= room_min <= room <= room_max
        self.room_least, self.room_min, self.room, self.room_max = room_least, room_min, room, room_max
        self._room_first = room
        self.wait_s = wait_s
        self.held = 0
        self.entered = 0
        """How many were ever let in."""
        self._alone_times = times
        self._alone_s = 0.0
        """What it takes one that is alone, on average; 0: not known."""
        self._wait_s_min, self._wait_s_max = wait_s_min, wait_s_max
        # A round is over when as much has left as may be in: what is judged then began under the room that is judged.
        self._round = room
        self._left = 0
        self._in_all_s = 0.0
        self._refused = 0

    def has_room(self, cost: int) -> bool:
        """Whether one of this size would be let in now."""
        return self.held + cost <= self.room or not self.held

    def enter(self, cost: int = 1) -> int:
        """:returns: 0, and nothing else is done: there is no room. Else what ``leave`` wants to hear."""
        held = self.held + cost
        if held > self.room and self.held:
            self._refused += 1
            return 0
        has_company = self.held > ALONE
        self.held = held
        self.entered += 1
        return -1 if has_company else self.entered

    def leave(self, ticket: int, took_s: float, cost: int = 1) -> None:
        """:param took_s: how long it was in the house, or ``NOT_DONE``."""
        self.held -= cost
        if took_s < 0.0:
            return
        if ticket > 0 and self.entered - ticket <= ALONE and not self._refused and self.room >= self.room_min:
            self._learn(took_s)
        self._left += 1
        self._in_all_s += took_s
        self._round -= cost
        if self._round <= 0 or not self.held:
            self._judge()

    def _learn(self, took_s: float) -> None:
        """It had no company from beginning to end."""
        if self._alone_s:
            self._alone_s += (took_s - self._alone_s) * _ALONE_WEIGHT
        else:
            self._alone_s = took_s
        if self._alone_times:
            self.wait_s = min(max(self._alone_s * self._alone_times, self._wait_s_min), self._wait_s_max)

    def _judge(self) -> None:
        if self._in_all_s > self.wait_s * self._left:
            floor = min(self.room, self.room_min)
            if self._refused * OVERLOAD > self._left:
                floor = self.room_least
            # What is twice as long in the house as it should be leaves half the room.
            shrink = min(max(self.wait_s * self._left / self._in_all_s, _SHRINK_LEAST), _SHRINK)
            self.room = max(floor, int(self.room * shrink))
        elif self._refused or self.room < self._room_first:
            # After an overload the room for a burst comes back, wanted or not.
            self.room = min(self.room_max, int(self.room * _GROW) + 1)
        self._round = max(self.held, self.room_min)
        self._left = self._refused = 0
        self._in_all_s = 0.0


def gate_of_submits() -> ConcurrencyLimit:
    """By count: single tasks."""
    return ConcurrencyLimit(
        room_min=limits.SUBMITS_AT_ONCE_MIN,
        room_least=limits.SUBMITS_AT_ONCE_LEAST,
        room=limits.SUBMITS_AT_ONCE,
        room_max=limits.REQUESTS_IN_FLIGHT_MAX,
        wait_s=limits.SUBMIT_WAIT_MS / 1000,
        times=limits.SUBMIT_WAIT_TIMES,
        wait_s_min=limits.SUBMIT_WAIT_MS_MIN / 1000,
        wait_s_max=limits.SUBMIT_WAIT_MS_MAX / 1000,
    )


def gate_of_bytes() -> ConcurrencyLimit:
    """By bytes of bodies: batches, and single tasks with a long body."""
    return ConcurrencyLimit(
        room_min=limits.LARGE_AT_ONCE_BYTES,
        room_least=limits.LARGE_AT_ONCE_BYTES_LEAST,
        room=limits.LARGE_AT_ONCE_BYTES,
        room_max=limits.LARGE_AT_ONCE_BYTES_MAX,
        wait_s=limits.LARGE_WAIT_MS / 1000,
    )


def gate_of_reads() -> ConcurrencyLimit:
    """By count: lists of a usual length."""
    return ConcurrencyLimit(
        room_min=limits.READS_AT_ONCE,
        room_least=limits.READS_AT_ONCE,
        room=2 * limits.READS_AT_ONCE,
        room_max=limits.REQUESTS_IN_FLIGHT_MAX,
        wait_s=limits.READ_WAIT_MS / 1000,
    )


def gate_of_long_reads() -> ConcurrencyLimit:
    """By the tasks that are asked for."""
    return ConcurrencyLimit(
        room_min=limits.LIST_LIMIT_MAX,
        room_least=limits.LIST_LIMIT_MAX,
        room=limits.LONG_READ_ROWS_AT_ONCE,
        room_max=4 * limits.LONG_READ_ROWS_AT_ONCE,
        wait_s=limits.READ_WAIT_MS / 1000,
    )
