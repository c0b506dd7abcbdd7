"""PURE. The latest events of all nodes, kept while other screens are in front."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

import msgspec

from tq_tui.client.models import Event

KEPT_MAX = 5_000


class LoggedEvent(msgspec.Struct, frozen=True):
    """An event with the console's number for it: numbers of different nodes may be equal."""

    number: int
    event: Event


class EventLog:
    """The latest events of all nodes as the console received them, ``kept_max`` at most."""

    def __init__(self, kept_max: int = KEPT_MAX) -> None:
        self._events: deque[LoggedEvent] = deque(maxlen=kept_max)
        self._numbers = count(1)
        self.total = 0
        """Number of events received, dropped ones included."""
        self.gaps = 0
        """Number of times that events may have been missed."""

    def add(self, events: Sequence[Event]) -> None:
        """Append ``events``; an empty sequence says that some were missed."""
        if not events:
            self.gaps += 1
        self.total += len(events)
        self._events.extend(LoggedEvent(next(self._numbers), event) for event in events)

    def matching(self, text: str) -> list[LoggedEvent]:
        """Events that contain every word of ``text``, and none that begins with ``!`` there."""
        words = text.lower().split()
        if not words:
            return list(self._events)
        return [logged for logged in self._events if _matches(logged.event, words)]


def _matches(event: Event, words: Sequence[str]) -> bool:
    text = f"{event.task_id} {event.type} {event.queue} {event.before} {event.to} {event.node}".lower()
    return all((word[1:] not in text) if word.startswith("!") and len(word) > 1 else word in text for word in words)
