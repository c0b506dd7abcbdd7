"""The screen of events: transitions of tasks as they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from textual import on
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input

from tq_tui import format as f
from tq_tui import keys
from tq_tui.client.models import Event, Task
from tq_tui.screens.base import ConsoleScreen
from tq_tui.screens.columns import event_columns
from tq_tui.state.cluster_view import ClusterView
from tq_tui.state.event_log import LoggedEvent
from tq_tui.widgets.filter_line import FilterInput
from tq_tui.widgets.plain import Plain
from tq_tui.widgets.rows import Column, RowTable

DRAW_S = 0.1


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
        yield RowTable(columns, lambda logged: str(logged.number), widget_id="list", empty="nothing has happened yet")

    @property
    def table(self) -> RowTable[LoggedEvent]:
        return self.query_one("#list", RowTable)

    def on_mount(self) -> None:
        self.query_one("#filter-line").display = False
        self.table.focus()
        self.set_interval(DRAW_S, self._draw)

    def on_screen_resume(self) -> None:
        self._stale = True
        super().on_screen_resume()
        self._draw()

    def events_received(self, events: Sequence[Event]) -> None:
        self._stale = True

    def _draw(self) -> None:
        if not self._stale or self.console.frozen or self.app.screen is not self:
            return
        self._stale = False
        table = self.table
        table.set_rows(self.console.events.matching(self.typed))
        if self.following:
            table.go_to(len(table.rows) - 1)
        self.show(self.console.view)

    def show(self, view: ClusterView) -> None:
        log = self.console.events
        parts = [f"Events {f.exact(len(self.table.rows))} of {f.exact(log.total)}"]
        parts.append("following" if self.following and not self.console.frozen else "held: f follows")
        if self.typed:
            parts.append(f"find: {self.typed}")
        if log.gaps:
            parts.append(f"{f.plural(log.gaps, 'gap')} (a stream began anew)")
        self.query_one("#list-title", Plain).say(" · ".join(parts))

    @on(RowTable.Moved)
    def _moved(self, message: RowTable.Moved) -> None:
        """Stop following when the cursor moves, follow again when it reaches the end."""
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
        logged = self.table.current
        if logged is None:
            return []
        event = logged.event
        return [Task(id=event.task_id, type=event.type, status=event.to, queue=event.queue, partition=event.partition)]


def _of_event(column: Column[Event]) -> Column[Any]:
    """A column of ``Event`` as one of ``LoggedEvent``."""
    cell = column.cell
    return replace(cast("Column[Any]", column), cell=lambda logged: cell(logged.event))
