"""A table whose cursor follows a row's key; where narrow, it leaves columns out by rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from tq_tui import format as f
from tq_tui.charts import Line, Piece
from tq_tui.widgets.plain import content

R = TypeVar("R")
GAP = 1
POINTER, MARKED = "▸", "◆"


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """``rank``: the highest is left out first. ``grow``: takes spare width up to ``width_max``."""

    key: str
    title: str
    width: int
    cell: Callable[[R], Piece]
    rank: int = 0
    grow: int = 0
    right: bool = False
    middle: bool = False
    width_max: int = 0


def fitting(columns: Sequence[Column[R]], width: int) -> list[tuple[Column[R], int]]:
    """The columns that have room, in their order, with their widths."""
    kept: list[Column[R]] = []
    room = width
    for column in sorted(columns, key=lambda column: column.rank):
        needed = column.width + (GAP if kept else 0)
        if needed > room and kept:
            break
        kept.append(column)
        room -= needed
    widths = {column.key: min(column.width, width) for column in kept}
    growing = [column for column in kept if column.grow]
    while room > 0 and growing:
        share = max(1, room // sum(column.grow for column in growing))
        for column in list(growing):
            more = min(room, share * column.grow)
            if column.width_max:
                more = min(more, column.width_max - widths[column.key])
            if more <= 0:
                growing.remove(column)
                continue
            widths[column.key] += more
            room -= more
    return [(column, widths[column.key]) for column in columns if column.key in widths]


class RowTable(Widget, Generic[R], can_focus=True):
    """A table of rows with unique keys. ``marks`` and ``empty`` (text without rows) may be set."""

    DEFAULT_CSS = "RowTable { height: 1fr; width: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup,ctrl+b", "page(-1)", show=False),
        Binding("pagedown,ctrl+f", "page(1)", show=False),
        Binding("home,g", "edge(0)", show=False),
        Binding("end,G", "edge(1)", show=False),
        Binding("enter,l", "open", show=False),
    ]

    class Moved(Message):
        """The cursor is on another row, or pushed on at the first (``edge`` -1) or last (1) row."""

        def __init__(self, table: RowTable[Any], edge: int = 0) -> None:
            super().__init__()
            self.table, self.edge = table, edge

    class Opened(Message):
        """The row was opened, by Enter or a double click."""

        def __init__(self, table: RowTable[Any], row: Any) -> None:
            super().__init__()
            self.table, self.row = table, row

    def __init__(
        self,
        columns: Sequence[Column[R]],
        key: Callable[[R], str],
        *,
        widget_id: str | None = None,
        empty: str = "nothing here",
    ) -> None:
        super().__init__(id=widget_id)
        self.columns = columns
        self.rows: Sequence[R] = ()
        self.marks: set[str] = set()
        self.empty = empty
        self.sorted_by = ""
        self.dim: Callable[[R], bool] = lambda row: False
        self._key = key
        self._cursor = 0
        self._top = 0

    # --- what others set and ask ---
    @property
    def cursor(self) -> int:
        return self._cursor

    @property
    def current(self) -> R | None:
        return self.rows[self._cursor] if self._cursor < len(self.rows) else None

    @property
    def current_key(self) -> str | None:
        return self._key(self.current) if self.current is not None else None

    @property
    def page_rows(self) -> int:
        return max(1, self.size.height - 1)

    @property
    def in_sight(self) -> Sequence[R]:
        return self.rows[self._top : self._top + self.page_rows]

    def set_rows(self, rows: Sequence[R]) -> None:
        """Replace the rows. The cursor stays on its row and, if possible, at its height."""
        key, depth = self.current_key, self._cursor - self._top
        self.rows = rows
        found = self._find(key) if key is not None else None
        if found is not None:
            # At the very top the list grows downwards until the cursor meets the bottom.
            keep_top = self._top == 0 and found < self.page_rows
            self._cursor = found
            self._top = 0 if keep_top else max(0, found - depth)
        self._clamp()
        self.refresh()

    def _find(self, key: str) -> int | None:
        if self._cursor < len(self.rows) and self._key(self.rows[self._cursor]) == key:
            return self._cursor
        return next((place for place, row in enumerate(self.rows) if self._key(row) == key), None)

    def go_to(self, place: int) -> None:
        before = self._cursor
        self._cursor = place
        self._clamp()
        if self._cursor != before:
            self.post_message(self.Moved(self))
        self.refresh()

    def _clamp(self) -> None:
        self._cursor = max(0, min(self._cursor, len(self.rows) - 1))
        top_min = self._cursor - self.page_rows + 1
        self._top = max(0, top_min, min(self._top, self._cursor, max(0, len(self.rows) - self.page_rows)))

    # --- what people do ---
    def action_move(self, step: int) -> None:
        wanted = self._cursor + step
        if wanted < 0 or wanted >= len(self.rows):
            self.post_message(self.Moved(self, edge=1 if step > 0 else -1))
        self.go_to(wanted)

    def action_page(self, step: int) -> None:
        self.action_move(step * max(1, self.page_rows - 1))

    def action_edge(self, end: int) -> None:
        self.post_message(self.Moved(self, edge=1 if end else -1))
        self.go_to(len(self.rows) - 1 if end else 0)

    def action_open(self) -> None:
        if self.current is not None:
            self.post_message(self.Opened(self, self.current))

    def on_click(self, event: events.Click) -> None:
        if event.y < 1 or event.y > len(self.in_sight):
            return
        self.go_to(self._top + event.y - 1)
        if event.chain == 2:
            self.action_open()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-3)

    def on_resize(self) -> None:
        # What is painted already was painted for the place before.
        self._clamp()
        self.refresh()

    # --- what is seen ---
    def render(self) -> Content:
        width = self.size.width
        layout = fitting(self.columns, width - 2)
        lines: list[Line] = [self._heading(layout, width)]
        if not self.rows:
            lines.append([("  " + f.fit(self.empty, max(0, width - 2)), "$foreground-muted italic")])
        for place, row in enumerate(self.in_sight, self._top):
            lines.append(self._line(row, layout, width, is_current=place == self._cursor))
        return content(lines)

    def _heading(self, layout: Sequence[tuple[Column[R], int]], width: int) -> Line:
        text = "  "
        for column, cells in layout:
            arrow = "▼" if self.sorted_by == f"-{column.key}" else "▲" if self.sorted_by == column.key else ""
            text += f.fit(column.title + arrow, cells, right=column.right) + " " * GAP
        return [(f.fit(text[:-GAP], width), "bold $foreground-muted on $panel")]

    def _line(self, row: R, layout: Sequence[tuple[Column[R], int]], width: int, *, is_current: bool) -> Line:
        marked = self._key(row) in self.marks
        back = " on $primary-muted bold" if is_current and self.has_focus else " on $panel" if is_current else ""
        grey = self.dim(row)
        line: Line = [
            (POINTER if is_current else " ", f"$accent{back}"),
            (MARKED if marked else " ", f"$accent bold{back}"),
        ]
        used = 2
        for column, cells in layout:
            text, style = column.cell(row)
            shown = f.fit_middle(text, cells) if column.middle else f.fit(text, cells, right=column.right)
            line.append((shown, ("$foreground-disabled" if grey else style) + back))
            line.append((" " * GAP, back.strip()))
            used += cells + GAP
        if used > width:
            line.pop()
        elif used < width:
            line.append((" " * (width - used), back.strip()))
        return line
