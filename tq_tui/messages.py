"""Messages from nodes' watches to the console; nothing else crosses from network to screens."""

from __future__ import annotations

from collections.abc import Sequence

from textual.message import Message

from tq_tui.client.models import Event
from tq_tui.state.cluster_view import Observation


class Observed(Message):
    """A watch has polled a node, or failed to."""

    def __init__(self, observation: Observation) -> None:
        super().__init__()
        self.observation = observation


class EventsReceived(Message):
    """Tasks have changed; no events at all say that some changes were missed."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__()
        self.events = events
