"""The form for a new task, checked as one types."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input, TextArea

from tq_tui import format as f
from tq_tui.client.models import Submission, Task
from tq_tui.forms import BadField, read_delay, read_number, read_payload, read_type
from tq_tui.screens.dialogs import ConfirmScreen
from tq_tui.typeahead import Dialog
from tq_tui.widgets.plain import Plain

FIELDS = (
    ("priority", "priority", "0 to 9, 9 first; 5"),
    ("delay", "delay", "90, 5m, 2h; at once"),
    ("queue", "queue", "default"),
    ("attempts", "attempts", "1 to 100; 3"),
)

TALL = 20


class SubmitScreen(Dialog):
    """The form.

    :param like: a task to begin with.
    :param types: known ones, the latest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", show=False),
        Binding("ctrl+s,f2", "submit", show=False),
    ]

    def __init__(self, types: Sequence[str], like: Task | None = None) -> None:
        super().__init__()
        self._types, self._like = types, like
        self._text = f.pretty_json(like.payload) if like is not None else ""
        self._start: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        like = self._like
        with VerticalScroll(id="dialog", classes="form", can_focus=False):
            yield Plain("Submit again" if like else "Submit a task", id="dialog-title")
            with Horizontal(classes="field"):
                yield Plain("type", classes="label")
                yield Input(
                    like.type if like else "", id="type", compact=True, placeholder="which handler runs it; ↓ for the next",
                    suggester=SuggestFromList(self._types),
                )  # fmt: skip
            yield Plain("known: " + " ".join(self._types), id="types")
            with Horizontal(classes="field", id="payload-field"):
                yield Plain("payload", classes="label")
                yield TextArea(self._text, id="payload", compact=True, tab_behavior="focus", soft_wrap=True)
            yield Plain("", id="payload-says")
            values = {
                "priority": f"{like.priority:g}" if like else "",
                "queue": like.queue if like else "",
                "attempts": str(like.max_attempts) if like else "",
                "delay": "",
            }
            for name, label, takes in FIELDS:
                with Horizontal(classes="field"):
                    yield Plain(label, classes="label")
                    yield Input(values[name], id=name, compact=True, placeholder=takes)
                    yield Plain("", id=f"{name}-says", classes="says")
            with Horizontal(id="dialog-buttons"):
                yield Button("Submit  ctrl+s", id="send", variant="primary", compact=True)
                yield Button("Leave it  Esc", id="leave", compact=True)

    def on_mount(self) -> None:
        self.query_one("#payload" if self._like else "#type").focus()
        self._start = self._typed()
        self._check()
        self.ready_for_keys()

    def on_resize(self) -> None:
        """Shorten the payload's field before a button is out of sight."""
        self.set_class(self.app.size.height < TALL, "short")

    def _typed(self) -> tuple[str, ...]:
        return (*(box.value for box in self.query(Input)), self.query_one("#payload", TextArea).text)

    def key_down(self) -> None:
        """Put the next known type into the type's field."""
        box = self.query_one("#type", Input)
        if not box.has_focus or not self._types:
            return
        place = self._types.index(box.value) + 1 if box.value in self._types else 0
        box.value = self._types[place % len(self._types)]
        box.cursor_position = len(box.value)

    @on(Input.Changed)
    @on(TextArea.Changed)
    def _changed(self) -> None:
        self._check()

    def _check(self) -> Submission | None:
        """The task as it would be submitted; None: a field is wrong, and says so."""
        payload = read_payload(self.query_one("#payload", TextArea).text)
        says = self.query_one("#payload-says", Plain)
        says.say(f"✘ {payload.error}" if payload.error else f"✔ {payload.said}")
        says.set_class(bool(payload.error), "bad")
        read: dict[str, float | int | None] = {}
        good = not payload.error
        for name, reader in (
            ("priority", lambda text: read_number(text, 0, 9)),
            ("delay", read_delay),
            ("attempts", lambda text: read_number(text, 1, 100)),
        ):
            error = ""
            try:
                read[name] = reader(self.query_one(f"#{name}", Input).value)
            except BadField as why:
                error, good = f"✘ {why}", False
            box = self.query_one(f"#{name}-says", Plain)
            box.say(error)
            box.set_class(bool(error), "bad")
        try:
            kind = read_type(self.query_one("#type", Input).value)
        except BadField:
            return None
        if not good:
            return None
        priority, attempts = read["priority"], read["attempts"]
        return Submission(
            type=kind,
            id=f"task-{uuid.uuid4()}",
            payload=payload.value,
            queue=self.query_one("#queue", Input).value.strip() or None,
            priority=int(priority) if priority is not None else None,
            delay=read["delay"] or None,
            max_attempts=int(attempts) if attempts is not None else None,
            tags=(self._like.tags or None) if self._like is not None else None,
        )

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        self.focus_next()

    @on(Button.Pressed, "#send")
    def action_submit(self) -> None:
        submission = self._check()
        if submission is not None:
            self.dismiss(submission)
            return
        self.notify("Not sent: a type is needed, and every field must be right.", severity="error")
        if not self.query_one("#type", Input).value.strip():
            self.query_one("#type").focus()

    @on(Button.Pressed, "#leave")
    async def action_leave(self) -> None:
        """Close the form; ask first where typed text would be lost."""
        if self._typed() == self._start:
            self.dismiss(None)
            return

        def answered(answer: bool | None) -> None:
            if answer:
                self.dismiss(None)

        self.app.push_screen(
            ConfirmScreen("Leave the form?", ["What was typed is lost."], yes="Yes, leave it"), answered
        )
