"""Keys between a key that opens a dialog and the dialog: kept for forms, dropped before questions.

Over a slow line or on a busy machine a form is there some time after its key. What is typed
meanwhile is meant for it, and would otherwise be taken for commands. A Yes that was typed before
its question was seen is none."""

from __future__ import annotations

from typing import Any

from textual import events, on
from textual.app import App
from textual.message import Message
from textual.screen import ModalScreen

PATIENCE_S = 1.0
"""How long keys wait for a dialog; then they are handled as if none had been opened."""
HANDED_S_MAX = 1.0
"""How long a key may take; then the next follows: the widget with its sign of end may be gone."""


class Done(Message):
    """Follows a key from the widget with the focus up to the app: where this is, the key was."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Dialog(ModalScreen[Any]):
    """Calls ``ready_for_keys`` once the focus is set. ``keeps_early``: wants keys from before."""

    keeps_early = True
    is_ready = False

    def ready_for_keys(self) -> None:
        self.is_ready = True
        if isinstance(self.app, TypeAhead):
            self.app.release_keys(keep=self.keeps_early)


class TypeAhead(App[int]):
    """Holds keys back while a dialog is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self._early: list[events.Key] = []
        self._handed: events.Key | None = None
        self._awaited = False
        self._number = 0
        """Number of the key that was handed over last."""

    def opens_dialog(self, key: str) -> bool:
        """Will this key, where the focus is now?"""
        raise NotImplementedError

    def await_dialog(self) -> None:
        """Hold keys back until the dialog is ready, for ``PATIENCE_S`` at most."""
        self._awaited = True
        self.set_timer(PATIENCE_S, lambda: self.release_keys(keep=True))

    def release_keys(self, *, keep: bool) -> None:
        self._awaited = False
        if not keep:
            self._early.clear()
        # Behind what is in the queue already, which is where the focus is set.
        self.call_later(self._hand_over)

    def _hand_over(self) -> None:
        """One at a time: a Tab has its effect before the next key, however long that takes."""
        if not self._early or self._handed is not None or self._is_awaited():
            return
        self._handed = self._early.pop(0)
        self._number += 1
        number = self._number
        self.post_message(self._handed)
        self.call_later(self._follow, number)
        self.set_timer(HANDED_S_MAX, lambda: self._next_key(number))

    def _follow(self, number: int) -> None:
        if not self._screen_stack:
            return  # it is the end
        if not (self.focused or self.screen).post_message(Done(number)):
            self._next_key(number)

    @on(Done)
    def _key_done(self, message: Done) -> None:
        self._next_key(message.number)

    def _next_key(self, number: int) -> None:
        if number == self._number and self._handed is not None:
            self._handed = None
            self._hand_over()

    async def on_event(self, event: events.Event) -> None:
        # A key that has been forwarded comes by a second time, on its way up.
        if isinstance(event, events.Key) and not self._screen_stack:
            return  # it is the end
        if isinstance(event, events.Key) and not event.is_forwarded:
            if event is not self._handed and (self._early or self._handed is not None or self._is_awaited()):
                self._early.append(event)
                return
            if self.opens_dialog(event.key):
                # Now, not when its action runs: a burst's keys are all in the queue before that.
                self.await_dialog()
        await super().on_event(event)

    def _is_awaited(self) -> bool:
        screen = self._screen_stack[-1] if self._screen_stack else None
        return self._awaited or (isinstance(screen, Dialog) and not screen.is_ready)
