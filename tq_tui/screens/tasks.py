"""The lists of the cluster's tasks and of its dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from textual import on, work
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input

from tq_tui import format as f
from tq_tui import keys
from tq_tui.client.api import ClientError
from tq_tui.client.models import STATES, Event, Task, TaskPage
from tq_tui.filters import FIELDS, SORTS, BadFilter, TaskQuery, parse
from tq_tui.screens.base import ConsoleScreen
from tq_tui.screens.columns import dead_columns, task_columns
from tq_tui.state.cluster_view import ClusterView
from tq_tui.state.task_window import TaskWindow
from tq_tui.widgets.filter_line import FilterInput
from tq_tui.widgets.plain import Plain
from tq_tui.widgets.rows import RowTable

PAGE = 200
NEAR = 40
"""Rows before an end of what is held at which the next page is asked for."""
REFRESH_S = 1.0
REFRESH_IDLE_S = 10.0
REFRESH_SHARE = 0.1
"""A list that is slow to answer is not asked for more than a tenth of the time."""
TYPING_S = 0.25


class TaskListScreen(ConsoleScreen):
    """A list of tasks, page by page; ``query`` is what is asked for, without a cursor."""

    dead: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.query_now = TaskQuery(limit=PAGE, dead=self.dead)
        self.window = TaskWindow()
        self.typed = ""
        self.error = ""
        self.bad_filter = ""
        """What is wrong with the filter; stays until that is mended, whatever answers arrive."""
        self.missing = ""
        self._loading = False
        self._changed = True
        self._asked_at = 0.0
        self._took_s = 0.0

    def body(self) -> Iterable[Widget]:
        columns = dead_columns if self.dead else task_columns
        yield Plain(id="list-title")
        with Horizontal(id="filter-line"):
            yield Plain("/ ", id="filter-mark")
            yield FilterInput("status:failed type:email !queue:bulk text   Enter keeps it, Esc clears it")
        table: RowTable[Task] = RowTable(
            columns(lambda: self.console.view.now_s), lambda task: task.id, widget_id="list", empty="asking …"
        )
        table.sorted_by = self.query_now.sort
        yield table

    @property
    def table(self) -> RowTable[Task]:
        return self.query_one("#list", RowTable)

    def on_mount(self) -> None:
        self.query_one("#filter-line").display = False
        self.table.focus()
        self.set_interval(REFRESH_S, self._refresh_sometimes)

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self._changed = True
        self._refresh_sometimes()

    # --- drawing ---
    def show(self, view: ClusterView) -> None:
        self.table.dim = lambda task: bool(
            (node := view.named(task.node or "")) and not node.is_up and not task.is_final
        )
        self.table.refresh()
        self.query_one("#list-title", Plain).say(self.title_line(view))

    def title_line(self, view: ClusterView) -> str:
        table = self.table
        number = "0" if not table.rows else f.exact(table.cursor + 1 + self.window.offset_pages * PAGE)
        total = self._total(view)
        of = f"/{f.exact(total)}" if total is not None else f"/{len(table.rows)}" + ("+" if self.window.next else "")
        parts = [f"{'Dead letters' if self.dead else 'Tasks'} {number}{of}", SORTS[self.query_now.sort]]
        if self.typed:
            parts.append(f"filter: {self.typed}")
        if table.marks:
            parts.append(f"{len(table.marks)} marked")
        if self.window.new_above:
            parts.append(f"↑ {self.window.new_above}{'+' if self.window.new_above >= PAGE else ''} newer, g shows them")
        if self.missing:
            parts.append(self.missing)
        if wrong := self.bad_filter or self.error:
            parts.append(f"✘ {wrong}")
        return " · ".join(parts)

    def _total(self, view: ClusterView) -> int | None:
        """Number of tasks that match, where the sums know it."""
        query = self.query_now
        if query.text or not view.counts_are_whole:
            return None
        if not query.choices:
            return view.counts.failed if self.dead else view.counts.total
        if len(query.choices) == 1 and query.choices[0][0] == "status" and not self.dead:
            return sum(view.counts.of(state) for state in STATES if query.choices[0][1].admits(state))
        return None

    def _redraw(self) -> None:
        self.table.set_rows(self.window.rows)
        self.table.marks &= {task.id for task in self.window.rows}
        self.table.empty = self._empty()
        self.show(self.console.view)

    def _empty(self) -> str:
        if self.error:
            return self.error
        if self._loading:
            return "asking …"
        if self.typed:
            # Ids may hold colons, so an unknown field is text: it may as well be a slip.
            hint = f"; fields are {': '.join(FIELDS)}:" if ":" in self.query_now.text else ""
            return f"nothing matches this filter{hint}; Esc clears it"
        return "no dead letters: nothing has failed for good" if self.dead else "no tasks yet; n submits one"

    # --- requests ---
    def reload(self) -> None:
        """Load the list from its beginning."""
        self._loading = True
        self.error = ""
        self.table.empty = "asking …"
        self._load()

    @work(exclusive=True, group="list")
    async def _load(self) -> None:
        query = self.query_now
        try:
            page = await self.console.requests.ask(lambda client: client.tasks(query))
            while not page.tasks and page.next is not None:
                cursor = page.next
                page = await self.console.requests.ask(lambda client, cursor=cursor: client.tasks(query.page(cursor)))  # type: ignore[misc]
        except ClientError as why:
            self.error = str(why)
        else:
            self.window.begin(page)
            self.missing, self.error = what_is_missing(page), ""
        self._loading = False
        self._redraw()

    def _refresh_sometimes(self) -> None:
        now = asyncio.get_running_loop().time()
        due_s = REFRESH_S if self._changed or self.window.is_empty or self.error else REFRESH_IDLE_S
        if self._loading or self.console.frozen or self.app.screen is not self:
            return
        if now - self._asked_at < max(due_s, self._took_s / REFRESH_SHARE) - 0.05:
            return
        if self.window.is_empty:
            self.reload()
        else:
            self._refresh_page()
        self._asked_at, self._changed = now, False

    @work(exclusive=True, group="list")
    async def _refresh_page(self) -> None:
        """Read the page in sight again."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        in_sight = self.table.in_sight
        start = self.window.start_of(in_sight[0].id) if in_sight else None
        query = self.query_now.page(start)
        try:
            page = await self.console.requests.ask(lambda client: client.tasks(query))
        except ClientError as why:
            self.error = str(why)
        else:
            self.error, self.missing = "", what_is_missing(page)
            if not self.console.frozen:
                self.window.refresh(start, page)
        self._took_s = loop.time() - began
        self._redraw()

    @work(exclusive=True, group="more")
    async def _more(self, *, after: bool) -> None:
        """Load the next page, or the one before."""
        start = self.window.next
        if not after:
            previous = self.window.previous()
            if previous is None:
                return
            start = previous[0]
        elif start is None:
            return
        query = self.query_now.page(start)
        try:
            page = await self.console.requests.ask(lambda client: client.tasks(query))
        except ClientError as why:
            self.error = str(why)
        else:
            (self.window.add_after if after else self.window.add_before)(page, start)
        self._redraw()

    @on(RowTable.Moved)
    def _moved(self, message: RowTable.Moved) -> None:
        table = self.table
        if message.edge < 0 and self.window.at_start and self.window.new_above:
            self.reload()
        elif table.cursor >= len(table.rows) - NEAR and self.window.next is not None:
            self._more(after=True)
        elif table.cursor < NEAR and not self.window.at_start:
            self._more(after=False)
        self.show(self.console.view)

    @on(RowTable.Opened)
    def _opened(self, message: RowTable.Opened) -> None:
        self.console.open_task(message.row.id)

    def events_received(self, events: Sequence[Event]) -> None:
        self._changed = True
        if events and self.window.apply_events(events):
            self._redraw()

    # --- filter ---
    def act_filter(self) -> None:
        line = self.query_one("#filter-line")
        line.display = True
        box = self.query_one("#filter", Input)
        box.value = self.typed
        box.focus()

    @on(Input.Changed, "#filter")
    def _typing(self, event: Input.Changed) -> None:
        self._filter(event.value)

    @work(exclusive=True, group="typing")
    async def _filter(self, typed: str) -> None:
        await asyncio.sleep(TYPING_S)
        self.set_filter(typed)

    def set_filter(self, typed: str) -> None:
        try:
            query = parse(typed, self.query_now)
        except BadFilter as why:
            self.bad_filter = str(why)
            self.show(self.console.view)
            return
        self.error = self.bad_filter = ""
        self.typed = typed.strip()
        if query != self.query_now or self.window.is_empty:
            self.query_now = query
            self.table.marks.clear()
            self.reload()
        self.show(self.console.view)

    @on(Input.Submitted, "#filter")
    def _typed(self, event: Input.Submitted) -> None:
        self.workers.cancel_group(self, "typing")
        self.query_one(FilterInput).keep(event.value)
        self.set_filter(event.value)
        self._leave_filter()

    def _leave_filter(self) -> None:
        self.query_one("#filter-line").display = False
        self.table.focus()

    def act_back(self) -> bool:
        """Close the filter's line, else clear the filter, else the marks. False: none of them."""
        if self.query_one("#filter-line").display:
            self.workers.cancel_group(self, "typing")
            self._leave_filter()
            if self.bad_filter or self.error or self.typed:
                self.set_filter("")
            return True
        if self.typed or self.bad_filter or self.error:
            self.set_filter("")
            return True
        if self.table.marks:
            self.act_unmark()
            return True
        return False

    # --- order and marks ---
    def act_sort(self) -> None:
        sorts = list(SORTS)
        self._sort(sorts[(sorts.index(self.query_now.sort) + 1) % len(sorts)])

    def act_reverse(self) -> None:
        sort = self.query_now.sort
        self._sort(sort[1:] if sort.startswith("-") else f"-{sort}")

    def _sort(self, sort: str) -> None:
        self.query_now = replace(self.query_now, sort=sort, cursor=None)
        self.table.sorted_by = sort
        self.reload()

    def act_mark(self) -> None:
        key = self.table.current_key
        if key is not None:
            self.table.marks ^= {key}
            self.table.action_move(1)
            self.show(self.console.view)

    def act_mark_range(self) -> None:
        """Mark the rows from the nearest marked one above, else below, to the cursor."""
        rows, here = self.window.rows, self.table.cursor
        marked = [place for place, task in enumerate(rows) if task.id in self.table.marks]
        above = [place for place in marked if place <= here]
        start = max(above) if above else min(marked, default=here)
        first, last = sorted((start, here))
        self.table.marks |= {task.id for task in rows[first : last + 1]}
        self.show(self.console.view)

    def act_mark_all(self) -> None:
        self.table.marks = {task.id for task in self.window.rows}
        self.show(self.console.view)

    def act_unmark(self) -> None:
        self.table.marks = set()
        self.show(self.console.view)

    def chosen_tasks(self) -> list[Task]:
        marked = [task for task in self.window.rows if task.id in self.table.marks]
        return marked or ([self.table.current] if self.table.current is not None else [])

    def tasks_done(self, task_ids: Sequence[str]) -> None:
        self.table.marks -= set(task_ids)
        self._changed, self._asked_at = True, 0.0


class TasksScreen(TaskListScreen):
    kind: ClassVar[str] = keys.TASKS


class DeadScreen(TaskListScreen):
    kind: ClassVar[str] = keys.DEAD
    dead: ClassVar[bool] = True


def what_is_missing(page: TaskPage) -> str:
    """A note that the list is incomplete, or nothing."""
    words = [f"without {', '.join(page.missing)}"] if page.missing else []
    if page.partitions_missing:
        words.append(f"{len(page.partitions_missing)} partitions not answered for")
    return ", ".join(words)
