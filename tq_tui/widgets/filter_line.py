"""The filter's input line, with a history."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

PAST_MAX = 50


class FilterInput(Input):
    """An input whose ``↑`` and ``↓`` go through what was kept with ``keep``, the latest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "past(-1)", show=False),
        Binding("down", "past(1)", show=False),
    ]

    def __init__(self, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, id="filter", select_on_focus=False, compact=True)
        self._past: list[str] = []
        self._place = 0

    def keep(self, typed: str) -> None:
        typed = typed.strip()
        if typed:
            self._past = [*(text for text in self._past if text != typed), typed][-PAST_MAX:]
        self._place = len(self._past)

    def action_past(self, step: int) -> None:
        """One step back or forward in the history; past the latest entry the line is empty."""
        place = max(0, min(len(self._past), self._place + step))
        if self._past and place != self._place:
            self._place = place
            self.value = self._past[place] if place < len(self._past) else ""
            self.cursor_position = len(self.value)
