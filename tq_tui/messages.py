"""What watches tell the console. Nothing else crosses from the network to the screens."""

from __future__ import annotations

from collections.abc import Sequence

from textual.message import Message

from tq_tui.client.models import Event
from tq_tui.state import Observation


class Observed(Message):
    """Something was seen of a node."""

    def __init__(self, observation: Observation) -> None:
        super().__init__()
        self.observation = observation


class Heard(Message):
    """Tasks have changed; an empty heap says that some changes were missed. Heaps that wait join into one."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__()
        self.events = events
