"""Small dialogs: a question with default No, and a line to be typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input

from tq_tui.typeahead import Dialog
from tq_tui.widgets.plain import Plain


class ConfirmScreen(Dialog):
    """Says exactly what will happen, and does nothing unless told to. ``typed``: what has to be
    typed for a Yes. ``things``: what it is about, a line each. What is asked and the answers stay
    in sight on the smallest terminal; what is between them scrolls."""

    keeps_early = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,q", "answer(False)", show=False),
        Binding("y", "answer(True)", show=False),
        Binding("left,right,h,l", "other", show=False),
    ]

    def __init__(
        self, title: str, says: Sequence[str], *, yes: str, typed: str = "", things: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._title, self._says, self._yes, self._wanted, self._things = title, says, yes, typed, things

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Plain(self._title, id="dialog-title")
            with VerticalScroll(id="dialog-middle", can_focus=False):
                if self._things:
                    yield Plain("\n".join(self._things), id="dialog-things")
                yield Plain("\n".join(self._says), id="dialog-text")
            if self._wanted:
                yield Plain(f"Type {self._wanted} to go on:")
                yield Input(id="typed", compact=True)
            with Horizontal(id="dialog-buttons"):
                yield Button("No, leave it", id="no", compact=True)
                yield Button(self._yes, id="yes", variant="error", compact=True, disabled=bool(self._wanted))
            yield Plain("n or Esc: no" + ("" if self._wanted else "   y: yes"), id="dialog-keys")

    def on_mount(self) -> None:
        self.query_one("#typed" if self._wanted else "#no").focus()
        self.ready_for_keys()

    def action_answer(self, answer: bool) -> None:
        if answer and self._wanted:
            return
        self.dismiss(answer)

    def action_other(self) -> None:
        self.focus_next(Button)

    @on(Input.Changed, "#typed")
    def _typing(self, event: Input.Changed) -> None:
        self.query_one("#yes", Button).disabled = event.value.strip() != self._wanted

    @on(Input.Submitted, "#typed")
    def _typed(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._wanted:
            self.dismiss(True)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class PromptScreen(Dialog):
    """One line, such as a queue's name, with what is known already."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", show=False)]

    def __init__(self, title: str, says: str, value: str = "", known: Sequence[str] = ()) -> None:
        super().__init__()
        self._title, self._says, self._value, self._known = title, says, value, known

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", can_focus=False):
            yield Plain(self._title, id="dialog-title")
            yield Plain(self._says, id="dialog-text")
            yield Input(self._value, id="typed", compact=True, suggester=SuggestFromList(self._known))
            yield Plain("Enter: go on   Esc: leave it", id="dialog-keys")

    def on_mount(self) -> None:
        self.query_one("#typed").focus()
        self.ready_for_keys()

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(event.value.strip())
