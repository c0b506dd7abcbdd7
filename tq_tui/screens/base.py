"""What all six screens have: tabs and health above, keys below, a view that they are given, and tasks or a node that is meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from tq_tui import keys
from tq_tui.client.models import Event, Task
from tq_tui.state import ClusterView
from tq_tui.widgets.bars import HealthLine, KeyLine, TabLine

if TYPE_CHECKING:
    from tq_tui.app import Console


class ConsoleScreen(Screen[None]):
    """``kind``: its name in the table of keys. ``show`` is called with each new view while the screen is in front."""

    kind: ClassVar[str] = ""

    def compose(self) -> ComposeResult:
        yield TabLine(self.kind)
        yield HealthLine()
        yield from self.body()
        yield KeyLine()

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError

    @property
    def console(self) -> Console:
        return cast("Console", self.app)

    def on_screen_resume(self) -> None:
        self.show_all(self.console.view)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_all, self.console.view)

    def show_all(self, view: ClusterView) -> None:
        """The lines around, then what is the screen's own."""
        if not self.is_mounted or not self.query(KeyLine):
            return
        self.query_one(TabLine).set_badge(self.console.badge)
        self.query_one(HealthLine).show(view)
        self.query_one(KeyLine).show(keys.available(self.kind, readonly=self.console.readonly))
        self.show(view)

    def show(self, view: ClusterView) -> None:
        raise NotImplementedError

    def hear(self, events: Sequence[Event]) -> None:
        """What has just happened to tasks; empty: some of it was missed."""

    # --- what an action is about ---
    def chosen_tasks(self) -> list[Task]:
        """The marked ones, else the one under the cursor."""
        return []

    def chosen_node(self) -> str | None:
        return None

    def tasks_done(self, task_ids: Sequence[str]) -> None:
        """An order for these has succeeded: unmark them, and look again."""
