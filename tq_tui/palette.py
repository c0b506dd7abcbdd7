"""The palette: every action that can be done now, each with its key, found by any part of its name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tq_tui import keys

if TYPE_CHECKING:
    from tq_tui.app import Console


class Actions(Provider):
    """From the table of keys, and the themes."""

    def _commands(self) -> list[tuple[str, str, partial[None]]]:
        console = cast("Console", self.app)
        found = [
            (f"{act.title}  [{' '.join(map(keys.shown, act.keys))}]", act.group, partial(console.action_act, act.id))
            for act in keys.available(console.kind, readonly=console.readonly)
        ]
        return found + [
            (f"Theme: {name}", "Console", partial(setattr, console, "theme", name))
            for name in sorted(console.available_themes)
        ]

    async def discover(self) -> Hits:
        for title, group, command in self._commands():
            yield DiscoveryHit(_escaped(title), command, title, help=group)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, group, command in self._commands():
            score = matcher.match(title)
            if score > 0:
                yield Hit(score, matcher.highlight(title), command, title, help=group)


def _escaped(title: str) -> str:
    return title.replace("[", "\\[")
