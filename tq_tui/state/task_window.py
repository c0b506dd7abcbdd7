"""PURE. A window on a very long list: pages of the server's, each known by its first cursor.

A cursor is a place in the order, not a number: rows of a page change, its beginning does not. So
memory is bounded, the way back is known, and a page can be read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

import msgspec

from tq_tui.client.models import FINAL_STATES, Event, Task, TaskPage

PAGES_MAX = 8
FIRST_PAGE_ROWS_MAX = 1_000
"""Bound of the first page, at whose head new tasks are added."""


@dataclass(slots=True)
class _Page:
    start: str | None
    tasks: list[Task]
    next: str | None


class TaskWindow:
    """The rows held, in the server's order, each id once."""

    def __init__(self) -> None:
        self._pages: list[_Page] = []
        self._before: list[str | None] = []
        """Cursors of the pages dropped at the front, the nearest last."""
        self._rows: list[Task] | None = None
        self.new_above = 0
        """Number of tasks known to be before the first row, and not shown."""

    @property
    def rows(self) -> list[Task]:
        if self._rows is None:
            each = {task.id: task for page in reversed(self._pages) for task in reversed(page.tasks)}
            self._rows = list(reversed(each.values()))
        return self._rows

    @property
    def offset_pages(self) -> int:
        return len(self._before)

    @property
    def next(self) -> str | None:
        return self._pages[-1].next if self._pages else None

    @property
    def is_empty(self) -> bool:
        return not self._pages

    @property
    def at_start(self) -> bool:
        return not self._before

    def previous(self) -> tuple[str | None] | None:
        """The cursor of the page before the window, in a tuple; None: it is at the start."""
        return (self._before[-1],) if self._before else None

    def begin(self, page: TaskPage) -> None:
        """Replace everything by the first page."""
        self._pages = [_Page(None, list(page.tasks), page.next)]
        self._before = []
        self.new_above = 0
        self._rows = None

    def add_after(self, page: TaskPage, start: str | None) -> None:
        """Append the page that begins at ``start``; ignored unless the window ends there."""
        if not self._pages or self.next != start:
            return
        if page.tasks or page.next is None:
            self._pages.append(_Page(start, list(page.tasks), page.next))
        else:
            self._pages[-1].next = page.next  # the server looked at many rows and found none
        if len(self._pages) > PAGES_MAX:
            self._before.append(self._pages.pop(0).start)
        self._rows = None

    def add_before(self, page: TaskPage, start: str | None) -> None:
        if not self._before or self._before[-1] != start:
            return
        self._before.pop()
        self._pages.insert(0, _Page(start, list(page.tasks), self._pages[0].start))
        if len(self._pages) > PAGES_MAX:
            self._pages.pop()
        self._rows = None

    def start_of(self, task_id: str) -> str | None:
        """The cursor of the page with the task, else of the first one held."""
        for page in self._pages:
            if any(task.id == task_id for task in page.tasks):
                return page.start
        return self._pages[0].start if self._pages else None

    def refresh(self, start: str | None, fresh: TaskPage) -> None:
        """Replace the rows of a page that was read again."""
        place = next((place for place, page in enumerate(self._pages) if page.start == start), None)
        if place is None:
            return
        page = self._pages[place]
        if start is None and self.at_start:
            self._refresh_first(page, fresh)
        else:
            known = {task.id for task in page.tasks}
            # The server may have cut it shorter: rows behind the cut stay.
            last = fresh.tasks[-1].id if fresh.tasks else None
            tail = _after(page.tasks, last) if fresh.next is not None and last in known else []
            page.tasks = [*fresh.tasks, *tail]
        self._rows = None

    def _refresh_first(self, page: _Page, fresh: TaskPage) -> None:
        known = {task.id for task in page.tasks}
        if not known or not fresh.tasks or fresh.next is None:
            page.tasks, page.next = list(fresh.tasks), fresh.next
            self._pages = [page]
            return
        newer = next((place for place, task in enumerate(fresh.tasks) if task.id in known), len(fresh.tasks))
        if newer == len(fresh.tasks) or len(page.tasks) + newer > FIRST_PAGE_ROWS_MAX:
            # More new tasks than a page: joining leaves a gap, replacing drops the cursor's task.
            self._update(fresh.tasks)
            self.new_above = newer
            return
        last = fresh.tasks[-1].id
        if last not in known and len(self._pages) == 1:
            page.next = fresh.next  # it reaches further than what was held
        page.tasks = [*fresh.tasks, *(_after(page.tasks, last) if last in known else ())]
        self.new_above = 0

    def _update(self, tasks: Iterable[Task]) -> None:
        fresh = {task.id: task for task in tasks}
        for page in self._pages:
            page.tasks = [fresh.get(task.id, task) for task in page.tasks]

    def put(self, task: Task) -> None:
        """Replace a task's row by a newer one."""
        self._update([task])
        self._rows = None

    def apply_events(self, events: Sequence[Event]) -> bool:
        """Apply transitions to the rows held. True: a row has changed."""
        latest: dict[str, list[Event]] = {}
        for event in events:
            latest.setdefault(event.task_id, []).append(event)
        changed = False
        for page in self._pages:
            for place, task in enumerate(page.tasks):
                if changes := latest.get(task.id):
                    page.tasks[place] = reduce(after, changes, task)
                    changed = True
        if changed:
            self._rows = None
        return changed


def after(task: Task, event: Event) -> Task:
    """A row after a transition, as far as the event says."""
    at = datetime.fromisoformat(event.at)
    changes: dict[str, object] = {"status": event.to, "attempt": event.attempt}
    if event.node is not None:
        changes["node"] = event.node
    if event.to == "processing":
        changes |= {"started_at": at, "completed_at": None, "worker": event.node or task.worker, "progress": None}
    elif event.to in FINAL_STATES:
        changes["completed_at"] = at
    else:
        changes |= {"started_at": None, "completed_at": None}
    return msgspec.structs.replace(task, **changes)


def _after(tasks: list[Task], task_id: str | None) -> list[Task]:
    place = next((place for place, task in enumerate(tasks) if task.id == task_id), len(tasks))
    return tasks[place + 1 :]
