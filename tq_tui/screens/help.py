"""The help, made from the table of keys and searched as one types; the list of HTTP calls made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input

from tq_tui import format as f
from tq_tui import keys, partition_map
from tq_tui.charts import Line
from tq_tui.client.api import Call
from tq_tui.client.models import STATES
from tq_tui.screens.columns import call_columns
from tq_tui.widgets.plain import Plain
from tq_tui.widgets.rows import RowTable


class HelpScreen(ModalScreen[None]):
    """Help on the screen ``kind``."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1", "dismiss(None)", show=False, priority=True),
        Binding("down", "scroll(1)", show=False, priority=True),
        Binding("up", "scroll(-1)", show=False, priority=True),
        Binding("pagedown", "scroll(10)", show=False, priority=True),
        Binding("pageup", "scroll(-10)", show=False, priority=True),
    ]

    def __init__(self, kind: str, *, readonly: bool) -> None:
        super().__init__()
        self._kind, self._readonly = kind, readonly

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="large"):
            title = next(title for _, name, title in keys.SCREENS if name == self._kind)
            only = "; read-only: nothing can be changed" if self._readonly else ""
            yield Plain(f"What works on {title}{only}", id="dialog-title")
            yield Input(placeholder="type to search, Esc closes", id="search", compact=True)
            with VerticalScroll(id="help-scroll", can_focus=False):
                yield Plain(id="help-text")

    def on_mount(self) -> None:
        self.query_one("#search").focus()
        self._show("")

    def action_scroll(self, lines: int) -> None:
        self.query_one("#help-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    @on(Input.Changed)
    def _typing(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, text: str) -> None:
        self.query_one("#help-text", Plain).draw(help_lines(self._kind, text, readonly=self._readonly))


def help_lines(kind: str, text: str, *, readonly: bool) -> list[Line]:
    """The actions by group, each with its keys and its title."""
    words = text.lower().split()

    def found(shown: str) -> bool:
        return all(word in shown.lower() for word in words)

    lines: list[Line] = []
    groups: dict[str, list[tuple[str, str]]] = {}
    for act in keys.available(kind, readonly=readonly):
        pressed = " ".join(keys.shown(key) for key in act.keys)
        groups.setdefault(act.group, []).append((pressed, act.title))
    groups["Moving"] = list(keys.MOVES)
    groups["Signs of tasks"] = [(f.GLYPHS[state], state) for state in STATES]
    groups["Signs of partitions"] = [(glyph, word) for glyph, word, _ in partition_map.LEGEND]
    for group, pairs in groups.items():
        matching = [(pressed, title) for pressed, title in pairs if found(f"{group} {pressed} {title}")]
        if matching:
            lines.append([(group, "bold $accent")])
            cells = min(26, max(len(pressed) for pressed, _ in matching) + 2)
            lines += [[(f"  {f.fit(pressed, cells)}", "bold"), (title, "")] for pressed, title in matching]
    return lines or [[("nothing found", "$foreground-muted")]]


class CallsScreen(ModalScreen[None]):
    """The HTTP calls behind what was done, latest last. Enter or ``y`` copies one as a curl line.

    :param copy: puts a text on the clipboard; its second argument names it for the user."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,tilde", "dismiss(None)", show=False),
        Binding("y,c", "copy", show=False),
    ]

    def __init__(self, calls: Sequence[Call], copy: Callable[[str, str], None]) -> None:
        super().__init__()
        self._copy = copy
        self._calls = [(str(number), call) for number, call in enumerate(calls)]

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="large"):
            yield Plain("Calls behind what was done: Enter copies one", id="dialog-title")
            table: RowTable[Call] = RowTable(
                call_columns(), lambda call: str(id(call)), widget_id="calls", empty="nothing was asked for yet"
            )
            yield table
            yield Plain(id="call")

    def on_mount(self) -> None:
        table: RowTable[Call] = self.query_one("#calls", RowTable)
        table.set_rows([call for _, call in self._calls])
        table.go_to(len(self._calls) - 1)
        table.focus()
        self._show_chosen()

    @on(RowTable.Moved)
    def _show_chosen(self) -> None:
        call: Call | None = self.query_one("#calls", RowTable).current
        if call is not None:
            self.query_one("#call", Plain).say(call.curl + (f"\n✘ {call.error}" if call.error else ""))

    @on(RowTable.Opened)
    def action_copy(self) -> None:
        call: Call | None = self.query_one("#calls", RowTable).current
        if call is not None:
            self._copy(call.curl, "the call")
