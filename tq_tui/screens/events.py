"""What happens to tasks, as it happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar, cast

import msgspec
from textual import on
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input

from tq_tui import format as f
from tq_tui import keys
from tq_tui.client.models import Event, Task
from tq_tui.screens.base import ConsoleScreen
from tq_tui.screens.columns import event_columns
from tq_tui.state import ClusterView
from tq_tui.widgets.filter_line import FilterInput
from tq_tui.widgets.plain import Plain
from tq_tui.widgets.rows import Column, RowTable

KEPT = 5_000
DRAW_S = 0.1


class Heard(msgspec.Struct, frozen=True):
    """An event with a number of the console's own: nodes number theirs apart."""

    number: int
    event: Event


class EventLog:
    """The latest events of all nodes, in the order they came here. Bounded; kept while the screen is elsewhere."""

    def __init__(self, kept: int = KEPT) -> None:
        self._heard: deque[Heard] = deque(maxlen=kept)
        self._numbers = count(1)
        self.total = 0
        self.missed = 0

    def hear(self, events: Sequence[Event]) -> None:
        if not events:
            self.missed += 1
        self.total += len(events)
        self._heard.extend(Heard(next(self._numbers), event) for event in events)

    def found(self, text: str) -> list[Heard]:
        """Those that have every word somewhere."""
        words = text.lower().split()
        if not words:
            return list(self._heard)
        return [heard for heard in self._heard if _matches(heard.event, words)]


def _matches(event: Event, words: Sequence[str]) -> bool:
    text = f"{event.task_id} {event.type} {event.queue} {event.before} {event.to} {event.node}".lower()
    return all((word[1:] not in text) if word.startswith("!") and len(word) > 1 else word in text for word in words)


class EventsScreen(ConsoleScreen):
    kind: ClassVar[str] = keys.EVENTS

    def __init__(self) -> None:
        super().__init__()
        self.following = True
        self.typed = ""
        self._stale = True

    def body(self) -> Iterable[Widget]:
        yield Plain(id="list-title")
        with Horizontal(id="filter-line"):
            yield Plain("/ ", id="filter-mark")
            yield FilterInput("words that an event must have, !word that it must not")
        columns = [_of_event(column) for column in event_columns()]
        yield RowTable(columns, lambda heard: str(heard.number), widget_id="list", empty="nothing has happened yet")

    @property
    def table(self) -> RowTable[Heard]:
        return self.query_one("#list", RowTable)

    def on_mount(self) -> None:
        self.query_one("#filter-line").display = False
        self.table.focus()
        self.set_interval(DRAW_S, self._draw)

    def on_screen_resume(self) -> None:
        self._stale = True
        super().on_screen_resume()
        self._draw()

    def hear(self, events: Sequence[Event]) -> None:
        self._stale = True

    def _draw(self) -> None:
        if not self._stale or self.console.frozen or self.console.screen is not self:
            return
        self._stale = False
        table = self.table
        table.set_rows(self.console.events.found(self.typed))
        if self.following:
            table.go_to(len(table.rows) - 1)
        self.show(self.console.view)

    def show(self, view: ClusterView) -> None:
        log = self.console.events
        parts = [f"Events {f.exact(len(self.table.rows))} of {f.exact(log.total)}"]
        parts.append("following" if self.following and not self.console.frozen else "held: f follows")
        if self.typed:
            parts.append(f"find: {self.typed}")
        if log.missed:
            parts.append(f"{f.plural(log.missed, 'gap')} (a stream began anew)")
        self.query_one("#list-title", Plain).say(" · ".join(parts))

    @on(RowTable.Moved)
    def _moved(self, message: RowTable.Moved) -> None:
        """Whoever moves looks at something; whoever goes to the end follows."""
        table = self.table
        at_end = table.cursor >= len(table.rows) - 1
        if self.following != at_end:
            self.following = at_end
            self.show(self.console.view)

    @on(RowTable.Opened)
    def _opened(self, message: RowTable.Opened) -> None:
        self.console.open_task(message.row.event.task_id)

    def act_follow(self) -> None:
        self.following = not self.following
        self._stale = True
        self._draw()
        self.show(self.console.view)

    def act_filter(self) -> None:
        self.query_one("#filter-line").display = True
        self.query_one("#filter", Input).focus()

    @on(Input.Changed, "#filter")
    def _typing(self, event: Input.Changed) -> None:
        self.typed = event.value.strip()
        self._stale = True
        self._draw()

    @on(Input.Submitted, "#filter")
    def _typed(self, event: Input.Submitted) -> None:
        self.query_one(FilterInput).keep(event.value)
        self.query_one("#filter-line").display = False
        self.table.focus()

    def act_back(self) -> bool:
        line = self.query_one("#filter-line")
        if not line.display and not self.typed:
            return False
        line.display = False
        self.query_one("#filter", Input).value = ""
        self.table.focus()
        return True

    def chosen_tasks(self) -> list[Task]:
        heard = self.table.current
        if heard is None:
            return []
        event = heard.event
        return [Task(id=event.task_id, type=event.type, status=event.to, queue=event.queue, partition=event.partition)]


def _of_event(column: Column[Event]) -> Column[Any]:
    """A column of events as one of what was heard."""
    cell = column.cell
    return replace(cast("Column[Any]", column), cell=lambda heard: cell(heard.event))
