"""The screen of one task: facts, attempts, error, payload, result, progress and log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Collapsible

from tq_tui import charts, keys, task_view
from tq_tui import format as f
from tq_tui.client.api import ClientError
from tq_tui.client.models import Event, Task
from tq_tui.screens.base import ConsoleScreen
from tq_tui.state.cluster_view import ClusterView
from tq_tui.widgets.drawn import Drawn
from tq_tui.widgets.plain import Plain

REFRESH_S = 1.0
LINES_MAX = 2_000
"""Lines shown of one part: a payload of a megabyte is not laid out to its end."""


class TaskScreen(ConsoleScreen):
    kind: ClassVar[str] = keys.TASK

    def __init__(self) -> None:
        super().__init__()
        self.task_id: str | None = None
        self.task_now: Task | None = None
        self.error = ""

    def body(self) -> Iterable[Widget]:
        yield VerticalScroll(*self._parts(), id="task")

    def _parts(self) -> ComposeResult:
        yield Drawn(widget_id="task-facts", fixed=True)
        yield Plain(id="task-why")
        for part, title in (
            ("attempts", "Attempts"), ("error", "Error"), ("payload", "Payload"), ("result", "Result"),
            ("progress", "Progress"), ("log", "Log"),
        ):  # fmt: skip
            yield Collapsible(Plain(id=f"part-{part}"), title=title, collapsed=False, id=f"fold-{part}")

    def on_mount(self) -> None:
        self.set_interval(REFRESH_S, self._refresh_sometimes)

    def open(self, task_id: str) -> None:
        if task_id != self.task_id:
            self.task_id, self.task_now, self.error = task_id, None, ""
            self.query_one("#task", VerticalScroll).scroll_home(animate=False)
        self.load()
        self.show(self.console.view)

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.query_one("#task", VerticalScroll).focus()
        if self.task_id is not None:
            self.load()

    def _refresh_sometimes(self) -> None:
        if self.app.screen is not self or self.console.frozen or self.task_id is None:
            return
        if self.task_now is None or not self.task_now.is_final:
            self.load()

    def events_received(self, events: Sequence[Event]) -> None:
        if not events or any(event.task_id == self.task_id for event in events):
            self.load()

    @work(exclusive=True, group="task")
    async def load(self) -> None:
        task_id = self.task_id
        if task_id is None:
            return
        # Many events are one request.
        await asyncio.sleep(0.05)
        try:
            task = await self.console.requests.ask(lambda client: client.task(task_id))
        except ClientError as why:
            self.error = str(why)
        else:
            if task_id == self.task_id:
                self.task_now, self.error = task, ""
        self.show(self.console.view)

    def show(self, view: ClusterView) -> None:
        facts, reason = self.query_one("#task-facts", Drawn), self.query_one("#task-why", Plain)
        task = self.task_now
        for fold in self.query(Collapsible):
            fold.display = task is not None
        if task is None:
            words = self.error or (
                f"asking for {self.task_id} …"
                if self.task_id
                else "No task is open: choose one in 2 Tasks and press Enter."
            )
            facts.show(
                lambda width, height: [[(f.fit(words, width), "$foreground-muted" if not self.error else "$error")]]
            )
            reason.display = False
            return
        facts.show(lambda width, height: task_view.facts(task, view, width))
        reason.draw(self._error_line())
        reason.display = bool(self.error)
        width = max(20, self.size.width - 6)
        self._part("attempts", task_view.attempts(task, width), f"Attempts ({len(task.attempts)})")
        self._part("error", _error_lines(task), "Error", there=task.error is not None)
        self._part("payload", _json_lines(task.payload), f"Payload: {_kind(task.payload)}")
        there = task.result is not msgspec.UNSET
        self._part("result", _json_lines(task.result) if there else [], f"Result: {_kind(task.result)}", there=there)
        self._part("progress", task_view.progress(task, width), "Progress", there=task.progress is not None)
        self._part("log", task_view.log(task), f"Log ({len(task.log)})", there=bool(task.log) or bool(task.log_dropped))

    def _error_line(self) -> list[charts.Line]:
        return [[("✘ ", "$error"), (self.error, "$error")]] if self.error else []

    def _part(self, part: str, lines: list[charts.Line], title: str, *, there: bool = True) -> None:
        fold = self.query_one(f"#fold-{part}", Collapsible)
        fold.display = there
        fold.title = title
        self.query_one(f"#part-{part}", Plain).draw(lines)

    def act_fold(self) -> None:
        folds = list(self.query(Collapsible))
        collapse = any(not fold.collapsed for fold in folds if fold.display)
        for fold in folds:
            fold.collapsed = collapse

    def chosen_tasks(self) -> list[Task]:
        return [self.task_now] if self.task_now is not None else []

    def tasks_done(self, task_ids: Sequence[str]) -> None:
        self.load()


def _json_lines(value: object) -> list[charts.Line]:
    lines = f.pretty_json(value).split("\n")
    shown: list[charts.Line] = [[(f.printable(line), "")] for line in lines[:LINES_MAX]]
    if len(lines) > LINES_MAX:
        shown.append([(f"… {f.plural(len(lines) - LINES_MAX, 'more line')}; Y copies all", "$foreground-muted")])
    return shown


def _error_lines(task: Task) -> list[charts.Line]:
    if task.error is None:
        return []
    lines: list[charts.Line] = [[(f.printable(f"{task.error.type}: {task.error.message}"), "bold $error")]]
    return lines + [[(line, "$foreground-muted")] for line in f.printable_lines(task.error.traceback or "") if line]


def _kind(value: object) -> str:
    match value:
        case dict():
            return f.plural(len(value), "field")
        case list():
            return f.plural(len(value), "item")
        case None:
            return "null"
        case str():
            return f.plural(len(value), "character")
        case _:
            return type(value).__name__
