"""Base of the six screens: tabs and health above, keys below, the tasks or node of an action."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from tq_tui import keys
from tq_tui.client.models import Event, Task
from tq_tui.requests import Requests
from tq_tui.state.cluster_view import ClusterView
from tq_tui.state.event_log import EventLog
from tq_tui.widgets.bars import HealthLine, KeyLine, TabLine


class ScreenHost(Protocol):
    """What a screen may use of the app that shows it."""

    @property
    def view(self) -> ClusterView:
        """The view to draw; while the console is frozen, an older one than is known."""
        ...

    @property
    def frozen(self) -> bool: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def badge(self) -> str:
        """A note behind the tabs: read-only, frozen."""
        ...

    @property
    def events(self) -> EventLog: ...
    @property
    def requests(self) -> Requests: ...
    def open_task(self, task_id: str) -> None:
        """Show the screen of one task."""
        ...


class ConsoleScreen(Screen[None]):
    """A screen; ``kind``: its name in ``keys.ACTS``. In front, ``show`` gets each new view."""

    kind: ClassVar[str] = ""

    def compose(self) -> ComposeResult:
        yield TabLine(self.kind)
        yield HealthLine()
        yield from self.body()
        yield KeyLine()

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError

    @property
    def console(self) -> ScreenHost:
        return cast("ScreenHost", self.app)

    def on_screen_resume(self) -> None:
        self.show_all(self.console.view)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_all, self.console.view)

    def show_all(self, view: ClusterView) -> None:
        """Draw tabs, health and keys, then the body."""
        if not self.is_mounted or not self.query(KeyLine):
            return
        self.query_one(TabLine).set_badge(self.console.badge)
        self.query_one(HealthLine).show(view)
        self.query_one(KeyLine).show(keys.available(self.kind, readonly=self.console.readonly))
        self.show(view)

    def show(self, view: ClusterView) -> None:
        raise NotImplementedError

    def events_received(self, events: Sequence[Event]) -> None:
        """React to changes of tasks; an empty sequence says that some were missed."""

    # --- what an action is for ---
    def chosen_tasks(self) -> list[Task]:
        """The marked tasks, else the one under the cursor."""
        return []

    def chosen_node(self) -> str | None:
        return None

    def tasks_done(self, task_ids: Sequence[str]) -> None:
        """Unmark these tasks and read them again: an action on them has succeeded."""
